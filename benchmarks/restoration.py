"""All restorers on all tasks: ``python -m benchmarks.restoration [--ckpt FILE --data NAME=PICTURES ...] [--nfe 10 50 100]``

A table for each data set and number of network evaluations (NFE): PSNR and SSIM of every restorer of conf/restorer that
takes any model of pictures, with the settings of its file but the steps that make so many evaluations, on every task of
conf/task but gray; seconds per picture, the mean over the tasks; memory with ``--memory``. Pictures are clean, cropped in
the middle, and damaged as ``python -m scoreexp.restore simulate=true`` does it.

``--data`` names folders of pictures, or of CIFAR-10 in its binary form, whose test pictures are taken::

    --data kodak24=testsets/Kodak24 cbsd68=testsets/CBSD68 cifar10=data/cifar10

``--out FILE`` keeps each row as soon as it is known, as a line of JSON; the same command goes on where it was stopped, with
more restorers and tasks, and with other data in a number of their own. The tables are of all that the file holds;
``--doc`` writes them to docs/restoration.md.

Without --ckpt and --data the prior is a Gaussian of smooth 16 x 16 images, known exactly, and so is the best answer: the
exact posterior mean is a row, which no restorer can exceed in mean squared error on average. About a minute on one core.
A restorer that cannot serve a task (one that needs a decomposition which the operator has not) has no row there.
"""

import argparse
import hashlib
import json
import statistics
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
GENERATES = ("conditional_start",)  # with its default settings it does not look at the observation


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


def stored(
    path: Path | None, headers: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[Cell]]:
    """Headers by data set and rows of a file that an earlier call has written; a line that was cut off is not one.

    Raises:
        ValueError: a data set of ``headers`` was measured with another model or other pictures.
    """
    known: dict[str, dict[str, Any]] = {}
    found = []
    for line in path.read_text().splitlines() if path is not None and path.exists() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "header" in values:
            name, header = values["data"], values["header"]
            if headers.get(name, header) != header:
                raise ValueError(
                    f"{name} of {path} was measured with {header}, not {headers[name]}: give another --out"
                )
            known[name] = header
        else:
            found.append(Cell(values["data"], values["nfe"], Row(**values["row"])))
    return known, found


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


def page(headers: dict[str, dict[str, Any]], cells: Sequence[Cell]) -> str:
    """A table for each data set and number of evaluations: restorers by tasks, the best PSNR of a task in bold."""
    parts = []
    for data, nfe in sorted(
        {(cell.data, cell.nfe) for cell in cells}, key=lambda pair: (list(headers).index(pair[0]), pair[1])
    ):
        rows = [
            cell.row for cell in cells if (cell.data, cell.nfe) == (data, nfe) and cell.row.psnr is not None
        ]
        by_place = {(row.restorer, row.task): row for row in rows}
        names = sorted({row.restorer for row in rows}, key=lambda name: (name != EXACT, name))
        tasks = sorted({row.task for row in rows}, key=lambda task: (TASKS.index(task), task))
        best = {
            task: max((_rounded(r) for r in rows if r.task == task and r.restorer != EXACT), default=0.0)
            for task in tasks
        }
        memory = any(row.mib is not None for row in rows)
        heads = [*tasks, "NFE", "s/picture", *(["MiB"] if memory else [])]
        lines = [
            f"**{data}, {_pictures(headers[data])}, {nfe} evaluations**\n",
            f"| restorer | {' | '.join(heads)} |",
            f"| --- |{' ---: |' * len(heads)}",
        ]
        for name in names:
            own = [row for row in rows if row.restorer == name]
            shown = [_quality(by_place.get((name, task)), best) for task in tasks]
            shown += [str(max(row.nfe for row in own)), f"{statistics.mean(row.seconds for row in own):.2f}"]
            if memory:
                most = [row.mib for row in own if row.mib is not None]
                shown.append(f"{max(most):.1f}" if most else "–")
            lines.append(f"| {name} | {' | '.join(shown)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _pictures(header: dict[str, Any]) -> str:
    return f"{header['count']} of {header['side']} x {header['side']} pixels"


def _rounded(row: Row) -> float:
    return round(row.psnr or 0.0, 2)


def _quality(row: Row | None, best: dict[str, float]) -> str:
    if row is None or row.psnr is None:
        return "–"
    shown = f"{row.psnr:.2f}" if row.ssim is None else f"{row.psnr:.2f}, {row.ssim:.3f}"
    return f"**{shown}**" if row.restorer != EXACT and _rounded(row) == best[row.task] else shown


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
    parser.add_argument(
        "--restorers", nargs="+", default=[name for name in restorers_with_model() if name not in GENERATES]
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
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
    headers = {
        name: {**header, "count": len(images), "side": images.shape[-1]} for name, images in data.items()
    }
    known, cells = stored(arguments.out, headers)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a") as file:
            for name in headers.keys() - known:
                file.write(json.dumps({"data": name, "header": headers[name]}) + "\n")
    for cell in measure(model, data, arguments, cells):
        cells.append(cell)
        if cell.row.reason:
            print(f"{cell.row.restorer} does not serve {cell.row.task}: {cell.row.reason}", flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps({**cell._asdict(), "row": cell.row._asdict()}) + "\n")
    shown = page(known | headers, cells)
    print(shown)
    if arguments.doc:
        write_table(DOCS / "restoration.md", "restoration", shown)


if __name__ == "__main__":
    main()
