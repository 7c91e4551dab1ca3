"""All restorers on all tasks: ``python -m benchmarks.restoration [--ckpt FILE --data NAME=PICTURES ...] [--nfe 10 50 100]``

Tables of PSNR, SSIM, network evaluations (NFE), seconds per picture and memory, for every restorer of conf/restorer that
takes a model, with the settings of its file but the steps that make so many evaluations, on every task of conf/task but
gray. Pictures are clean, cropped in the middle, and damaged as ``python -m scoreexp.restore simulate=true`` does it.

``--data`` names folders of pictures, or of CIFAR-10 in its binary form, whose test pictures are taken::

    --data kodak24=testsets/Kodak24 cbsd68=testsets/CBSD68 cifar10=data/cifar10

``--out FILE`` keeps each row as soon as it is known, as a line of JSON; the same command goes on where it was stopped, with
more restorers, tasks or data too. The table is of all that the file holds; ``--doc`` writes it to docs/restoration.md.

Without --ckpt and --data the prior is a Gaussian of smooth 16 x 16 images, known exactly, and so is the best answer: the
exact posterior mean is a row, which no restorer can exceed in mean squared error on average. About a minute on one core.
A restorer that cannot serve a task (one that needs a decomposition which the operator has not) has no row there.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import scoreexp as se
from benchmarks.pages import DOCS, write_table
from scoreexp.app.commands.restore_comparison import (
    EXACT,
    Budget,
    Row,
    compare_restorers,
    restorers_with_model,
    table,
)
from scoreexp.core.ranges import to_model
from scoreexp.data.image_io import list_images, read_image
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.observations import LinearOperator
from scoreexp.restorers.images import as_observed
from scoreexp.schedules import VP

COUNT, SIDE = 16, 16  # images and pixels of the exact prior
TASKS = ("inpaint", "inpaint_box", "deblur", "deblur_motion", "super_resolution", "denoise")
SMOOTH = "smooth"  # the data of the exact prior
RECORD = 3 * 32 * 32 + 1  # bytes of a picture of CIFAR-10 and its label


class Cell(NamedTuple):
    """A row of the file: data, evaluations asked for, and what was measured."""

    data: str
    nfe: int
    row: Row


def smooth(side: int, variance: float = 0.09, length: float = 2.0) -> Tensor:
    """The covariance ``[D, D]`` of stationary smooth images: Gaussian with a correlation length in pixels."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    distance = torch.cdist(places, places)
    return variance * torch.exp(-((distance / length) ** 2) / 2) + 1e-4 * torch.eye(
        side**2, dtype=torch.float64
    )


def dense(operator: LinearOperator, event_shape: Sequence[int]) -> Tensor:
    """The matrix ``[values of y, values of x]`` of an operator, float64."""
    size = torch.Size(event_shape).numel()
    return operator(torch.eye(size, dtype=torch.float64).reshape(size, *event_shape)).flatten(1).T


def images_of(source: Path, count: int, side: int) -> Tensor:
    """The first pictures of a folder, cropped in the middle: ``[B, 3, side, side]`` in [-1, 1]."""
    if batches := sorted(source.rglob("test_batch.bin")):
        data = np.fromfile(batches[0], np.uint8, count * RECORD).reshape(-1, RECORD)[:, 1:]
        return to_model(torch.from_numpy(data.reshape(-1, 3, 32, 32)).float() / 255)
    paths = list_images(source) if source.is_dir() else [source]
    cut = []
    for path in paths[:count]:
        x = as_observed(read_image(path).pixels)
        top, left = ((n - side) // 2 for n in x.shape[-2:])
        if min(top, left) < 0:
            raise ValueError(
                f"{path} has {x.shape[-1]} x {x.shape[-2]} pixels: choose --side up to its sides"
            )
        cut.append(x[..., top : top + side, left : left + side])
    return torch.cat(cut)


def stored(path: Path | None, header: dict[str, Any]) -> list[Cell]:
    """The rows of a file that an earlier call has written; a line that was cut off is not one.

    Raises:
        ValueError: they were measured with another model or other pictures.
    """
    if path is None or not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "header" in values:
            if values["header"] != header:
                raise ValueError(
                    f"{path} was measured with {values['header']}, not {header}: give another --out"
                )
            continue
        found.append(Cell(values["data"], values["nfe"], Row(**values["row"])))
    return found


def measure(
    model: DenoiserBase, data: dict[str, Tensor], arguments: argparse.Namespace, known: Sequence[Cell]
) -> Iterator[Cell]:
    """What of the request is not known yet."""
    have = {(cell.data, cell.nfe, cell.row.task, cell.row.restorer) for cell in known}
    for name, images in data.items():
        for nfe in arguments.nfe:
            for task in arguments.tasks:
                missing = [r for r in arguments.restorers if (name, nfe, task, r) not in have]
                if not missing:
                    continue
                batches = list(images.split(arguments.batch))
                for row in compare_restorers(
                    model, batches, missing, [task], Budget(nfe=nfe), memory=arguments.memory
                ):
                    if (name, nfe, task, row.restorer) not in have:
                        yield Cell(name, nfe, row)


def page(cells: Sequence[Cell]) -> str:
    """A table for each data set and number of evaluations, of what was served."""
    parts = []
    for data, nfe in dict.fromkeys((cell.data, cell.nfe) for cell in cells):
        chosen = [cell.row for cell in cells if (cell.data, cell.nfe) == (data, nfe)]
        rows = [row for row in chosen if row.psnr is not None]
        rows.sort(
            key=lambda row: (
                TASKS.index(row.task) if row.task in TASKS else len(TASKS),
                row.restorer != EXACT,
            )
        )
        parts.append(f"**{data}, {nfe} evaluations**\n\n{table(rows)}")
    return "\n\n".join(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ckpt", help="a model of pictures, or prior for the bundled one; default: known exactly"
    )
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME=PICTURES", help="clean pictures, for --ckpt"
    )
    parser.add_argument("--count", type=int, default=24, help="pictures of each data set (default 24)")
    parser.add_argument("--side", type=int, default=128, help="pixels a side of their crops (default 128)")
    parser.add_argument("--batch", type=int, default=8, help="pictures restored at once (default 8)")
    parser.add_argument("--nfe", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--restorers", nargs="+", default=restorers_with_model())
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument(
        "--memory", action="store_true", help="measure memory too, which takes two more steps"
    )
    parser.add_argument("--out", type=Path, help="JSON lines: what is known, and what to go on from")
    parser.add_argument("--doc", action="store_true", help="write the tables to docs/restoration.md")
    arguments = parser.parse_args()
    if (arguments.ckpt is None) != (not arguments.data):
        parser.error("--ckpt and --data belong together")
    header: dict[str, Any] = {"ckpt": None}
    if arguments.ckpt is None:
        oracle = se.oracles.Gaussian(torch.zeros(1, SIDE, SIDE), smooth(SIDE))
        model: DenoiserBase = OracleDenoiser(oracle, VP())
        data = {SMOOTH: oracle.sample(COUNT, torch.Generator().manual_seed(0)).float().clamp(-1, 1)}
    else:
        if arguments.ckpt == "prior":
            from scoreexp import prior

            model = prior.load("cpu")
            header["ckpt"] = "prior"
        else:
            model = se.load(arguments.ckpt)
            header["ckpt"] = hashlib.sha256(Path(arguments.ckpt).read_bytes()).hexdigest()[:16]
        named = dict(pair.split("=", 1) for pair in arguments.data)
        data = {name: images_of(Path(path), arguments.count, arguments.side) for name, path in named.items()}
    header |= {"count": arguments.count, "side": arguments.side}
    cells = stored(arguments.out, header)
    if arguments.out and not arguments.out.exists():
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"header": header}) + "\n")
    for cell in measure(model, data, arguments, cells):
        cells.append(cell)
        if cell.row.reason:
            print(f"{cell.row.restorer} does not serve {cell.row.task}: {cell.row.reason}", flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps({**cell._asdict(), "row": cell.row._asdict()}) + "\n")
    print(page(cells))
    if arguments.doc:
        write_table(DOCS / "restoration.md", "restoration", page(cells))


if __name__ == "__main__":
    main()
