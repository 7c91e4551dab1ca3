"""How close the learned score of the Swiss Roll comes to the exact one: three SDEs, plain loss against stable targets.

``python -m benchmarks.study_swiss_roll [--seeds 0 1 2] [--steps N] [--json [PATH]]``

Each row is ``experiment=swiss_roll_{ve,vp,subvp} seed=S objective={edm,stable_target}`` on one thread: the same network,
optimiser, steps, noise levels and data, in turn. CPU seconds are those of the run, evaluation and pictures included; on a
machine that other jobs share, wall-clock seconds say little. The rows "exact score" draw samples with the exact
score and the same sampler: what remains there is the sampler's error and the scatter of finite sets. ``--json`` also writes
the table of docs/objectives.md.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from benchmarks.pages import DOCS, write_table
from scoreexp.app.commands.train import train
from scoreexp.app.conf_dir import conf_dir
from scoreexp.denoisers.denoiser import OracleDenoiser
from scoreexp.system.machine import processor

RESULT = Path(__file__).parent / "results" / "swiss_roll.json"
PAGE = DOCS / "objectives.md"
SDES = ("ve", "vp", "subvp")
OBJECTIVES = {"edm": "plain", "stable_target": "stable targets"}


def config(sde: str, *overrides: str) -> Any:
    """The composed configuration of an experiment."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", [f"experiment=swiss_roll_{sde}", *overrides])


def run(sde: str, objective: str, seed: int, steps: int | None) -> dict[str, Any]:
    """Train once and report the last evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"objective={objective}", f"seed={seed}", f"run_dir={folder}/run"]
        if steps is not None:
            overrides += [f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]
        cpu, wall = time.process_time(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = train(config(sde, *overrides))
        step = json.loads((Path(folder) / "run" / "metrics.json").read_text())["step"]
        return {
            "sde": sde,
            "objective": objective,
            "seed": seed,
            "steps": step,
            "cpu_seconds": time.process_time() - cpu,
            "wall_seconds": time.perf_counter() - wall,
            "load_average": os.getloadavg()[0],
            **{k.removeprefix("val/"): v for k, v in result.metrics.items() if k.startswith("val/")},
        }


def exact(sde: str) -> dict[str, Any]:
    """Samples of the exact score by the same sampler."""
    cfg = config(sde)
    data, schedule = instantiate(cfg.data), instantiate(cfg.schedule)
    monitor = instantiate(cfg.callbacks.monitor, sampler=instantiate(cfg.sampler), folder=".", seed=0)
    values, _ = monitor.measure(OracleDenoiser(data.oracle(), schedule), data)
    return {"sde": sde, **values}


def measure(seeds: list[int], steps: int | None) -> dict[str, Any]:
    """All runs, the two objectives in turn."""
    rows = []
    for seed in seeds:
        for sde in SDES:
            for objective in OBJECTIVES:
                rows.append(run(sde, objective, seed, steps))
                row = rows[-1]
                print(
                    f"{sde:6} {OBJECTIVES[objective]:15} seed {seed}: score error {row['score_error']:.5f}, "
                    f"sliced Wasserstein {row['sliced_wasserstein']:.4f}, {row['cpu_seconds']:.0f} CPU s",
                    flush=True,
                )
    return {
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "rows": rows,
        "exact": [exact(sde) for sde in SDES],
    }


def _spread(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, mean and standard deviation over the seeds."""
    rows, machine = result["rows"], result["machine"]
    levels = [name.removeprefix("score_error_") for name in rows[0] if name.startswith("score_error_")]
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; {rows[0]['steps']} steps on {machine['threads']} thread of {machine['cpu']}. "
        "Error of the score: E|s - s_exact|² / E|s_exact|² under p_t, in 1/1000, by noise level sigma/alpha.",
        "",
        f"| SDE | targets | {' | '.join(levels)} | **mean** | sliced Wasserstein | CPU s |",
        "| --- " * (len(levels) + 5) + "|",
    ]
    for sde in SDES:
        for objective, targets in OBJECTIVES.items():
            chosen = [row for row in rows if (row["sde"], row["objective"]) == (sde, objective)]
            errors = [
                statistics.mean(1e3 * row[f"score_error_{level}"] for row in chosen) for level in levels
            ]
            mean = _spread([1e3 * row["score_error"] for row in chosen], 2)
            distance = _spread([row["sliced_wasserstein"] for row in chosen], 4)
            seconds = statistics.mean(row["cpu_seconds"] for row in chosen)
            shown = " | ".join(f"{error:.2g}" for error in errors)
            lines.append(f"| {sde} | {targets} | {shown} | **{mean}** | {distance} | {seconds:.0f} |")
        perfect = next(row for row in result["exact"] if row["sde"] == sde)
        empty = " | ".join("0" for _ in levels)
        lines.append(
            f"| {sde} | exact score | {empty} | **0** | {perfect['sliced_wasserstein']:.4f} (seed 0) | |"
        )
    wins = [
        next(r for r in rows if (r["sde"], r["seed"], r["objective"]) == (sde, seed, "stable_target"))[
            "score_error"
        ]
        <= next(r for r in rows if (r["sde"], r["seed"], r["objective"]) == (sde, seed, "edm"))["score_error"]
        for sde in SDES
        for seed in seeds
    ]
    floor = statistics.mean(row["sliced_wasserstein_floor"] for row in rows)
    lines += [
        "",
        f"Stable targets have the smaller error of the score in {sum(wins)} of {len(wins)} pairs. "
        f"Two sets of exact samples of the same size are {floor:.4f} apart (mean over the runs).",
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="training steps (default: those of the experiments)")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.seeds, arguments.steps)
    print(table(result))
    if arguments.json:
        write_table(PAGE, "study_swiss_roll", table(result))
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
