"""Tables of the documentation that a script writes, between two comments that name them, and the size of its figures."""

from pathlib import Path

from matplotlib import cycler
from PIL import Image

from scoreexp.figures.images import LINES
from scoreexp.system.atomic import atomic_write

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"
STYLE = {
    "axes.prop_cycle": cycler(**LINES)
}  # colours and lines of pyplot's curves: plt.rcParams.update(STYLE)


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


def shrink(path: Path, bytes_at_most: int = 60_000) -> None:
    """Write a PNG again in few bytes, with 256 colours where it would be larger than ``bytes_at_most`` without loss."""
    with Image.open(path) as image:
        drawn = image.convert("RGB")
    with atomic_write(path) as temporary:
        drawn.save(temporary, format="png", optimize=True)
        if Path(temporary).stat().st_size > bytes_at_most:
            drawn.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(
                temporary, format="png", optimize=True
            )
