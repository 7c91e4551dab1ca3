"""Time outside the network: ``python -m benchmarks.sampler_throughput [--peer] [--n N] [--steps N] [--json [PATH]]``

``scoreexp.sample`` draws ``n`` images of 3 x 32 x 32 with a U-Net of about 1 M parameters at ``steps`` evaluations of DDIM,
in batches of 64. With ``--peer`` diffusers' ``DDIMPipeline`` draws as many in the same run, both with one and the same
``UNet2DModel`` of diffusers, which ours wraps: see ``benchmarks.sampler_peers`` for the environment. The two take turns. The
seconds are those of the process, so that other programs on the machine do not count; those of the network are taken round
its forward pass, and the rest is the share outside.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import scoreexp as se
from benchmarks.fokker_planck import describe_machine
from scoreexp.denoisers import Denoiser, EpsPrediction
from scoreexp.networks import UNet
from scoreexp.runs.directory import git_revision
from scoreexp.samplers import DDIM, UniformGrid
from scoreexp.schedules import DDPM
from scoreexp.system.json_files import write_json

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sampler_throughput.json"
SHAPE, BATCH, ROUNDS = (3, 32, 32), 64, 3


class Clock:
    """The process's seconds in the forward pass of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.seconds = self._started = 0.0
        network.register_forward_pre_hook(self._begin)
        network.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._started = time.process_time()

    def _end(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started


class OfDiffusers(nn.Module):
    """``UNet2DModel`` as a network of ours: its times are the steps of 1000, of which ``c_noise`` is a function."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.event_shape = network, SHAPE
        steps = torch.arange(1000, dtype=torch.float64)
        self.levels = DDPM().noise_level((steps + 1) / 1000).log() / 4

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        step = torch.searchsorted(self.levels, c_noise.double()).clamp(max=999)
        output: Tensor = self.network(x, step).sample
        return output


def unet_of_diffusers() -> nn.Module:
    """About 1 M parameters."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network: nn.Module = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    )
    return network.eval()


def spent(run: Callable[[], object], clock: Clock) -> dict[str, float]:
    """Seconds of a run, and the share of them outside the network."""
    clock.seconds, started = 0.0, time.process_time()
    run()
    seconds = time.process_time() - started
    return {"seconds": seconds, "outside": 1 - clock.seconds / seconds}


def pipeline_run(unet: nn.Module, n: int, steps: int) -> Callable[[], object]:
    """diffusers' own loop over the same batches."""
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def run() -> None:
        for done in range(0, n, BATCH):
            pipeline(batch_size=min(BATCH, n - done), num_inference_steps=steps, output_type="np")

    return run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="store_true", help="diffusers' pipeline with the same network")
    parser.add_argument("--n", type=int, default=256, help="images")
    parser.add_argument("--steps", type=int, default=20, help="evaluations")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each; the median counts")
    parser.add_argument(
        "--json", type=Path, nargs="?", const=RESULT, help=f"store the result (default {RESULT})"
    )
    given = parser.parse_args()
    if given.peer:
        timed = unet_of_diffusers()
        network: nn.Module = OfDiffusers(timed)
    else:
        timed = network = UNet(event_shape=SHAPE, channels=32, multipliers=(1, 2, 2), blocks=2)
    clock = Clock(timed)
    model = Denoiser(network, EpsPrediction(), DDPM()).eval().requires_grad_(False)
    sampler = DDIM(UniformGrid(given.steps))
    runs: dict[str, Callable[[], object]] = {
        "scoreexp": lambda: se.sample(model, given.n, sampler=sampler, batch_size=BATCH)
    }
    if given.peer:
        runs["diffusers"] = pipeline_run(timed, given.n, given.steps)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    se.sample(model, 2, sampler=DDIM(UniformGrid(2)))  # warm up
    for _ in range(given.rounds):
        for name, run in runs.items():
            found = spent(run, clock)
            rounds[name].append(found)
            print(f"{name:10} {found['seconds']:8.2f} s, outside {found['outside']:.2%}", flush=True)
    medians = {name: sorted(of, key=lambda row: row["seconds"])[len(of) // 2] for name, of in rounds.items()}
    if given.json:
        parameters = sum(p.numel() for p in timed.parameters())
        settings = {"n": given.n, "steps": given.steps, "batch": BATCH, "parameters": parameters}
        about = {"machine": describe_machine() | {"torch": torch.__version__}, "revision": git_revision()}
        write_json(given.json, about | settings | {"median": medians, "rounds": rounds})


if __name__ == "__main__":
    main()
