"""Tables of the documentation that a script writes, between two comments that name them."""

from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"


def write_table(page: Path, name: str, table: str) -> None:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->`` in ``page``.

    Raises:
        ValueError: the page lacks one of the comments.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text()
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} lacks {begin} or {end}: put them round the table")
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}")
