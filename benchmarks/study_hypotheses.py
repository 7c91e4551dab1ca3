"""Two hypotheses at equal seconds: does a density on the kernels help, and does a learned law of noise levels?
``python -m benchmarks.study_hypotheses --root FOLDER [--seconds 1800] [--seeds 0 1 2] [--json [PATH]] [--table]``

A small U-Net is trained on MNIST (``--data``) for the same processor seconds, evaluations apart, in three ways: as it is
with ``time_law=log_normal``, with weighted convolutions (``network=wconv2d``), and with ``time_law=learned``. The figure
is EDM's loss on held-out images, averaged over the log-normal law by 64 fixed quantiles, with the same noise for all. A
seed names the initial weights, the batches and the noise, so that differences are taken within seeds; their spread over
seeds is what a difference has to exceed. The seconds are those of one thread: run it with OMP_NUM_THREADS=1, and an arm
that costs more per step gets fewer steps.

A cell is an arm and a seed. Those that the file of results holds are not run again; ``--table`` writes the table of
docs/networks.md.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoreexp as se
from benchmarks.cells import add_cell_options, cells_of, half_interval
from benchmarks.small_images import DATA, Images, read_images
from scoreexp.core.batch import Batch
from scoreexp.core.streams import generator
from scoreexp.objectives import DenoisingScoreMatching, EDMWeighting, LearnedNoise, LogNormalNoise, TimeLaw

RESULT = Path(__file__).parent / "results" / "hypotheses.json"
TABLE = "benchmarks.study_hypotheses"
ARMS = ("plain", "wconv2d", "learned law")
LEVELS = 64  # noise levels of the evaluation
OBJECTIVE = DenoisingScoreMatching(EDMWeighting())


def make_model(
    arm: str, shape: tuple[int, ...], seed: int, options: argparse.Namespace
) -> se.denoisers.Denoiser:
    """The U-Net, with a density in the arm of that name."""
    torch.manual_seed(seed)
    make = partial(se.networks.UNet, channels=options.channels, multipliers=(1, 2), blocks=1)
    network: nn.Module
    if arm == "wconv2d":
        network = se.networks.WeightedConvolutions(network=make, density=(0.7,), event_shape=shape)
    else:
        network = make(event_shape=shape)
    return se.denoisers.Denoiser(network, se.denoisers.EDMPrediction(), se.schedules.EDM())


@torch.no_grad()
def held_out_loss(model: se.denoisers.Denoiser, x: Tensor) -> float:
    """The mean over images and noise levels; every image at a quarter of the levels, in turns."""
    model.eval()
    quantiles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    law = LogNormalNoise()
    ratio = (law.mean + law.std * torch.special.ndtri(quantiles)).exp()
    times = model.schedule.t_of_sigma(ratio.clamp(*model.schedule.sigma_range))
    losses = []
    for k, t in enumerate(times):
        rows = x[k % 4 :: 4]
        noise = torch.randn(rows.shape, generator=generator("hypotheses", "held out", k))
        losses.append(OBJECTIVE(model, Batch(x=rows), t.expand(len(rows)), noise).mean())
    model.train()
    return float(torch.stack(losses).mean())


def cell(arm: str, images: Images, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One training of so many seconds, with the learning rate falling to 0 over them."""
    x, held_out = images.train, images.held_out[: options.n]
    model = make_model(arm, tuple(x.shape[1:]), seed, options)
    law: TimeLaw = LearnedNoise() if arm == "learned law" else LogNormalNoise()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    model.train()
    step, spent, curve = 0, 0.0, []
    marks = [options.seconds / 2, options.seconds]
    while marks:
        began = time.process_time()
        stream = generator("hypotheses", seed, step)
        rows = torch.randint(len(x), (options.batch,), generator=stream)
        noise = torch.randn(options.batch, *x.shape[1:], generator=stream)
        t = law.sample(options.batch, model.schedule, stream)
        losses = OBJECTIVE(model, Batch(x=x[rows]), t, noise)
        if law.learns:
            loss = (law.weights(t, model.schedule).to(losses) * losses).mean()
            law.observe(t, losses, model.schedule)
        else:
            loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = options.lr * max(0.0, 1 - spent / options.seconds)
        optimizer.step()
        step += 1
        spent += time.process_time() - began
        if spent >= marks[0]:
            marks.pop(0)
            curve.append({"step": step, "seconds": round(spent, 1), "loss": held_out_loss(model, held_out)})
    found: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "steps": step,
        "loss": curve[-1]["loss"],
        "curve": curve,
    }
    if isinstance(law, LearnedNoise):
        found["probabilities"] = [round(p, 4) for p in law.probabilities.tolist()]
    return found


def verdict(differences: list[float]) -> str:
    """In words: whether a mean relative difference exceeds its 95 % interval."""
    if len(differences) < 3:
        return "too few seeds"
    mean = statistics.mean(differences)
    if abs(mean) <= half_interval(differences):
        return "no difference beyond the spread"
    return "lower loss" if mean < 0 else "higher loss"


def table(stored: dict[str, Any]) -> str:
    """The result in Markdown."""
    rows = stored["rows"].values()
    plain = {row["seed"]: row["loss"] for row in rows if row["arm"] == "plain"}
    lines = [
        "| arm | seeds | steps | held-out loss | against plain, within seeds | verdict |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        losses = [row["loss"] for row in own]
        steps = round(statistics.mean(row["steps"] for row in own))
        apart = [row["loss"] / plain[row["seed"]] - 1 for row in own if row["seed"] in plain]
        against, said = "", ""
        if arm != "plain" and apart:
            against = ", ".join(f"{100 * one:+.1f} %" for one in apart)
            said = verdict(apart)
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        lines.append(
            f"| {arm} | {len(own)} | {steps:,} | {statistics.mean(losses):.4f}{spread} | {against} | {said} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_cell_options(parser, RESULT, "networks.md")
    parser.add_argument("--data", choices=sorted(DATA), default="mnist")
    parser.add_argument(
        "--pool", type=int, default=2, help="sides of images are averaged down by this factor"
    )
    parser.add_argument(
        "--seconds", type=float, default=1800.0, help="of training, processor time, for each cell"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--n", type=int, default=512, help="held-out images")
    options = parser.parse_args(arguments)
    cells = cells_of(parser, options, ("seeds",), ("networks.md", TABLE, lambda rows: table({"rows": rows})))
    if cells is None:
        return
    torch.set_num_threads(1)
    images = read_images(options.data, options.root, options.pool)
    for seed in options.seeds:
        first = seed % len(
            ARMS
        )  # other jobs on the machine slow down whoever runs beside them: seeds take turns
        for arm in (*ARMS[first:], *ARMS[:first]):
            key = f"{arm} {seed}"
            cells.measured(key, partial(cell, arm, images, seed, options))


if __name__ == "__main__":
    main()
