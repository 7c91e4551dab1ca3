"""All restorers on all tasks: ``python -m benchmarks.restoration [--ckpt PATH --input PICTURES] [--steps N]``

One table of PSNR, SSIM, network evaluations (NFE) and seconds per image, for every restorer of conf/restorer that takes a
model, with the settings of its file but the same number of steps for all, on every task of conf/task. Pictures are clean
and damaged as ``python -m scoreexp.restore simulate=true`` does it.

Without --ckpt the prior is a Gaussian of smooth 16 x 16 images, known exactly, and so is the best answer: a row of the
table is the exact posterior mean, which no restorer can exceed in mean squared error on average. About half a minute on one
core. A restorer that cannot serve a task (one that needs a decomposition which the operator has not) has a dash there.
"""

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

import scoreexp as se
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.construct import construct, locate
from scoreexp.core.ranges import to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import list_images, read_image
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.metrics import psnr, ssim
from scoreexp.observations import LinearOperator, Observation
from scoreexp.restorers import Restorer
from scoreexp.restorers.images import as_observed
from scoreexp.schedules import VP

COUNT, SIDE = 16, 16  # images and pixels of the exact prior
SMALLEST = 11  # pixels a side from which SSIM is known


class Row(NamedTuple):
    """What a restorer made of the images of a task, means over them; None where it cannot serve it."""

    restorer: str
    task: str
    psnr: float | None
    ssim: float | None = None
    nfe: int = 0
    seconds: float = 0.0


def configured(name: str, steps: int) -> Restorer:
    """The restorer of ``conf/restorer/NAME.yaml`` with so many steps."""
    restorer: Restorer = construct(_with_steps(_read("restorer", name), steps))
    return restorer


def with_model() -> list[str]:
    """The names of the restorers of conf/ that take a model."""
    names = sorted(path.stem for path in (conf_dir() / "restorer").glob("*.yaml"))
    return [name for name in names if locate(_read("restorer", name)["_target_"]).needs_model]


def task(name: str, size: tuple[int, int]) -> tuple[LinearOperator, Any]:
    """Operator and noise of ``conf/task/NAME.yaml`` for images of this height and width."""
    node = _read("task", name)
    takes_size = "size" in inspect.signature(locate(node["operator"]["_target_"])).parameters
    return construct(node["operator"], **({"size": size} if takes_size else {})), construct(node["noise"])


def dense(operator: LinearOperator, event_shape: Sequence[int]) -> Tensor:
    """The matrix ``[values of y, values of x]`` of an operator, float64."""
    size = torch.Size(event_shape).numel()
    return operator(torch.eye(size, dtype=torch.float64).reshape(size, *event_shape)).flatten(1).T


def smooth(side: int, variance: float = 0.09, length: float = 2.0) -> Tensor:
    """The covariance ``[D, D]`` of stationary smooth images: Gaussian with a correlation length in pixels."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    distance = torch.cdist(places, places)
    return variance * torch.exp(-((distance / length) ** 2) / 2) + 1e-4 * torch.eye(
        side**2, dtype=torch.float64
    )


def gaussian_posterior_mean(covariance: Tensor, observation: Observation, x: Tensor) -> Tensor:
    """``E[x | y]`` of a Gaussian prior of mean 0, in the shape and dtype of ``x``."""
    assert isinstance(observation.operator, LinearOperator)
    a, sigma = dense(observation.operator, x.shape[1:]), observation.noise.sigma  # type: ignore[attr-defined]
    total = a @ covariance @ a.T + sigma**2 * torch.eye(len(a), dtype=torch.float64)
    return (
        (observation.y.flatten(1).double() @ torch.linalg.solve(total, a @ covariance)).reshape(x.shape).to(x)
    )


def compare(
    model: DenoiserBase,
    images: Sequence[Tensor],
    restorers: Sequence[str],
    tasks: Sequence[str],
    steps: int,
    covariance: Tensor | None = None,
) -> list[Row]:
    """One row for each restorer and task.

    Args:
        model: the prior.
        images: batches ``[B, C, H, W]`` of clean images in [-1, 1], each of one size.
        restorers: names of conf/restorer.
        tasks: names of conf/task.
        steps: of every restorer.
        covariance: of a Gaussian prior, whose exact answer becomes a row.
    """
    rows = []
    for name in tasks:
        observed = []
        for x in images:
            operator, noise = task(name, (x.shape[-2], x.shape[-1]))
            observed.append(
                Observation.simulate(x, operator, noise, ImageStreams(range(len(x)), "observation"))
            )
        if covariance is not None:
            exact = [gaussian_posterior_mean(covariance, o, x) for o, x in zip(observed, images, strict=True)]
            rows.append(_row("exact posterior mean", name, images, exact))
        for restorer in restorers:
            try:
                made = [se.restore(o, model, configured(restorer, steps)) for o in observed]
            except ValueError as error:
                print(f"{restorer} does not serve {name}: {error}")
                rows.append(Row(restorer, name, None))
                continue
            seconds = sum(one.seconds for one in made) / sum(len(x) for x in images)
            row = _row(restorer, name, images, [one.x for one in made])
            rows.append(row._replace(nfe=made[0].nfe, seconds=seconds))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: a block of rows for each task."""
    lines = [
        "| task | restorer | PSNR, dB | SSIM | NFE | s/image |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        quality = "–" if row.psnr is None else f"{row.psnr:.2f}"
        similarity = "–" if row.ssim is None else f"{row.ssim:.3f}"
        lines.append(
            f"| {row.task} | {row.restorer} | {quality} | {similarity} | {row.nfe or '–'} | "
            f"{f'{row.seconds:.3f}' if row.nfe else '–'} |"
        )
    return "\n".join(lines)


def _row(restorer: str, name: str, images: Sequence[Tensor], made: Sequence[Tensor]) -> Row:
    pairs = [(to_unit(a).clamp(0, 1), to_unit(b).clamp(0, 1)) for a, b in zip(made, images, strict=True)]
    large = min(side for x in images for side in x.shape[-2:]) >= SMALLEST
    return Row(
        restorer,
        name,
        float(torch.cat([psnr(*pair) for pair in pairs]).mean()),
        float(torch.cat([ssim(*pair) for pair in pairs]).mean()) if large else None,
    )


def _read(group: str, name: str) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
    return node


def _with_steps(node: dict[str, Any], steps: int) -> dict[str, Any]:
    inner = {key: _with_steps(value, steps) for key, value in node.items() if isinstance(value, dict)}
    return {**node, **inner, **({"steps": steps} if "steps" in node else {})}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ckpt", type=Path, help="a model of pictures; without it a prior that is known exactly"
    )
    parser.add_argument("--input", type=Path, help="a folder of clean pictures, or one, for --ckpt")
    parser.add_argument("--steps", type=int, default=50, help="of every restorer (default 50)")
    parser.add_argument("--restorers", nargs="+", default=with_model())
    parser.add_argument("--tasks", nargs="+", default=["inpaint", "deblur", "super_resolution", "denoise"])
    arguments = parser.parse_args()
    if (arguments.ckpt is None) != (arguments.input is None):
        parser.error("--ckpt and --input belong together")
    if arguments.ckpt is None:
        covariance = smooth(SIDE)
        oracle = se.oracles.Gaussian(torch.zeros(1, SIDE, SIDE), covariance)
        model: DenoiserBase = OracleDenoiser(oracle, VP())
        images = [oracle.sample(COUNT, torch.Generator().manual_seed(0)).float().clamp(-1, 1)]
    else:
        covariance, model = None, se.load(arguments.ckpt)
        paths = list_images(arguments.input) if arguments.input.is_dir() else [arguments.input]
        images = [as_observed(read_image(path).pixels) for path in paths]
    print(table(compare(model, images, arguments.restorers, arguments.tasks, arguments.steps, covariance)))


if __name__ == "__main__":
    main()
