"""A diagnosis as a page, a text and JSON."""

import base64
from pathlib import Path
from typing import Any, NamedTuple

from scoreexp.core.ranges import to_unit
from scoreexp.diagnostics.diagnosis import Diagnosis, Finding
from scoreexp.diagnostics.estimates import Estimate
from scoreexp.figures.estimates import estimates_plot
from scoreexp.figures.images import image_grid
from scoreexp.figures.points import pairs_plot
from scoreexp.runs.reporting.page import templates
from scoreexp.system.atomic import atomic_write
from scoreexp.system.json_files import write_json


def write_diagnosis(found: Diagnosis, folder: Path, *, title: str) -> Path:
    """Write ``diagnosis.html``, ``diagnosis.txt``, ``diagnosis.json`` and a picture of each finding; returns the page.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_diagnosis(Diagnosis([], {"score error": "no data"}, {"n": 4}), Path(folder), title="A model")
    ...     page.name, "no data" in page.read_text(encoding="utf-8")
    ('diagnosis.html', True)

    Args:
        found: the findings.
        folder: of the files; made if there is none.
        title: headline of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = [_section(finding, folder) for finding in found.findings]
    page = (
        templates()
        .get_template("diagnosis.html.jinja")
        .render(title=title, facts=found.settings, sections=sections, unsaid=found.unsaid)
    )
    write_json(folder / "diagnosis.json", found.to_dict())
    for name, text in (("diagnosis.txt", found.text()), ("diagnosis.html", page)):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "diagnosis.html"


def _section(finding: Finding, folder: Path) -> dict[str, Any]:
    pictures = []
    if finding.axis:
        path = folder / f"{finding.name}.png"
        rows = {
            name: [(at, e.value, e.error) for at, e in series.items()]
            for name, series in finding.series.items()
        }
        estimates_plot(
            rows,
            path,
            xlabel=finding.axis,
            log_x="level" in finding.axis,
            exact=1.0 if finding.name in ("calibration", "training_over_held_out") else None,
            units=finding.units,
            linear=("accuracy", "dB"),
        )
        pictures.append((_data_uri(path), "bars: two standard errors"))
    if finding.pictures is not None:
        path = folder / f"{finding.name}_images.png"
        image_grid(to_unit(finding.pictures.float()).clamp(0, 1), path)
        pictures.append((_data_uri(path), finding.caption))
    if finding.pairs is not None:
        path = folder / f"{finding.name}_points.png"
        pairs_plot(finding.pairs.float(), path, names=("drawn", "nearest training sample"))
        pictures.append((_data_uri(path), finding.caption))
    return {"finding": finding, "pictures": pictures, "tables": _tables(finding)}


class _Table(NamedTuple):
    """Series with the same places on the axis and the same number of samples, side by side."""

    names: list[str]
    samples: int
    rows: dict[float, list[Estimate]]


def _tables(finding: Finding) -> list[_Table]:
    found: dict[tuple[tuple[float, ...], int], _Table] = {}
    for name, series in finding.series.items():
        for n in sorted({estimate.n for estimate in series.values()}):
            rows = {at: estimate for at, estimate in series.items() if estimate.n == n}
            table = found.setdefault((tuple(rows), n), _Table([], n, {at: [] for at in rows}))
            table.names.append(name)
            for at, estimate in rows.items():
                table.rows[at].append(estimate)
    return list(found.values())


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
