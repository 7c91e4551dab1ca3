"""The solver study of docs/solvers.md from a benchmark's result: ``python -m benchmarks.study_solvers [--json PATH]``

Reads what ``python -m benchmarks.krylov --json`` wrote, draws docs/figures/solvers_time.png and
docs/figures/solvers_projection.png, and rewrites the table of the study in docs/solvers.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.krylov import RESULT
from benchmarks.pages import DOCS, FIGURES, STYLE, shrink, write_table

PAGE = DOCS / "solvers.md"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per solver, a column per case with ms per image and step and the reduction against direct."""
    cases = sorted({(row["side"], row["images"], row["steps"]) for row in rows})
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    cells = {(row["solver"], row["side"], row["images"]): row for row in rows}
    lines = ["| solver | " + " | ".join(f"{side}², {images} images" for side, images, _ in cases) + " |"]
    lines.append("| --- |" + " ---: |" * len(cases))
    for solver in solvers:
        entries = []
        for side, images, _ in cases:
            row = cells[solver, side, images]
            reduction = "" if solver == "direct" else f" ({100 * row['reduction']:.1f} %)"
            entries.append(f"{1e3 * row['seconds']:.3g}{reduction}")
        lines.append(f"| {solver} | " + " | ".join(entries) + " |")
    lines.append("| steps timed | " + " | ".join(str(steps) for *_, steps in cases) + " |")
    return "\n".join(lines)


def draw_time(rows: list[dict[str, Any]]) -> None:
    """Milliseconds per image and step over the side of the grid, for the middle number of images."""
    counts = sorted({row["images"] for row in rows})
    images = counts[len(counts) // 2]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for solver in dict.fromkeys(row["solver"] for row in rows):
        points = sorted(
            (row["side"], 1e3 * row["seconds"])
            for row in rows
            if row["solver"] == solver and row["images"] == images
        )
        axes.loglog(*zip(*points), marker="o", label=solver)
    sides = sorted({row["side"] for row in rows})
    axes.set_xticks(sides, [f"{side}²" for side in sides])
    axes.minorticks_off()
    axes.set(xlabel="grid", ylabel="CPU ms per image and step", title=f"{images} images at once")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(FIGURES / "solvers_time.png", dpi=120)
    plt.close(figure)
    shrink(FIGURES / "solvers_time.png")


def draw_projection(rows: list[dict[str, Any]]) -> None:
    """BiCGSTAB iterations along time from the plain warm start and from the projection, and the residual's factor."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for kind, colour in (("jacobi", "C0"), ("lu", "C1")):
        chosen = [row for row in rows if row["preconditioner"] == kind]
        times = [row["time"] for row in chosen]
        middle = len(chosen[0]["projected"]) // 2
        projected = [row["projected"][middle] for row in chosen]
        name = "no preconditioner" if kind == "jacobi" else "shared LU"
        size = projected[0]["basis_size"]
        left.semilogx(
            times, [row["warm_iterations"] for row in chosen], colour, marker="o", label=f"warm start, {name}"
        )
        left.semilogx(
            times,
            [each["iterations"] for each in projected],
            colour,
            ls="--",
            marker="x",
            label=f"projected, {name}",
        )
        right.semilogx(
            times,
            [each["residual_factor"] for each in projected],
            colour,
            marker="x",
            label=f"|r| left, {name}",
        )
    right.semilogx(
        times, [row["residual_cosine"] for row in chosen], "C2", marker="s", label="|cos(r, seed's r)|"
    )
    left.set(
        xlabel="time t",
        ylabel="BiCGSTAB iterations per system",
        title=f"basis of {size} vectors",
        ylim=(0, None),
    )
    right.set(
        xlabel="time t", ylabel="ratio", title="what the projection leaves of r, and its cosine", ylim=(0, 1)
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(FIGURES / "solvers_projection.png", dpi=120)
    plt.close(figure)
    shrink(FIGURES / "solvers_projection.png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--json", type=Path, default=RESULT, help=f"the benchmark's result (default {RESULT})"
    )
    arguments = parser.parse_args()
    if not arguments.json.exists():
        parser.error(f"{arguments.json} does not exist: run python -m benchmarks.krylov --json first")
    result = json.loads(arguments.json.read_text())
    FIGURES.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    draw_time(result["rows"])
    draw_projection(result["projection"])
    write_table(PAGE, "benchmarks.krylov", table(result["rows"]))
    print(f"wrote {PAGE} and the figures in {FIGURES}")


if __name__ == "__main__":
    main()
