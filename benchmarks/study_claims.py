"""The published claims against what was measured here: ``python -m benchmarks.study_claims [--own DIR] [--published DIR]``

Reads the comparisons ``sweep=claims`` and ``sweep=claims_published`` (``make study-claims`` runs them first; one that is
not there keeps its stored result) and the solver study of ``benchmarks.krylov``, and writes
benchmarks/results/claims.json and the tables of docs/results.md. Verdicts follow from the figures by the rules in
``verdict``. Rows whose kind of images or task ``benchmarks.study_claims_images`` has measured are from its result; without
it the figures of [E] get no verdict, because its metric and task are others. ``claims_second.json`` holds runs of seeds
that were drawn after the verdicts were written: ``--second DIR`` adds a comparison on the photograph, and
``benchmarks.study_claims_images --seeds N --json benchmarks/results/claims_second.json`` the others.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks import krylov
from benchmarks.cells import half_interval
from benchmarks.pages import DOCS, write_table
from benchmarks.study_claims_images import RESULT as IMAGES
from benchmarks.study_claims_images import STAGES
from scoreexp.runs.reporting import find_runs
from scoreexp.runs.reporting.runs import Plan, Run
from scoreexp.system.json_files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "claims.json"
SECOND = RESULT.with_name("claims_second.json")
PAGE = DOCS / "results.md"
COMPARISONS = Path("outputs") / "comparisons"

# METHOD, setting, target SSIM, seconds of DDPM, seconds of the method. [K]: arXiv 2511.17634, [E]: arXiv 2404.06661.
PUBLISHED = [
    ("[K] table 1", "CIFAR-10 32², 1 image", "0.99", 1634.93, 60.27),
    ("[K] table 1", "CelebA 64², 1 image", "0.99", 14131.53, 122.45),
    ("[K] table 1", "CelebA 128², 1 image", "0.90", 11319.86, 186.09),
    ("[E] table 1", "CIFAR-10 32², 1 image", "0.99", 139.63, 26.98),
    ("[E] table 1", "CIFAR-10 32², 1 image", "0.98", 136.91, 16.07),
    ("[E] table 1", "CIFAR-10 32², 1 image", "0.95", 131.09, 9.75),
    ("[E] table 1, DDIM", "CIFAR-10 32², 1 image", "0.99", 182.53, 26.98),
    ("[E] table 1, DDIM", "CIFAR-10 32², 1 image", "0.98", 182.29, 16.07),
    ("[E] table 1, DDIM", "CIFAR-10 32², 1 image", "0.95", 181.57, 9.75),
    ("[E] table 2", "CelebA 64², 1 image", "0.95", 601.27, 105.41),
    ("[E] table 2", "CelebA 64², 1 image", "0.90", 342.61, 71.68),
    ("[E] table 3", "CIFAR-10, 3 images", "0.95", 155.16, 46.80),
    ("[E] table 3", "CIFAR-10, 3 images", "0.90", 149.72, 37.58),
]
STAGE_OF = {  # of study_claims_images, by METHOD and setting
    ("[K] table 1", "CIFAR-10 32², 1 image"): "cifar10",
    ("[K] table 1", "CelebA 64², 1 image"): "faces64",
    ("[K] table 1", "CelebA 128², 1 image"): "photos128",
    ("[E] table 1", "CIFAR-10 32², 1 image"): "generation",
    ("[E] table 1, DDIM", "CIFAR-10 32², 1 image"): "generation",
    ("[E] table 2", "CelebA 64², 1 image"): "generation64",
    ("[E] table 3", "CIFAR-10, 3 images"): "generation3",
}
METRIC = "val/ssim_global"
OTHER_METRIC = (
    "no verdict: another metric and another task (windowed SSIM of the rescaled output, generated from noise)"
)
KRYLOV_CLAIM = (15.8, 43.7)


def time_to(run: Run, target: float, confirm: int) -> tuple[int, float] | None:
    """Step and seconds at which the global SSIM has been at the target ``confirm`` evaluations in a row."""
    if run.untrained:  # evaluated at step 0 only, as often as asked
        return (0, 0.0) if (run.best(METRIC) or 0.0) >= target else None
    streak = 0
    for point in run.curve(METRIC):
        streak = streak + 1 if point.value >= target else 0
        if streak == confirm:
            return point.step, point.seconds
    return None


def measure(runs: list[Run], plan: Plan) -> dict[str, Any]:
    """Per method and seed: steps and seconds to each published target, and the first evaluation at 0.99."""
    rows = []
    for run in runs:
        row: dict[str, Any] = {"method": run.method, "seed": run.seed, "state": run.state}
        if run.state == "done":
            row |= {
                "steps": run.steps,
                "seconds": run.cost,
                "precompute": run.precompute,
                "best_ssim_global": run.best(METRIC),
                "reached": {f"{target:.2f}": time_to(run, target, 2) for target in (0.90, 0.95, 0.98, 0.99)},
                "interval": run.config["trainer"]["val_check_interval"],
                "first_hit": _first_hit(run),
            }
        rows.append(row)
    return {"cap_seconds": plan.seconds, "load": plan.load, "machine": plan.machine, "rows": rows}


def _first_hit(run: Run) -> dict[str, Any] | None:
    """The first single evaluation at 0.99, its windowed SSIM, and the worst global SSIM in the five after it."""
    points = run.curve(METRIC)
    hit = next((i for i, point in enumerate(points) if point.value >= 0.99), None)
    if hit is None:
        return None
    windowed = {point.step: point.value for point in run.curve("val/ssim")}
    later = [point.value for point in points[hit + 1 : hit + 6]]
    return {
        "step": points[hit].step,
        "seconds": points[hit].seconds,
        "ssim_global": points[hit].value,
        "ssim": windowed.get(points[hit].step),
        "worst_after": min(later, default=None),
    }


def contribution(rows: list[dict[str, Any]], with_it: str, without: str, target: str, what: int) -> str:
    """Ratio (without / with the embedding) of steps (0) or seconds (1) over paired seeds, and what it can tell.

    Steps come with their resolution, the interval between evaluations. Equal ratios get no interval: their spread
    is below that resolution, not zero.
    """
    logs, steps, interval = _pairs(rows, with_it, without, target, what)
    if len(logs) < 2:
        return f"not measurable ({len(logs)} pairs of runs reached {target})"
    mean = statistics.mean(logs)
    if len(set(logs)) == 1:
        spread = f"in all {len(logs)} pairs"
    else:
        half = half_interval(logs)
        spread = (
            f"(95 % interval {math.exp(mean - half):.2f} to {math.exp(mean + half):.2f}, {len(logs)} pairs)"
        )
    resolution = (
        f"; resolution: {interval} of about {statistics.median(steps):.0f} steps" if what == 0 else ""
    )
    return f"{math.exp(mean):.2f} {spread}{resolution}"


def effect(rows: list[dict[str, Any]], target: str) -> str:
    """What the embedding does to the steps to a target: ``helps`` or ``harms`` where the whole interval is on that side."""
    logs, *_ = _pairs(rows, "score_embedding", "without_embedding", target, 0)
    if len(logs) < 2:
        return "not measurable"
    mean, half = statistics.mean(logs), half_interval(logs)
    if abs(mean) <= half:
        return "no difference found"
    return "helps" if mean > 0 else "harms"


def _pairs(
    rows: list[dict[str, Any]], with_it: str, without: str, target: str, what: int
) -> tuple[list[float], list[int], int]:
    """Logarithms of the ratios of pairs of one image and seed, their steps, and the longest interval of evaluations."""
    logs, steps, intervals = [], [], [0]
    by_case = {(row["method"], row.get("image", ""), row["seed"]): row for row in rows}
    for case in sorted({(image, seed) for _, image, seed in by_case}):
        pair = [by_case.get((method, *case), {}) for method in (with_it, without)]
        a, b = (row.get("reached", {}).get(target) for row in pair)
        if a and b:
            logs.append(math.log(b[what] / a[what]))
            steps += [a[0], b[0]]
            intervals += [row["interval"] for row in pair]
    return logs, steps, max(intervals)


def median_seconds(result: dict[str, Any], method: str, target: str) -> tuple[float, bool] | None:
    """Median seconds to a target over seeds and whether it was reached; the seconds spent where it was not."""
    rows = [row for row in result["rows"] if row["method"] == method and "reached" in row]
    if not rows:
        return None
    hits = [row["reached"][target] for row in rows]
    times = [hit[1] if hit else math.inf for hit in hits]
    median = statistics.median(times)
    if math.isinf(median):
        return statistics.median(row["seconds"] for row in rows), False
    return median, True


def ratio(result: dict[str, Any], baseline: str, method: str, target: str) -> tuple[float, str] | None:
    """Seconds of the baseline over those of the method, with ``>`` or ``<`` where one did not get there."""
    base, own = median_seconds(result, baseline, target), median_seconds(result, method, target)
    if base is None or own is None or not (base[1] or own[1]):
        return None
    return base[0] / own[0], "" if base[1] and own[1] else (">" if own[1] else "<")


def verdict(measured: tuple[float, str] | None, claimed: float) -> str:
    """Reproduced: at least the claimed ratio was measured; not reproduced: less. A bound decides only on its side."""
    if measured is None:
        return "not testable here: no run of either side reached the target"
    value, bound = measured
    if value >= claimed and bound != "<":
        return "reproduced"
    if value < claimed and bound != ">":
        return "not reproduced"
    return "undecided: the measured bound lies on the other side"


def shown(measured: tuple[float, str] | None) -> str:
    return "–" if measured is None else f"{measured[1]}{' ' if measured[1] else ''}{measured[0]:.2f}"


def stage_cells(name: str, stage: dict[str, Any], source: str, target: str, claimed: float) -> list[str]:
    """The ratios and the verdict of a published figure by the runs of ``study_claims_images``."""
    told, ours = STAGES[name], "score_embedding"
    ran = {row["method"] for row in stage["rows"]}
    alone = shown(ratio(stage, "without_embedding", ours, target))

    def against(baseline: str) -> tuple[str, str]:
        measured = ratio(stage, baseline, ours, target)
        return shown(measured), verdict(measured, claimed) if baseline in ran else "not measured"

    if told.generates:
        cell, judged = against("DDIM" if source.endswith("DDIM") else "DDPM")
        cells = [cell, "–", alone]
        if "DDIM_tuned" in ran:
            trained = ratio(stage, "DDIM_tuned", "score_embedding_tuned", target)
            alone = shown(ratio(stage, "without_embedding_tuned", "score_embedding_tuned", target))
            cells = [cell, shown(trained), alone]
            judged = f"published settings: {judged}; tuned, against a tuned DDIM: {verdict(trained, claimed)}"
    else:
        (published, first), (tuned, second) = against("DDPM_published"), against("DDPM_tuned")
        cells = [published, tuned, alone]
        judged = f"{first} against DDPM published, {second} against DDPM tuned"
    runs = f"{stage['images']} image{'s' * (stage['images'] > 1)}, cap {stage['cap_seconds']:g} s a run"
    return [*cells, f"{judged} ({runs}; {told.differs})"]


def claims_table(own: dict[str, Any], images: dict[str, Any]) -> str:
    """One line per published figure.

    Args:
        own: the comparison on one photograph.
        images: the result of ``study_claims_images``, by stage; may lack any.
    """
    lines = [
        "| source | published setting | target | published ratio | DDPM published / ours | DDPM tuned / ours | "
        "embedding off / on | verdict |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for source, setting, target, ddpm, method in PUBLISHED:
        claimed = ddpm / method
        name = STAGE_OF[source, setting]
        if images.get(name, {}).get("rows"):
            cells = stage_cells(name, images[name], source, target, claimed)
            lines.append(f"| {source} | {setting} | {target} | {claimed:.2f} | {' | '.join(cells)} |")
            continue
        if "32²" in setting:
            published = ratio(own, "DDPM_published", "score_embedding", target)
            tuned = ratio(own, "DDPM_tuned", "score_embedding", target)
            alone = ratio(own, "without_embedding", "score_embedding", target)
            against = OTHER_METRIC
            if source.startswith("[K]"):
                against = (
                    f"{verdict(published, claimed)} against DDPM published, "
                    f"{verdict(tuned, claimed)} against DDPM tuned"
                )
        else:
            published = tuned = alone = None
            against = (
                f"not measured: `python -m benchmarks.study_claims_images --data FOLDER --stages {name}`"
            )
        lines.append(
            f"| {source} | {setting} | {target} | {claimed:.2f} | {shown(published)} | {shown(tuned)} | {shown(alone)} | "
            f"{against} |"
        )
    lines.append(
        f"| [K] | many images, Krylov projection against a direct sparse solve | – | {_krylov_line()}"
    )
    lines.append(
        "| [P] | FFHQ 256, DDPM: FID 4.96; CIFAR-10, DDPM: FID 3.37 | – | – | – | – | – | not testable here: needs the "
        "data sets, the Inception weights and GPU days (`experiment=ffhq256_ncsnpp`, `cifar10_ddpmpp`) |"
    )
    return "\n".join(lines)


def _krylov_line() -> str:
    low, high = KRYLOV_CLAIM
    rows = json.loads(krylov.RESULT.read_text())["rows"]
    saved = [100 * row["reduction"] for row in rows if row["solver"].startswith("projection")]
    plain = {
        (row["side"], row["images"]): row["seconds"] for row in rows if row["solver"] == "bicgstab, shared LU"
    }
    against = [
        row["seconds"] / plain[row["side"], row["images"]]
        for row in rows
        if row["solver"] == "projection, shared LU"
    ]
    word = "reproduced" if min(saved) >= low else "not reproduced"
    return (
        f"{low}-{high} % less | {min(saved):.1f}-{max(saved):.1f} % less | – | – | {word} against the direct solve; "
        f"the same solver without the projection takes {100 / max(against):.0f}-{100 / min(against):.0f} % of its "
        "time ([solvers](solvers.md)) |"
    )


def methods_table(results: list[dict[str, Any]]) -> str:
    """One line per method: time and steps to 0.99, median and range over the seeds."""
    lines = [
        "| method | seeds at 0.99 | steps | seconds (pre-computation in it) | best global SSIM | "
        "first single evaluation at 0.99: step | windowed SSIM there |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        for method in dict.fromkeys(row["method"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["method"] == method and "reached" in row]
            if not rows:
                lines.append(f"| {method} | no finished run | | | | | |")
                continue
            hits = [hit for row in rows if (hit := row["reached"]["0.99"])]
            stops = [stop for row in rows if (stop := row["first_hit"])]
            if hits:
                steps, seconds = (
                    _span([hit[0] for hit in hits], ".0f"),
                    _span([hit[1] for hit in hits], ".1f"),
                )
            else:
                steps = f"not in {_span([row['steps'] for row in rows], '.0f')}"
                seconds = f"not in {_span([row['seconds'] for row in rows], '.0f')}"
            before = statistics.median(row["precompute"] for row in rows)
            lines.append(
                f"| {method} | {len(hits)} of {len(rows)} | {steps} | {seconds} ({before:.1f}) | "
                f"{_span([row['best_ssim_global'] for row in rows], '.3f')} | "
                f"{_span([stop['step'] for stop in stops], '.0f')} | "
                f"{_span([stop['ssim'] for stop in stops if stop['ssim'] is not None], '.3f')} |"
            )
    return "\n".join(lines)


def stages_table(images: dict[str, Any]) -> str:
    """One line per stage of ``study_claims_images`` and method: images at the stage's target, steps and seconds to it."""
    lines = [
        "| stage | method | at the target | steps to it | of so many at most | seconds | best |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, stage in images.items():
        for method in dict.fromkeys(row["method"] for row in stage["rows"]):
            rows = [row for row in stage["rows"] if row["method"] == method]
            hits = [hit for row in rows if (hit := row["reached"][f"{STAGES[name].target:.2f}"])]
            lines.append(
                f"| {name} | {method} | {len(hits)} of {len(rows)} | {_span([hit[0] for hit in hits], '.0f')} | "
                f"{max(row['steps'] for row in rows)} | {_span([hit[1] for hit in hits], '.0f')} | "
                f"{_span([row['best'] for row in rows], '.3f')} |"
            )
    return "\n".join(lines)


def summary(images: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> str:
    """The verdicts of the page in a few lines."""
    claimed = {STAGE_OF[source, setting]: ddpm / own for source, setting, _, ddpm, own in reversed(PUBLISHED)}
    names = [name for name in images if not STAGES[name].generates]
    tuned, alone, effects = [], [], []
    for name in names:
        stage, told = images[name], STAGES[name]
        target = f"{told.target:.2f}"
        measured = ratio(stage, "DDPM_tuned", "score_embedding", target)
        tuned.append(f"{shown(measured)} at {told.size}² ({claimed[name]:.0f} published)")
        steps = contribution(stage["rows"], "score_embedding", "without_embedding", target, 0)
        alone.append(f"{steps.partition(';')[0]} at {told.size}²")
        effects.append(effect(stage["rows"], target))
    verdicts = "; ".join(
        f"{word} in {effects.count(word)} of {len(effects)} settings" for word in dict.fromkeys(effects)
    )
    own_task = images["generation"]["rows"]
    goal = f"{STAGES['generation'].target:.2f}"
    ahead = shown(ratio(images["generation"], "DDIM_tuned", "score_embedding_tuned", goal))
    without = contribution(own_task, "score_embedding_tuned", "without_embedding_tuned", goal, 0).partition(
        ";"
    )[0]
    at_once = sum(bool(row["reached"][goal]) for row in own_task if not row["method"].endswith("tuned"))
    published_saving, saving, *_, krylov_verdict = _krylov_line().removesuffix(" |").split(" | ")
    lines = [
        f"**Faster than DDPM?** Than one with the same network and optimiser: {', '.join(tuned)} times as fast to the "
        "target SSIM, one image at a time.",
        f"**Does the embedding itself help?** Steps without it over steps with it: {', '.join(alone)}: {verdicts}.",
        f"**In the task of [E]**, generation from noise: {at_once} runs with the published settings reach an SSIM of {goal} "
        f"within ten minutes of one core; trained for it, ours is {ahead} times as fast as DDIM "
        f"({claimed['generation']:.2f} published), and steps without the embedding over steps with it are {without}.",
        f"**Less time for the equations of many images?** {saving} ({published_saving} published): {krylov_verdict}.",
        "**Other seeds:** " + ("not run yet." if not second else _stand(first, second)),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _stand(first: dict[str, Any], second: dict[str, Any]) -> str:
    rows = second_table(first, second).splitlines()[2:]
    kept = sum(line.endswith(": stands |") for line in rows)
    return (
        f"{kept} of {len(rows)} verdicts stand with a second set of seeds ([below](#a-second-set-of-seeds))."
    )


def second_table(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Whether seeds drawn after the verdicts were written overturn one; ``photograph`` is the comparison on one."""
    lines = ["| on | figure | first seeds | second seeds | verdict |", "| --- | --- | --- | --- | --- |"]

    def line(name: str, what: str, shown_: list[str], verdicts: list[str]) -> None:
        word = (
            f"{verdicts[0]}: stands" if len(set(verdicts)) == 1 else f"**{verdicts[0]}; then {verdicts[1]}**"
        )
        lines.append(f"| {name} | {what} | {' | '.join(shown_)} | {word} |")

    claimed = {STAGE_OF[source, setting]: ddpm / own for source, setting, _, ddpm, own in reversed(PUBLISHED)}
    for name, again in second.items():
        both = [first[name], again]
        target = f"{STAGES[name].target:.2f}" if name in STAGES else "0.99"
        ratios = [ratio(stage, "DDPM_tuned", "score_embedding", target) for stage in both]
        published = claimed[name if name in STAGES else "cifar10"]
        what = f"seconds, DDPM tuned / ours, to {target}; published {published:.2f}"
        line(name, what, [shown(one) for one in ratios], [verdict(one, published) for one in ratios])
        names = "score_embedding", "without_embedding"
        texts = [contribution(stage["rows"], *names, target, 0).partition(";")[0] for stage in both]
        line(
            name,
            f"steps, embedding off / on, to {target}",
            texts,
            [effect(stage["rows"], target) for stage in both],
        )
    return "\n".join(lines)


def _span(values: list[float], form: str) -> str:
    """Median and range."""
    if not values:
        return "–"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}}" if low == high else f"{middle:{form}} ({low:{form}}–{high:{form}})"


def conclusion(own: dict[str, Any], published: dict[str, Any], images: dict[str, Any]) -> str:
    """What the embedding itself contributes, and how the runs were capped."""
    target = "0.99"
    pairs = [
        ("project's network", own, "score_embedding", "without_embedding"),
        ("published network", published, "published_with_embedding", "published_without_embedding"),
    ]
    lines = [
        "| embedding off / on, to global SSIM 0.99 unless said | steps | seconds |",
        "| --- | --- | --- |",
    ]
    for name, result, with_it, without in pairs:
        steps, seconds = (contribution(result["rows"], with_it, without, target, what) for what in (0, 1))
        lines.append(f"| {name} (cap {result['cap_seconds']:g} s a run) | {steps} | {seconds} |")
    for name, stage in images.items():
        told = STAGES[name]
        if not told.generates:
            steps, seconds = (
                contribution(
                    stage["rows"], "score_embedding", "without_embedding", f"{told.target:.2f}", what
                )
                for what in (0, 1)
            )
            words = (
                f"{stage['images']} images of {told.size}², each alone, to {told.target:.2f} (cap "
                f"{stage['cap_seconds']:g} s a run)"
            )
            lines.append(f"| {words} | {steps} | {seconds} |")
    lines.append("")
    lines.append(
        f"A ratio above 1 is in favour of the embedding. Machine: {own['machine']}; load average per core before the "
        f"runs {own['load']:.2f} and {published['load']:.2f}."
    )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", type=Path, default=COMPARISONS / "claims")
    parser.add_argument("--published", type=Path, default=COMPARISONS / "claims_published")
    parser.add_argument(
        "--stored", action="store_true", help="write the tables again from the stored results"
    )
    parser.add_argument(
        "--second", type=Path, help="a comparison sweep=claims of other seeds, to keep beside the first"
    )
    arguments = parser.parse_args()
    stored, results = read_json(RESULT), []
    for name, folder in (("own", arguments.own), ("published", arguments.published)):
        if folder.is_dir() and not arguments.stored:
            runs, plan = find_runs([folder])
            if plan is None:
                parser.error(f"{folder} holds no comparison")
            results.append(measure(runs, plan))
        elif name in stored:
            results.append(stored[name])
        else:
            parser.error(f"{folder} does not exist: run python -m scoreexp.compare sweep={folder.name} first")
    own, published = results
    RESULT.write_text(json.dumps({"own": own, "published": published}, indent=2) + "\n")
    if arguments.second is not None:
        runs, plan = find_runs([arguments.second])
        if plan is None:
            parser.error(f"{arguments.second} holds no comparison")
        write_json(SECOND, {"photograph": measure(runs, plan)} | read_json(SECOND))
    measured = read_json(IMAGES)
    images = {name: measured[name] for name in STAGES if name in measured}
    write_table(PAGE, "claims", claims_table(own, images))
    write_table(PAGE, "methods", methods_table(results))
    write_table(PAGE, "stages", stages_table(images))
    write_table(PAGE, "contribution", conclusion(own, published, images))
    first, second = {"photograph": own, **images}, read_json(SECOND)
    write_table(PAGE, "second", second_table(first, second))
    write_table(PAGE, "summary", summary(images, first, second))
    print(f"wrote {RESULT} and the tables of {PAGE}")


if __name__ == "__main__":
    main()
