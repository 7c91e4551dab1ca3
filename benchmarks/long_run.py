"""Memory over a long run and what callbacks and logging cost: ``python -m benchmarks.long_run [--json [PATH]] [--doc]``

*Memory.* 2000 steps of a small network with every default callback, the table of metrics, evaluations and picture
strips at the default intervals, in a process of its own. Every 20 steps it records the resident memory, the open files
and the objects that Python's collector tracks. The growth after the first 400 steps (two evaluations) is the slope of a
line through the means of 200-step blocks, each of which holds one evaluation, with its 95 % interval.

*Overhead.* Training of ``photo32_ddpm`` with every default callback in blocks of ten steps (one logged step each), and
between them the same ten steps as a bare loop on a copy of the same model: data, noise, loss, backward, Adam, and
average of the weights. The overhead is the median of the ratios of neighbouring blocks, less one, with the 95 %
interval of the bootstrap; the means that a machine shared with other jobs makes useless are not given. A block
without the average follows each, which is its cost. Evaluations are left out; checkpoints, which fall between blocks,
are timed apart and shared out at the default intervals.

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
from collections.abc import Sequence
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
SEGMENT = 10  # log_every_n_steps
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
    """Time blocks of the run, and between them blocks of a bare loop over a copy of its model, into the file ``path``.

    It must be the last of the callbacks.
    """

    def __init__(self, *, path: str) -> None:
        self.path = Path(path)
        self.blocks: list[dict[str, Any]] = []
        self._since: tuple[float, float] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.denoiser, self.averaged = copy.deepcopy(pl_module.denoiser), copy.deepcopy(pl_module.averaged)
        self.optimizer = pl_module.make_optimizer(self.denoiser.parameters())
        self.batches = enumerate(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        self.denoiser.train()

    def _bare_block(self, module: Any, averaging: bool) -> None:
        for k, batch in (next(self.batches) for _ in range(SEGMENT)):
            t, noise = module._draws(k, batch.x)
            self.optimizer.zero_grad()
            module.objective(self.denoiser, batch, t, noise).mean().backward()
            self.optimizer.step()
            if averaging:
                module.ema.update(self.averaged, self.denoiser, k + 1)

    def _book(self, kind: str) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        if self._since is not None:
            self.blocks.append({"kind": kind, "wall": wall - self._since[0], "cpu": cpu - self._since[1]})
        self._since = time.perf_counter(), time.process_time()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % SEGMENT:
            return
        self._book("run")  # nothing after an evaluation
        self._since = time.perf_counter(), time.process_time()
        for kind in ("bare", "bare without average"):
            self._bare_block(pl_module, averaging=kind == "bare")
            self._book(kind)
        if len(self.blocks) % 15 < 3:
            print(
                f"step {batch_idx}: " + ", ".join(f"{b['kind']} {b['wall']:.2f} s" for b in self.blocks[-3:]),
                flush=True,
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        saves = []
        for _ in range(5):
            start = time.perf_counter()
            trainer.save_checkpoint(self.path.with_name("timed.ckpt"))
            saves.append(time.perf_counter() - start)
        self.path.write_text(json.dumps({"blocks": self.blocks, "save_seconds": statistics.median(saves)}))


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


def median_and_interval(values: np.ndarray) -> dict[str, float]:
    """The median and its 95 % interval by the bootstrap."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def overhead(blocks: int, threads: int, overrides: list[str]) -> dict[str, Any]:
    """How much longer a step takes than in the bare loop."""
    steps = (blocks + 2) * SEGMENT
    record = trained_apart([*overrides, f"trainer.max_steps={steps}"], Alternate, threads)
    booked = record["blocks"]
    triples = [booked[i : i + 3] for i in range(2, len(booked) - 2)]  # the first ones warm up
    triples = [t for t in triples if [b["kind"] for b in t] == ["run", "bare", "bare without average"]]
    result: dict[str, Any] = {"overrides": overrides, "blocks": len(triples), "steps_per_block": SEGMENT}
    for clock in ("wall", "cpu"):
        run, bare, plain = ([t[k][clock] for t in triples] for k in range(3))
        result[clock] = {
            "run_ms_per_step": 1e3 * statistics.median(run) / SEGMENT,
            "bare_ms_per_step": 1e3 * statistics.median(bare) / SEGMENT,
            "fixed_ms": median_and_interval(1e3 * (np.array(run) - np.array(bare)) / SEGMENT),
            "overhead": median_and_interval(np.array(run) / np.array(bare) - 1),
            "average": median_and_interval(np.array(bare) / np.array(plain) - 1),
        }
    saving = record["save_seconds"] * SAVES_PER_STEP
    result["save_ms"] = 1e3 * record["save_seconds"]
    result["save_share"] = saving / (result["wall"]["bare_ms_per_step"] / 1e3)
    return result


def percent(ratio: dict[str, float]) -> str:
    return f"{100 * ratio['median']:.1f} % ({100 * ratio['low']:.1f} to {100 * ratio['high']:.1f})"


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
            f"| step of `photo32_ddpm`, {run['blocks']} pairs of {run['steps_per_block']} steps | wall clock | CPU time |",
            "| --- | ---: | ---: |",
            f"| bare loop, ms | {wall['bare_ms_per_step']:.1f} | {cpu['bare_ms_per_step']:.1f} |",
            f"| run with every default callback, ms | {wall['run_ms_per_step']:.1f} | {cpu['run_ms_per_step']:.1f} |",
            f"| overhead | {percent(wall['overhead'])} | {percent(cpu['overhead'])} |",
            f"| checkpoints at the default intervals, {run['save_ms']:.0f} ms each | {100 * run['save_share']:.1f} % | |",
            f"| average of the weights, inside the bare loop | {percent(wall['average'])} | {percent(cpu['average'])} |",
        ]
        fixed = result["overhead_small"]
        costs = (fixed[clock]["fixed_ms"]["median"] for clock in ("wall", "cpu"))
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
        "--blocks", type=int, default=24, help="pairs of blocks for the overhead (default 24)"
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
        photo = ["experiment=photo32_ddpm", "trainer.val_check_interval=200"]
        result["overhead"] = overhead(options.blocks, options.threads, [*photo, *options.override])
        small = [*SMALL, "trainer.val_check_interval=1000000"]
        result["overhead_small"] = overhead(2 * options.blocks, options.threads, [*small, *options.override])
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
