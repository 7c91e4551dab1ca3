"""The report: one HTML page that needs nothing else, and the same numbers as a table for other programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scoreexp.runs.reporting.charts import pens
from scoreexp.runs.reporting.csv_table import as_csv
from scoreexp.runs.reporting.evaluations import Evaluated, evaluations
from scoreexp.runs.reporting.figures import Curves, Sampled, Stages, Strip, curves, samples, stages, strips
from scoreexp.runs.reporting.image_table import ImageTable, image_table
from scoreexp.runs.reporting.notes import (
    Differences,
    Notice,
    facts,
    hardware,
    notices,
    reading,
    setting_differences,
)
from scoreexp.runs.reporting.reading import find_runs
from scoreexp.runs.reporting.results import Results, results, what_is_compared
from scoreexp.runs.reporting.runs import Plan, Run
from scoreexp.runs.reporting.summary import tables
from scoreexp.runs.reporting.wording import card_text, label
from scoreexp.system.atomic import atomic_write, clear_orphans

TEMPLATES = Path(__file__).with_name("templates")


class Page(NamedTuple):
    """What the page shows, in its order.

    Sections with one entry per table leave out those that have nothing to show, and name the table where there are several.
    """

    title: str
    methods: list[str]
    facts: dict[str, str]
    notices: list[Notice]
    results: list[Results]
    images: list[ImageTable]
    curves: list[tuple[str, Curves]]
    samples: list[Sampled]
    pictures: list[tuple[str, list[Strip]]]
    stages: list[tuple[str, Stages]]
    evaluations: list[Evaluated]
    differences: Differences | None
    reading: list[str]
    hardware: dict[str, list[str]]
    commands: list[str]


def write_report(
    folders: Sequence[Path], out: Path, *, title: str | None = None, baseline: str | None = None
) -> Path:
    """Write ``report.html`` and ``results.csv`` about the runs in ``folders``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.yaml").write_text("name: ours")
    ...     page = write_report([Path(folder)], Path(folder, "report"), title="One run")
    ...     page.name, "<h1>One run</h1>" in page.read_text(encoding="utf-8")
    ('report.html', True)

    Args:
        folders: run folders, folders that contain some, or the one folder of a comparison.
        out: folder of the two files; made if there is none.
        title: headline; by default the comparison's.
        baseline: the method that speed-ups refer to; by default the comparison's.

    Returns:
        The page.

    Raises:
        UserError: a folder does not exist, holds no runs at all, or a damaged file.
    """
    runs, plan = find_runs(folders)
    out.mkdir(parents=True, exist_ok=True)
    page = out / "report.html"
    for path, text in (
        (page, render(page_of(runs, plan, title, baseline))),
        (out / "results.csv", as_csv(runs, plan)),
    ):
        clear_orphans(out, path.name)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return page


def page_of(
    runs: Sequence[Run], plan: Plan | None = None, title: str | None = None, baseline: str | None = None
) -> Page:
    """What a page about ``runs`` shows."""
    methods = list(dict.fromkeys(run.method for run in runs))
    pen_of = pens(methods)
    compared = tables(runs, plan, baseline)
    baseline = baseline or (plan.baseline if plan else None)
    several = len(compared) > 1
    named = [(what_is_compared(table) if several else "", table) for table in compared]
    return Page(
        title=title or (plan.title or plan.name if plan else "Runs compared"),
        methods=[label(method) for method in methods],
        facts=facts(runs, plan),
        notices=notices(runs, plan, compared),
        results=list(filter(None, (results(table, baseline, pen_of, several) for table in compared))),
        images=list(filter(None, map(image_table, compared))),
        curves=[(name, found) for name, table in named if (found := curves(table, pen_of))],
        samples=samples(runs, pen_of),
        pictures=[(name, shown) for name, table in named if (shown := strips(table, pen_of))],
        stages=[(name, spent) for name, table in named if (spent := stages(table, pen_of))],
        evaluations=evaluations(runs),
        differences=setting_differences(runs),
        reading=reading(runs, compared),
        hardware=hardware(runs, plan),
        commands=[run.command for run in runs if run.command],
    )


def templates() -> Environment:
    """The templates of this folder; what they are given is escaped."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(page: Page) -> str:
    """The page as HTML; whatever it says is escaped."""
    environment = templates()
    environment.filters |= {"label": label, "card": card_text, "px": "{:.1f}".format}
    return environment.get_template("report.html.jinja").render(page=page)
