"""The report: one HTML page that needs nothing else, and the same numbers as a table for other programs."""

import base64
import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scoreexp.runs.reporting.charts import DASHES, PALETTE, STAGE_TONES, Bar, Line, bar_chart, line_chart
from scoreexp.runs.reporting.runs import AFTER, Plan, Run, conditions, differences, find_runs
from scoreexp.runs.reporting.summary import (
    QUALITY,
    Spread,
    Summary,
    Table,
    by_image,
    evaluations,
    median_curve,
    ranked_best,
    tables,
    target_of,
)
from scoreexp.system.atomic import atomic_write, clear_orphans

STYLE = Path(__file__).with_name("style.css")
BUSY = 0.5  # load average per core above which timings are not to be trusted
NAMES = {"ssim": "SSIM", "ssim_global": "global SSIM", "psnr": "PSNR", "mse": "MSE"}

_HEADS = {
    "last/ssim": "SSIM<br>at end",
    "last/ssim_global": "global<br>SSIM",
    "last/psnr": "PSNR<br>dB",
    "best/ssim": "best<br>SSIM",
}

e = html.escape


def write_report(
    folders: Sequence[Path], out: Path, *, title: str | None = None, baseline: str | None = None
) -> Path:
    """Write ``report.html`` and ``results.csv`` about the runs in ``folders``.

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
        (page, render(runs, plan, title, baseline)),
        (out / "results.csv", as_csv(runs, plan)),
    ):
        clear_orphans(out, path.name)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return page


def render(
    runs: Sequence[Run], plan: Plan | None = None, title: str | None = None, baseline: str | None = None
) -> str:
    """The page as text."""
    methods = list(dict.fromkeys(run.method for run in runs))
    style = {m: (PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)]) for i, m in enumerate(methods)}
    compared = tables(runs, plan, baseline)
    baseline = baseline or (plan.baseline if plan else None)
    title = title or (plan.title or plan.name if plan else "Runs compared")
    sections = [
        _header(runs, plan, title),
        _notices(runs, plan, compared),
        *(_results(table, baseline, style, len(compared) > 1) for table in compared),
        *(_images(table) for table in compared),
        *(_curves(table, style) for table in compared),
        *(_pictures(table, style) for table in compared),
        *(_stages(table, style) for table in compared),
        _evaluations(runs),
        _differences(runs),
        _reading(runs, compared),
        _hardware(runs, plan),
        _commands(runs),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{e(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Written by scoreexp from the run folders; results.csv beside this page has the same numbers by "
        "run.</footer>\n</main>\n</body>\n</html>\n"
    )


# ---------------------------------------------------------------------------------------------- numbers


def label(method: str) -> str:
    """A method's name as text."""
    return method.replace("_", " ")


def seconds_text(value: float) -> str:
    if math.isinf(value):
        return "not reached"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def quality_text(value: float, name: str) -> str:
    if math.isinf(value):
        return "∞"
    if name not in QUALITY:
        return f"{value:.4g}"
    return f"{value:.1f}" if name == "psnr" else f"{value:.3f}"


def _number(value: Any) -> str:
    return "–" if math.isinf(value) else f"{value:.0f}"


def _cell(spread: Spread | None, text: Any, best: bool = False) -> str:
    """Median, with the range below it where there is one."""
    if spread is None:
        return "<td>–</td>"
    median = text(spread.median)
    shown = f"<b>{median}</b>" if best else median
    low, high = text(spread.low), text(spread.high)
    if math.isfinite(spread.low) and high in ("–", "not reached"):
        high = "never"
    if math.isinf(spread.low) and spread.low > 0 and low != "∞":
        return f'<td class="none">{median}</td>'
    return f"<td>{shown}" + (f'<span class="range">{low} – {high}</span>' if low != high else "") + "</td>"


# ---------------------------------------------------------------------------------------------- sections


def _header(runs: Sequence[Run], plan: Plan | None, title: str) -> str:
    methods = list(dict.fromkeys(run.method for run in runs))
    seeds = sorted({run.seed for run in runs})
    done = sum(run.state == "done" for run in runs)
    facts = {
        "methods": str(len(methods)),
        "seeds": f"{len(seeds)} ({', '.join(map(str, seeds[:6]))}{', …' if len(seeds) > 6 else ''})",
        "runs finished": f"{done} of {len(runs)}",
    }
    if plan is not None and plan.mode == "budget" and plan.seconds is not None:
        facts["budget per run"] = f"{plan.seconds:g} s of pre-computation and training"
    elif plan is not None and plan.target is not None:
        facts["trained until"] = f"{_metric(plan.monitor)} {_sign(runs)} {plan.target:g}"
        if plan.seconds is not None:
            facts["given up after"] = f"{plan.seconds:g} s"
    started = sorted(str(run.manifest["started"]) for run in runs if "started" in run.manifest)
    if started:
        facts["measured"] = started[0][:10] + (
            "" if started[-1][:10] == started[0][:10] else f" to {started[-1][:10]}"
        )
    listed = "".join(f"<div><dt>{e(name)}</dt><dd>{e(value)}</dd></div>" for name, value in facts.items())
    lead = " · ".join(label(method) for method in methods)
    return (
        f'<header><p class="kicker">scoreexp comparison</p><h1>{e(title)}</h1><p class="lead">{e(lead)}</p>'
        f'<dl class="facts">{listed}</dl></header>'
    )


def _notices(runs: Sequence[Run], plan: Plan | None, compared: Sequence[Table]) -> str:
    """What keeps the numbers below from being the whole story, before any of them."""
    said = []
    if not runs:
        said.append("There is no run in these folders.")
    elif not any(run.state == "done" for run in runs):
        said.append("<b>No run has finished.</b> There is nothing to compare yet.")
    for state, what in (
        ("failed", "failed"),
        ("interrupted", "were interrupted"),
        ("running", "are still marked as running (or were killed)"),
        ("unfinished", "have not finished"),
        ("not started", "have not been started"),
    ):
        those = [run for run in runs if run.state == state]
        if not those:
            continue
        names = ", ".join(f"{e(label(run.method))} seed {run.seed}" for run in those)
        why = "".join(
            f"<li>{e(label(run.method))} seed {run.seed}: <code>{e(run.error)}</code></li>"
            for run in those
            if run.error
        )
        said.append(
            f"{len(those)} of {len(runs)} runs {what} and do not count: {names}."
            + (f"<ul>{why}</ul>" if why else "")
        )
    if len(compared) > 1:
        said.append(
            "These runs were not all measured in the same way, so they stand in separate tables and are not ranked "
            f"against each other. They differ in {e(_what_differs(runs, plan))}."
        )
    if plan is not None and plan.load > BUSY:
        said.append(
            f"The machine was busy with other work when this was started (load average {plan.load:.1f} per core): seconds "
            "are longer than on a quiet one, and not comparable between runs. Steps are."
        )
    return f'<div class="notice">{"".join(f"<p>{line}</p>" for line in said)}</div>' if said else ""


def _what_differs(runs: Sequence[Run], plan: Plan | None) -> str:
    described = []
    for run in runs:
        if run.config:
            monitor, target = target_of(run, plan)
            described.append(
                conditions(run.config)
                | {"hardware": run.manifest.get("device"), "target": f"{monitor} {target}"}
            )
    keys = dict.fromkeys(key for one in described for key in one)
    parts = []
    for key in keys:
        values = list(dict.fromkeys(str(one.get(key, "–")) for one in described))
        if len(values) > 1:
            parts.append(f"{key} ({' / '.join(values)})")
    return ", ".join(parts)


def _sign(runs: Sequence[Run]) -> str:
    """How a value is held against its target."""
    return "≤" if any(run.descends for run in runs) else "≥"


def _metric(monitor: str) -> str:
    base = monitor.removeprefix("val/").removesuffix("_confirmed")
    return NAMES.get(base, base)


def describe_conditions(table: Table) -> str:
    """Data, observation, target and hardware of a table in one line."""
    values = table.conditions
    kind = str(values.get("data._target_", "data")).rpartition(".")[2]
    name = values.get("data.name") or values.get("data.path")
    images = {run.image for row in table.rows for run in row.runs} - {None}
    what = f"{len(images)} pictures" if len(images) > 1 else next(iter(images), name)
    parts = [f"{kind} ({what})" if what else kind]
    if size := values.get("data.size"):
        parts.append(f"{size} × {size} pixels")
    if number := values.get("data.num_images"):
        parts.append(f"{number} training images")
    if values.get("data.validate_on") == "train":
        parts.append("measured on the training images")
    if sigma := values.get("monitor.sigma"):
        parts.append(f"noise σ = {sigma:g} of [0, 1]")
    if table.target is not None:
        again = values.get("monitor.confirm") if table.monitor.endswith("_confirmed") else None
        parts.append(
            f"target {_metric(table.monitor)} {_sign([r for row in table.rows for r in row.runs])} {table.target:g}"
            + (f", {again} evaluations in a row" if again and again > 1 else "")
        )
    return " · ".join([*parts, table.device])


def _finding(table: Table) -> str:
    """The result in a sentence, with what it cannot tell apart."""
    quality = table.metric.removeprefix("val/")
    by_quality = f"last/{quality if quality in QUALITY else 'ssim'}"
    timed = table.target is not None and bool(ranked_best(table.rows, "seconds"))
    column = "seconds" if timed else by_quality
    best = ranked_best(table.rows, column)
    if not best:
        return ""
    name = column.partition("/")[2]

    def spread_of(row: Summary) -> Spread | None:
        return row.seconds if timed else row.last[name]

    first = next(row for row in table.rows if row.method in best)
    spread = spread_of(first)
    assert spread is not None  # it has been ranked
    others = []
    for row in table.rows:
        other = spread_of(row)
        if row is first or row.untrained or other is None:
            continue
        if min(other.high, spread.high) >= max(other.low, spread.low):
            others.append(label(row.method))
    said = (
        f"Fastest to the target: <b>{e(label(first.method))}</b>, {seconds_text(spread.median)} s in the median."
        if timed
        else f"Highest {e(NAMES[name])} at the end: <b>{e(label(first.method))}</b>, "
        f"{quality_text(spread.median, name)} in the median."
    )
    if others:
        said += f" Its range over seeds overlaps with that of {e(_listed(others))}: the order of these is not settled."
    return f'<p class="finding">{said}</p>'


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _results(table: Table, baseline: str | None, style: Mapping[str, tuple[str, str]], several: bool) -> str:
    rows = table.rows
    if not any(row.finished for row in rows):
        return ""
    aimed = table.target is not None
    names = [name for name in rows[0].last if any(row.last[name] for row in rows)]
    columns = [f"last/{name}" for name in names] + (["best/ssim"] if "ssim" in names else [])
    best = {column: ranked_best(rows, column) for column in ("seconds", *columns)}
    head = ["method"]
    head += (
        ["reached<br>target", "seconds<br>to target", "speed-up", "steps<br>to target"] if aimed else ["runs"]
    )
    head += [
        "pre-<br>compute s",
        "seconds<br>spent",
        *(_HEADS.get(c, e(c.partition("/")[2])) for c in columns),
    ]
    head += ["NFE", "weights"]
    body = []
    for row in rows:
        n = len(row.finished)
        cells = [
            f'<th><span class="key" style="background:{style[row.method][0]}"></span>{e(label(row.method))}</th>'
        ]
        if not aimed:
            cells.append(f"<td>{n}{'' if n == len(row.runs) else f' of {len(row.runs)}'}</td>")
        else:
            cells.append(f"<td>{row.reached} of {n}</td>" if n else "<td>–</td>")
            cells.append(_cell(row.seconds, seconds_text, row.method in best["seconds"]))
            ratio = table.speed_ups.get(row.method)
            shown = (
                "baseline"
                if row.method == baseline
                else f"{ratio.bound} {ratio.ratio:.2g}×"
                if ratio
                else "–"
            )
            cells.append(f"<td>{e(shown.strip())}</td>")
            cells.append(_cell(row.steps, _number))
        cells.append(_cell(row.precompute, seconds_text))
        cells.append(_cell(row.spent, seconds_text))
        for column in columns:
            kind, _, name = column.partition("/")
            spread = getattr(row, kind)[name]
            cells.append(_cell(spread, lambda v, n=name: quality_text(v, n), row.method in best[column]))
        cells.append(f"<td>{'–' if row.nfe is None else f'{row.nfe:.0f}'}</td>")
        cells.append(f"<td>{_parameters(row.parameters)}</td>")
        body.append(f"<tr{' class=limit' if row.untrained else ''}>{''.join(cells)}</tr>")
    heading = f"Results: {e(_short(table))}" if several else "Results"
    notes = "Median over seeds (and images), below it the range. Bold: best median among the trained methods."
    if aimed and table.speed_ups:
        notes += (
            f" Speed-up: median seconds of {e(label(str(baseline)))} over those of the method; &gt; and &lt; where one of "
            "them did not reach the target in the time it had."
        )
    if any(row.untrained for row in rows):
        notes += " The exact score needs no training: it is the limit of all methods on these images and is not ranked."
    header = "".join(f"<th>{name}</th>" for name in head)
    return (
        f"<section><h2>{heading}</h2>{_finding(table)}"
        f'<div class="wide"><table><caption>{e(describe_conditions(table))}</caption><thead><tr>{header}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><p class="note">{notes}</p></section>'
    )


def image_rows(table: Table) -> list[list[str]]:
    """Per picture and method: picture, method, finished runs, seconds, PSNR, SSIM, whether it is the best there."""
    quality = f"last/{table.metric.removeprefix('val/')}"
    value = "seconds" if table.target is not None else quality
    lines = []
    for image, rows in by_image(table).items():
        best = ranked_best(rows, value)
        for row in rows:
            cells = [seconds_text(row.seconds.median) if row.seconds else "–"]
            for name in ("psnr", table.metric.removeprefix("val/")):
                spread = row.last.get(name)
                cells.append("–" if spread is None else quality_text(spread.median, name))
            mark = "best" if row.method in best else ""
            lines.append([image, row.method, f"{len(row.finished)}/{len(row.runs)}", *cells, mark])
    return lines


def image_heads(table: Table) -> list[str]:
    """The heads of ``image_rows``."""
    seconds = "seconds to target" if table.target is not None else "seconds"
    return ["picture", "method", "runs", seconds, "PSNR", _metric(table.metric), ""]


def image_table(table: Table) -> list[str]:
    """The table by method and that by picture as plain text; empty for one picture."""
    lines = image_rows(table)
    if not lines:
        return []
    best = ranked_best(table.rows, "seconds") if table.target is not None else set()
    best = best or ranked_best(
        table.rows, f"last/{table.metric.removeprefix('val/')}"
    )  # none got to the target
    whole = []
    for row in table.rows:
        cells = []
        for spread, name in (
            (row.seconds, None),
            (row.last.get("psnr"), "psnr"),
            (row.last.get(table.metric.removeprefix("val/")), table.metric.removeprefix("val/")),
        ):
            shown = [seconds_text(v) if name is None else quality_text(v, name) for v in spread or ()]
            spans = bool(shown) and shown[1] != shown[2]
            cells.append(f"{shown[0]} ({shown[1]} to {shown[2]})" if spans else shown[0] if shown else "–")
        whole.append(
            [
                "all",
                row.method,
                f"{len(row.finished)}/{len(row.runs)}",
                *cells,
                "best" if row.method in best else "",
            ]
        )
    cells_of = [image_heads(table), *whole, *lines]
    widths = [max(len(line[i]) for line in cells_of) for i in range(len(cells_of[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells_of]


def _images(table: Table) -> str:
    lines = image_rows(table)
    if not lines:
        return ""
    head = "".join(f"<th>{e(cell)}</th>" for cell in image_heads(table))
    body = "\n".join("<tr>" + "".join(f"<td>{e(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return (
        f"<section>\n<h2>By picture</h2>\n<p>Medians over seeds.</p>\n"
        f"<table>\n<tr>{head}</tr>\n{body}\n</table>\n</section>"
    )


def _short(table: Table) -> str:
    return describe_conditions(table).rpartition(" · ")[0]


def _parameters(count: int | None) -> str:
    if count is None:
        return "–"
    return "none" if count == 0 else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def _legend(rows: Iterable[Summary], style: Mapping[str, tuple[str, str]]) -> str:
    items = []
    for row in rows:
        colour, dash = style[row.method]
        items.append(
            f'<span><svg viewBox="0 0 30 8"><line x1="0" x2="30" y1="4" y2="4" stroke="{colour}" stroke-width="2.4" '
            f'stroke-dasharray="{dash}"/></svg>{e(label(row.method))}</span>'
        )
    return f'<div class="legend">{"".join(items)}</div>'


def _curves(table: Table, style: Mapping[str, tuple[str, str]]) -> str:
    shown = [row for row in table.rows if any(run.curve(table.metric) for run in row.runs)]
    if not shown:
        return ""
    name = _metric(table.metric)
    charts = []
    for axis, xlabel in (("seconds", "seconds of pre-computation and training"), ("step", "training step")):
        thin, thick = [], []
        furthest = max(getattr(p, axis) for row in shown for run in row.runs for p in run.curve(table.metric))
        for row in shown:
            colour, dash = style[row.method]
            curves = [[(getattr(p, axis), p.value) for p in run.curve(table.metric)] for run in row.runs]
            if row.untrained:
                level = curves[0][-1][1] if curves[0] else 1.0
                thick.append(
                    Line([(0, level), (furthest or 1, level)], colour, dash, True, label(row.method))
                )
                continue
            for run, curve in zip(row.runs, curves):
                thin.append(Line(curve, colour, "", False, f"{label(row.method)}, seed {run.seed}"))
            thick.append(Line(median_curve(curves), colour, dash, True, f"{label(row.method)}, median"))
        high = 1.0 if "ssim" in table.metric else None
        charts.append(
            "<figure>"
            + line_chart([*thin, *thick], xlabel=xlabel, ylabel=name, target=table.target, high=high)
            + f"<figcaption>{e(name)} against {xlabel}.</figcaption></figure>"
        )
    return (
        f'<section class="together"><h2>{e(name)} on the way</h2>'
        f"{_legend(shown, style)}"
        f'<div class="charts">{"".join(charts)}</div>'
        '<p class="note">Thin: one run per seed. Thick: their median; a run that has ended keeps its last value. '
        "Unfinished runs are drawn as far as they got.</p></section>"
    )


def _pictures(table: Table, style: Mapping[str, tuple[str, str]]) -> str:
    strips = []
    for row in table.rows:
        run = next((r for r in row.runs if (r.folder / "pictures" / "last" / "denoised.png").is_file()), None)
        if run is None:
            continue
        pictures = []
        for kind in ("noisy", "denoised", "clean"):
            path = run.folder / "pictures" / "last" / f"{kind}.png"
            if path.is_file():
                data = base64.b64encode(path.read_bytes()).decode()
                alt = f"{kind}, {label(row.method)}"
                pictures.append(
                    f'<div><img src="data:image/png;base64,{data}" alt="{e(alt)}"><div class="of">{kind}</div></div>'
                )
        said = [
            f"{NAMES[name]} {quality_text(value, name)}{' dB' if name == 'psnr' else ''}"
            for name in QUALITY
            if (value := run.last(f"val/{name}")) is not None
        ]
        state = "" if run.state == "done" else f", {run.state}"
        strips.append(
            f'<figure class="strip"><h3><span class="key" style="background:{style[row.method][0]}"></span>'
            f'{e(label(row.method))}</h3><div class="pictures">{"".join(pictures)}</div>'
            f"<figcaption>Seed {run.seed}{e(state)}, step {run.steps}: {', '.join(said)}</figcaption></figure>"
        )
    if not strips:
        return ""
    return (
        '<section><h2>Denoised pictures</h2><p class="note">The first picture at the last evaluation of the first seed; '
        "for a given seed every method sees the same noise.</p>"
        f'<div class="strips">{"".join(strips)}</div></section>'
    )


def _stages(table: Table, style: Mapping[str, tuple[str, str]]) -> str:
    bars = []
    for row in table.rows:
        if row.spent is None or row.precompute is None:
            continue
        train = Spread.of([run.seconds.get("train", 0.0) for run in row.finished])
        evaluate = Spread.of([run.seconds.get("evaluate", 0.0) for run in row.finished])
        assert train is not None and evaluate is not None  # noqa: PT018 - there are finished runs
        medians = (row.precompute.median, train.median, evaluate.median)
        note = ", ".join(
            f"{name} {seconds_text(value)}"
            for name, value in zip(("pre-compute", "train", "evaluate"), medians)
        )
        bars.append(Bar(label(row.method), style[row.method][0], list(zip(STAGE_TONES, medians)), note))
    if not bars:
        return ""
    keys = "".join(
        f'<span><span class="key" style="background:{tone}"></span>{name}</span>'
        for tone, name in zip(STAGE_TONES, ("pre-computation", "training", "evaluation (not counted)"))
    )
    before = dict.fromkeys(
        stage for row in table.rows for run in row.finished for stage in run.seconds if stage not in AFTER
    )
    detail = (
        f" Pre-computation is {e(_listed([stage.replace('_', ' ') for stage in before]))}." if before else ""
    )
    return (
        f'<section class="together"><h2>Where the time goes</h2><div class="legend">{keys}</div>'
        f"<figure>{bar_chart(bars, xlabel='median seconds per run')}</figure>"
        f'<p class="note">Start-up of the process is in none of them.{detail}</p></section>'
    )


def _evaluations(runs: Sequence[Run]) -> str:
    found = evaluations(runs)
    if not found:
        return ""
    parts, names = [], [value.metric for value in found]
    for value in found:
        rows = "".join(
            f"<tr><th>{e(label(method))}</th><td>{spread.median:.4g}</td>"
            f"<td>{spread.low:.4g} – {spread.high:.4g}</td></tr>"
            for method, spread in value.values.items()
        )
        card = (
            ", ".join(f"{key} {v}" for key, v in value.card.items())
            or "no card: how it was computed is not recorded"
        )
        caveats = "".join(f'<p class="note">{e(caveat)}</p>' for caveat in value.caveats)
        apart = (
            '<p class="note">Computed in another way than the other values of this name: not comparable with them.</p>'
            if names.count(value.metric) > 1
            else ""
        )
        parts.append(
            f"<h3>{e(value.metric)}</h3><table><caption>{e(card)}</caption><thead><tr><th>method</th><th>median</th>"
            f"<th>range</th></tr></thead><tbody>{rows}</tbody></table>{apart}{caveats}"
        )
    return f"<section><h2>Evaluation</h2>{''.join(parts)}</section>"


def _differences(runs: Sequence[Run]) -> str:
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.config:
            first.setdefault(run.method, run.config)
    rows = differences(first)
    if len(first) < 2 or not rows:
        return ""
    head = "".join(f"<th>{e(label(method))}</th>" for method in first)
    body = "".join(
        f"<tr><td>{e(key)}</td>{''.join(f'<td>{e(values[method])}</td>' for method in first)}</tr>"
        for key, values in rows.items()
    )
    return (
        '<section><h2>What differs between the methods</h2><p class="note">Every setting that is not listed is the '
        "same. A dash: the method has no such setting.</p>"
        f'<div class="wide"><table class="differences"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div></section>"
    )


def _reading(runs: Sequence[Run], compared: Sequence[Table]) -> str:
    said = [
        "SSIM is windowed (11 × 11 Gaussian, σ 1.5), global SSIM has one window over the whole picture and all its "
        "channels; their values are not comparable with each other. Data range 1, colour channels counted alike, "
        "results clamped to [0, 1], observations not clipped.",
        "Seconds are pre-computation and training by the clock; evaluation is left out. Score fields from a cache count "
        "with the seconds that solving them took.",
    ]
    if any(table.conditions.get("data.validate_on") == "train" for table in compared):
        said.append(
            "Quality is measured on the images that were trained on. Reaching a target there is memorisation: it says how "
            "fast a method learns these images, not how well it denoises others."
        )
    seeds = max((len(row.finished) for table in compared for row in table.rows), default=0)
    if 0 < seeds < 5:
        said.append(
            f"{seeds} {'seed says' if seeds == 1 else 'seeds say'} little about spread: ranges are the smallest and the "
            "largest value, no confidence intervals."
        )
    at_once = max((int(run.status.get("jobs_at_once") or 1) for run in runs), default=1)
    if at_once > 1:
        said.append(f"{at_once} runs shared the machine: their seconds are those of a busy machine.")
    again = sum(int(run.status.get("attempts") or 1) > 1 for run in runs)
    if again:
        said.append(f"{again} runs were interrupted and resumed; their seconds are added up over the parts.")
    return (
        f"<section><h2>How to read this</h2><ul>{''.join(f'<li>{line}</li>' for line in said)}</ul></section>"
    )


def _hardware(runs: Sequence[Run], plan: Plan | None) -> str:
    rows: dict[str, list[str]] = {"processor": [plan.machine] if plan and plan.machine else []}
    for run in runs:
        for name in ("device", "platform", "revision"):
            rows.setdefault(name, []).append(str(run.manifest.get(name) or ""))
        rows.setdefault("host", []).append(str(run.status.get("hostname") or ""))
        versions = run.manifest.get("versions") or {}
        rows.setdefault("software", []).append(", ".join(f"{k} {v}" for k, v in versions.items() if v))
    body = "".join(
        f"<tr><th>{name}</th><td>{'<br>'.join(e(value) for value in shown)}</td></tr>"
        for name, values in rows.items()
        if (shown := [value for value in dict.fromkeys(values) if value])
    )
    if not body:
        return ""
    return (
        f'<section><h2>Hardware and software</h2><table class="plain"><tbody>{body}</tbody></table></section>'
    )


def _commands(runs: Sequence[Run]) -> str:
    commands = [run.command for run in runs if run.command]
    if not commands:
        return ""
    lines = "".join(f'<div class="commands">{e(command)}</div>' for command in commands)
    return f"<section><h2>Exact commands</h2>{lines}</section>"


# -------------------------------------------------------------------------------------------------- csv


def as_csv(runs: Sequence[Run], plan: Plan | None = None) -> str:
    """One row per run."""
    extra = sorted({name for run in runs for name in run.evaluation.get("values") or {}})
    columns = [
        "method", "image", "seed", "state", "data", "resolution", "monitor", "target", "reached", "seconds_to_target",
        "steps_to_target", "seconds_precompute", "seconds_train", "seconds_evaluate", "steps",
        *(f"{kind}_{name}" for name in QUALITY for kind in ("last", "best")), "nfe", "parameters", "device", "folder",
        *(f"evaluation_{name}" for name in extra), "error",
    ]  # fmt: skip
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="")
    writer.writeheader()
    for run in runs:
        monitor, target = target_of(run, plan)
        hit = run.reached(monitor, target) if target is not None else None
        data = run.config.get("data") or {}
        row: dict[str, Any] = {
            "method": run.method,
            "image": run.image,
            "seed": run.seed,
            "state": run.state,
            "data": str(data.get("_target_", "")).rpartition(".")[2],
            "resolution": data.get("size", ""),
            "monitor": monitor,
            "target": target,
            "reached": "" if target is None else hit is not None,
            "seconds_to_target": hit.seconds if hit else None,
            "steps_to_target": hit.step if hit else None,
            "seconds_precompute": run.precompute if run.seconds else None,
            "seconds_train": run.seconds.get("train"),
            "seconds_evaluate": run.seconds.get("evaluate"),
            "steps": run.steps,
            "nfe": run.last("val/nfe"),
            "parameters": run.metrics.get("parameters"),
            "device": run.manifest.get("device"),
            "folder": str(run.folder),
            "error": run.error,
        }
        row |= {f"last_{name}": run.last(f"val/{name}") for name in QUALITY}
        row |= {f"best_{name}": run.best(f"val/{name}") for name in QUALITY}
        row |= {f"evaluation_{name}": (run.evaluation.get("values") or {}).get(name) for name in extra}
        writer.writerow({key: "" if value is None else value for key, value in row.items()})
    return buffer.getvalue()
