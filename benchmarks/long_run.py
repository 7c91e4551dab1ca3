"""Memory over a long run and what callbacks and logging cost: ``python -m benchmarks.long_run [--json [PATH]] [--doc]``

*Memory.* 2000 steps of a small network with every default callback, the table of metrics, evaluations and picture
strips at the default intervals, in a process of its own. Every 20 steps it records the resident memory, the open files
and the objects that Python's collector tracks. The growth after the first 400 steps (two evaluations) is the slope of a
line through the means of 200-step blocks, each of which holds one evaluation, with its 95 % interval.

*Overhead.* Training of ``photo32_ddpm`` with every default callback, and after each of its steps the same step as a bare
loop on a copy of the same model: data, noise, loss, backward, Adam, and average of the weights. Step by step, because
the load of a shared machine changes within seconds. The bare loop drops the gradients when Lightning does, after the
forward pass, so that the memory of both is used in the same order. The overhead is the mean ratio of the pairs, less
one, without the outer fifths on either side; steps that log, one in ten, are averaged apart from the others. The 95 %
interval is that of the bootstrap. Evaluations and checkpoints are left out; a checkpoint, and the average, are timed
apart.

``--doc`` draws the figure and the table of docs/scaling.md from a stored result.
"""

import argparse
import copy
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import scipy
import torch

from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, FIGURES, STYLE, shrink, write_table

RESULT = Path(__file__).parent / "results" / "long_run.json"
FIGURE, PAGE = FIGURES / "long_run.png", DOCS / "scaling.md"
EVERY, BLOCK, WARM_UP = 20, 200, 400
LOG_EVERY = 10  # trainer.log_every_n_steps
SMALL = [
    "experiment=photo32_ddpm",
    "data.size=16",
    "data.batch_size=4",
    "network.channels=16",
    "network.multipliers=[1,2]",
    "network.blocks=1",
    "network.attention_resolutions=[]",
    "sampler.grid.steps=10",
    "trainer.val_check_interval=200",
]
SAVES_PER_STEP = 2 / 200 + 1 / 500  # last.ckpt and best.ckpt after an evaluation, last.ckpt in between


def resident_mib() -> float:
    """Memory of this process that is in use now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    """Open files, pipes and sockets of this process (Linux)."""
    return len(os.listdir("/proc/self/fd"))


class Samples(pl.Callback):
    """Record what a run holds every ``EVERY`` steps into the file ``path``."""

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % EVERY == 0:
            objects = len(gc.get_objects())
            row = {"step": step, "mib": resident_mib(), "open_files": open_files(), "objects": objects}
            self.rows.append(row)
            if step % BLOCK == 0:
                print(
                    f"step {step:5}: {row['mib']:.1f} MiB, {row['open_files']} files, {objects} objects",
                    flush=True,
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.path.write_text(json.dumps(self.rows))


class Alternate(pl.Callback):
    """Time each step of the run, and after it the same step as a bare loop on a copy of its model, into the file ``path``.

    It must be the last of the callbacks.
    """

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)
        self.pairs: list[dict[str, dict[str, float]]] = []
        self._run: Stopwatch | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.denoiser, self.averaged = copy.deepcopy(pl_module.denoiser), copy.deepcopy(pl_module.averaged)
        self.optimizer = pl_module.make_optimizer(self.denoiser.parameters())
        self.batches = enumerate(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        self.denoiser.train()

    def _bare_step(self, module: Any) -> None:
        k, batch = next(self.batches)
        t, noise = module._draws(k, batch.x)
        loss = module.objective(self.denoiser, batch, t, noise).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        module.ema.update(self.averaged, self.denoiser, k + 1)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._run is not None:
            run, bare = self._run.read(), Stopwatch()
            self._bare_step(pl_module)
            self.pairs.append({"run": run, "bare": bare.read()})
        if batch_idx % 100 == 0:
            print(f"step {batch_idx}", flush=True)
        self._run = Stopwatch()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def save() -> None:
            trainer.save_checkpoint(self.path.with_name("timed.ckpt"))

        def average() -> None:
            pl_module.ema.update(self.averaged, self.denoiser, 1)

        apart = {"save_seconds": median_seconds(save, 5), "average_seconds": median_seconds(average, 20)}
        self.path.write_text(json.dumps({"pairs": self.pairs, **apart}))


class Stopwatch:
    """Seconds since it was made, by the clock and of this process's threads."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


def median_seconds(action: Callable[[], None], times: int) -> float:
    """Seconds that ``action`` takes, by the clock."""
    taken = []
    for _ in range(times):
        watch = Stopwatch()
        action()
        taken.append(watch.read()["wall"])
    return statistics.median(taken)


def trained(overrides: list[str], observer: type[pl.Callback], threads: int) -> Any:
    """What ``observer`` recorded of a run with every default callback."""
    from hydra import compose, initialize_config_dir

    from scoreexp.app.commands.train import train
    from scoreexp.app.conf_dir import conf_dir

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record.json")
        own = [
            "trainer.accelerator=cpu",
            f"run_dir={folder}/run",
            f"+callbacks.observer._target_=benchmarks.long_run.{observer.__name__}",
            f"+callbacks.observer.path={record}",
        ]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", [*overrides, *own])
        train(cfg)
        return json.loads(record.read_text())


def trained_apart(*args: Any) -> Any:
    """``trained`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(trained, *args).result()


def growth(steps: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Slope per 1000 steps through the means of blocks after the warm-up, and half of its 95 % interval."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for step, value in zip(steps, values):
        if step > WARM_UP:
            blocks.setdefault(int((step - 1) // BLOCK), []).append((step, value))
    x, y = np.array([np.mean(block, axis=0) for block in blocks.values()]).T
    line = scipy.stats.linregress(x / 1000, y)
    return {
        "per_1000_steps": float(line.slope),
        "plus_minus": float(scipy.stats.t.ppf(0.975, len(x) - 2) * np.nan_to_num(line.stderr)),
    }


def memory(steps: int, threads: int, overrides: list[str]) -> dict[str, Any]:
    """The samples of a long run and how fast they grow."""
    rows = trained_apart([*SMALL, f"trainer.max_steps={steps}", *overrides], Samples, threads)
    columns = {name: [row[name] for row in rows] for name in ("step", "mib", "open_files", "objects")}
    quantities = ("mib", "open_files", "objects")
    slopes = {name: growth(columns["step"], columns[name]) for name in quantities}
    return {"overrides": overrides, "steps": steps, "growth": slopes, "samples": columns}


def mean_over_steps(rows: np.ndarray) -> float:
    """The mean of ``rows[n, 10]``, whose last column is of steps that log, without the outer fifths of either kind."""
    means = [scipy.stats.trim_mean(values, 0.2) for values in (rows[:, :-1].ravel(), rows[:, -1])]
    return float(np.average(means, weights=[LOG_EVERY - 1, 1]))


def mean_and_interval(values: np.ndarray) -> dict[str, float]:
    """The mean of values of successive steps, and its 95 % interval by the bootstrap within either kind of step."""
    rows, rng = values.reshape(-1, LOG_EVERY), np.random.default_rng(0)
    plain, logged = rows[:, :-1], rows[:, -1:]
    draws = ([rng.choice(kind.ravel(), kind.shape) for kind in (plain, logged)] for _ in range(2000))
    low, high = np.quantile([mean_over_steps(np.hstack(drawn)) for drawn in draws], (0.025, 0.975))
    return {"mean": mean_over_steps(rows), "low": float(low), "high": float(high)}


def overhead(pairs: int, threads: int, overrides: list[str]) -> dict[str, Any]:
    """How much longer a step takes than in the bare loop; ``pairs`` is a multiple of ten."""
    steps = pairs + LOG_EVERY  # the first ones warm up
    never = [f"trainer.val_check_interval={10 * steps}", f"callbacks.checkpoints.every_n_steps={10 * steps}"]
    record = trained_apart([*overrides, f"trainer.max_steps={steps + 1}", *never], Alternate, threads)
    result: dict[str, Any] = {"overrides": overrides, "pairs": pairs}
    for clock in ("wall", "cpu"):
        seconds = np.array([[pair[kind][clock] for kind in ("run", "bare")] for pair in record["pairs"]])
        run, bare = seconds[LOG_EVERY:].T
        result[clock] = {
            "run_ms_per_step": 1e3 * float(np.median(run)),
            "bare_ms_per_step": 1e3 * float(np.median(bare)),
            "fixed_ms": mean_and_interval(1e3 * (run - bare)),
            "overhead": mean_and_interval(run / bare - 1),
        }
    bare_step = result["wall"]["bare_ms_per_step"]
    result["save_ms"], result["average_ms"] = 1e3 * record["save_seconds"], 1e3 * record["average_seconds"]
    result["save_share"] = result["save_ms"] * SAVES_PER_STEP / bare_step
    result["average_share"] = result["average_ms"] / bare_step
    return result


def percent(ratio: dict[str, float]) -> str:
    return f"{100 * ratio['mean']:.1f} % ({100 * ratio['low']:.1f} to {100 * ratio['high']:.1f})"


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = []
    if "memory" in result:
        run = result["memory"]
        lines += [
            f"| {run['steps']:,} steps | first | at {WARM_UP} | last | growth per 1000 steps |",
            "| --- |" + " ---: |" * 4,
        ]
        for name, label, digits in (
            ("mib", "resident memory, MiB", 1),
            ("open_files", "open files", 0),
            ("objects", "Python objects", 0),
        ):
            values, slope = run["samples"][name], run["growth"][name]
            warm = values[min(WARM_UP // EVERY, len(values)) - 1]
            shown = (f"{v:,.{digits}f}" for v in (values[0], warm, values[-1]))
            lines.append(
                f"| {label} | "
                + " | ".join(shown)
                + f" | {slope['per_1000_steps']:.2f} ± {slope['plus_minus']:.2f} |"
            )
        lines.append("")
    if "overhead" in result:
        run = result["overhead"]
        wall, cpu = run["wall"], run["cpu"]
        lines += [
            f"| step of `photo32_ddpm`, {run['pairs']} pairs | wall clock | CPU time |",
            "| --- | ---: | ---: |",
            f"| bare loop, ms | {wall['bare_ms_per_step']:.1f} | {cpu['bare_ms_per_step']:.1f} |",
            f"| run with every default callback, ms | {wall['run_ms_per_step']:.1f} | {cpu['run_ms_per_step']:.1f} |",
            f"| overhead | {percent(wall['overhead'])} | {percent(cpu['overhead'])} |",
            f"| checkpoints at the default intervals, {run['save_ms']:.0f} ms each | {100 * run['save_share']:.1f} % | |",
            f"| average of the weights, part of both, {run['average_ms']:.2f} ms | {100 * run['average_share']:.1f} % | |",
        ]
        fixed = result["overhead_small"]
        costs = (fixed[clock]["fixed_ms"]["mean"] for clock in ("wall", "cpu"))
        shares = (
            f"{ms:.2f} ms, {100 * ms / base:.1f} % of the bare step"
            for ms, base in zip(costs, (wall["bare_ms_per_step"], cpu["bare_ms_per_step"]))
        )
        lines += [f"| the same difference on the small network | {' | '.join(shares)} |", ""]
    lines.append(machine_line(result["machine"]))
    return "\n".join(lines)


def machine_line(machine: dict[str, Any]) -> str:
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s), torch {machine['torch']}, load "
        f"average {machine['load_average_before']:.1f} before and {machine['load_average_after']:.1f} after."
    )


def draw(run: dict[str, Any]) -> None:
    """Memory, objects and open files over the steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(STYLE)
    samples, slope = run["samples"], run["growth"]["mib"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    left.plot(samples["step"], samples["mib"], lw=1)
    left.axvspan(0, WARM_UP, color="0.93", zorder=0, label="warm-up")
    left.set(
        xlabel="step",
        ylabel="resident memory, MiB",
        ylim=(0, 1.15 * max(samples["mib"])),
        title=f"{slope['per_1000_steps']:.2f} ± {slope['plus_minus']:.2f} MiB per 1000 steps",
    )
    left.legend(fontsize="small", loc="lower right")
    middle.plot(samples["step"], np.array(samples["objects"]) / 1000, lw=1)
    middle.set(
        xlabel="step", ylabel="Python objects, thousands", ylim=(0, 1.15 * max(samples["objects"]) / 1000)
    )
    right.plot(samples["step"], samples["open_files"], lw=1)
    right.set(xlabel="step", ylabel="open files", ylim=(0, 1.15 * max(samples["open_files"])))
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)
    plt.close(figure)
    shrink(FIGURE)


def write_doc(result: dict[str, Any]) -> None:
    if "memory" in result:
        draw(result["memory"])
    write_table(PAGE, "benchmarks.long_run", table(result))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=("memory", "overhead"), help="measure one part, keep the other's result"
    )
    parser.add_argument("--steps", type=int, default=2000, help="of the long run (default 2000)")
    parser.add_argument(
        "--pairs", type=int, default=600, help="of steps for the overhead, a multiple of 10 (default 600)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--override", action="append", default=[], help="of the configuration, e.g. logger=wandb"
    )
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument(
        "--doc", action="store_true", help="figure and table of the stored result; measure nothing"
    )
    options = parser.parse_args()
    if options.doc:
        write_doc(json.loads((options.json or RESULT).read_text()))
        return
    stored = options.json is not None and options.json.exists() and options.only
    result: dict[str, Any] = json.loads(options.json.read_text()) if stored else {}
    load = os.getloadavg()[0]
    if options.only != "overhead":
        result["memory"] = memory(options.steps, options.threads, options.override)
    if options.only != "memory":
        photo = ["experiment=photo32_ddpm", *options.override]
        result["overhead"] = overhead(options.pairs, options.threads, photo)
        small = [*SMALL, *options.override]
        result["overhead_small"] = overhead(2 * options.pairs, options.threads, small)
    result["machine"] = {
        **describe_machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "load_average_before": load,
        "load_average_after": os.getloadavg()[0],
    }
    print(table(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
