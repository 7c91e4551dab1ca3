"""The papers' tables on the papers' kinds of images, in stages that can be stopped.

``python -m benchmarks.study_claims_images --data FOLDER [--stages NAME ...] [--images N] [--seconds 600] [--seeds 0]``

FOLDER holds ``cifar10``, ``faces64`` (the ORL faces as PNG) and ``photos`` (photographs as PNG). A stage writes its images
to the work folder and runs a comparison for each, whose folder is named after the image; the same command goes on where it
was stopped, and seconds are those of pre-computation and training. Times to a target are medians over images and seeds,
ratios with and without the embedding pairs of runs of one image and seed.

- ``cifar10``, ``faces64``, ``photos128``: table 1 of arXiv 2511.17634 (``sweep=claims``: denoising from sigma = 0.506,
  global SSIM) on ten images of 32 x 32, ten grey faces of 64 x 64, three photographs of 128 x 128;
- ``generation``, ``generation64``, ``generation3``: tables 1, 2 and 3 of arXiv 2404.06661 (``sweep=claims_generation``:
  generation, SSIM of rescaled images) on one CIFAR-10 image, one grey face, and three CIFAR-10 images with the conditional
  start of weight ``--weight``.

The result goes to benchmarks/results/claims_images.json, from which ``benchmarks.study_claims`` writes the rows of
docs/results.md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from scoreexp.core.ranges import to_unit
from scoreexp.data import CIFAR10
from scoreexp.figures.images import save_pixels
from scoreexp.runs.reporting import COMPARISON_FILE, Plan, Run
from scoreexp.runs.reporting.reading import read_run
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.machine import processor

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "claims_images.json"
WORK = ROOT / "outputs" / "study_claims_images"
TARGETS = (0.90, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Stage:
    """One table on one kind of images.

    Attributes:
        source: folder of the images below the data.
        count: of images, each a comparison.
        size: their side.
        target: of the runs.
        differs: from the published setting, for the row.
        generates: the task of arXiv 2404.06661 instead of denoising.
        together: images trained on at once.
    """

    source: str
    count: int
    size: int
    target: float
    differs: str
    generates: bool = False
    together: int = 1

    @property
    def metric(self) -> str:
        return "val/ssim_rescaled" if self.generates else "val/ssim_global"


STAGES = {
    "cifar10": Stage("cifar10", 10, 32, 0.99, "network of 0.6 M, CPU"),
    "faces64": Stage("faces64", 10, 64, 0.99, "grey ORL faces instead of CelebA, network of 0.6 M, CPU"),
    "photos128": Stage("photos", 3, 128, 0.90, "photographs instead of CelebA, network of 0.6 M, CPU"),
    "generation": Stage("cifar10", 1, 32, 0.99, "network of 0.6 M, CPU", generates=True),
    "generation64": Stage(
        "faces64", 1, 64, 0.95, "a grey ORL face instead of CelebA, network of 0.6 M, CPU", generates=True
    ),
    "generation3": Stage(
        "cifar10",
        1,
        32,
        0.95,
        "weight of the conditional start assumed, network of 0.6 M, CPU",
        generates=True,
        together=3,
    ),
}


def pictures(stage: Stage, count: int, data: Path, folder: Path) -> list[Path]:
    """The first images of a stage as PNG files.

    Raises:
        SystemExit: there are fewer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if stage.source == "cifar10":
        images = to_unit(CIFAR10(root=str(data / "cifar10")).split("train").samples(range(count)))
        found = [folder / f"cifar10_{i}.png" for i in range(count)]
        for image, path in zip(images, found, strict=True):
            save_pixels(image, path)
        return found
    files = sorted((data / stage.source).glob("*_1.png" if stage.source == "faces64" else "*.png"))
    suitable = [path for path in files if _suits(path, stage)][:count]
    if len(suitable) < count:
        raise SystemExit(
            f"{data / stage.source} holds {len(suitable)} suitable images, {count} were asked for"
        )
    return suitable


def _suits(path: Path, stage: Stage) -> bool:
    with Image.open(path) as image:
        return min(image.size) >= stage.size and (image.mode == "RGB" or stage.source == "faces64")


def command(stage: Stage, picture: Path | None, given: argparse.Namespace, folder: Path) -> list[str]:
    """The comparison of one image, or of several CIFAR-10 images that are trained on together."""
    overrides = list(given.override)
    if picture is not None:
        overrides += [f"data.path={picture}", "data.name=null", f"data.size={stage.size}"]
        overrides += [f"data.channels={1 if stage.source == 'faces64' else 3}"]
    else:
        overrides += ["data=cifar10", f"data.root={given.data.absolute() / 'cifar10'}", "data.num_workers=0"]
        overrides += [f"data.num_images={stage.together}", f"data.num_val={stage.together}"]
        overrides += [f"callbacks.monitor.restorer.weight={given.weight:g}"]
    methods = [] if given.methods is None else [f"methods=[{','.join(given.methods)}]"]
    return [
        sys.executable, "-m", "scoreexp.compare", f"sweep={'claims_generation' if stage.generates else 'claims'}",
        f"sweep.target={stage.target:g}", f"sweep.seconds={given.seconds:g}",
        f"sweep.seeds=[{','.join(map(str, given.seeds))}]", *methods, f"overrides={json.dumps(overrides)}",
        f"run_dir={folder}",
    ]  # fmt: skip


def row_of(run: Run, image: str, metric: str) -> dict[str, Any]:
    """What a run says: steps and seconds to each target, in two evaluations in a row."""
    reached: dict[str, tuple[int, float] | None] = {}
    for target in TARGETS:
        points = run.curve(metric)
        if run.untrained:  # evaluated at step 0 only, as often as asked
            reached[f"{target:.2f}"] = (0, 0.0) if (run.best(metric) or 0.0) >= target else None
            continue
        both = (b for a, b in pairwise(points) if min(a.value, b.value) >= target)
        hit = next(both, None)
        reached[f"{target:.2f}"] = hit and (hit.step, hit.seconds)
    return {
        "method": run.method, "seed": run.seed, "image": image, "state": run.state, "steps": run.steps,
        "seconds": run.cost, "precompute": run.precompute, "best": run.best(metric), "reached": reached,
        "interval": run.config["trainer"]["val_check_interval"],
    }  # fmt: skip


def _all_runs(folder: Path) -> list[Run]:
    """Those of earlier commands with other methods or seeds too, the methods in the order of the last."""
    plan = Plan(**read_json(folder / COMPARISON_FILE))
    found = [
        read_run(path, path.parent.name, int(path.name.removeprefix("seed_")))
        for path in folder.glob("*/seed_*")
    ]
    order = [*plan.methods, *sorted({run.method for run in found} - set(plan.methods))]
    return sorted(found, key=lambda run: (order.index(run.method), run.seed))


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing of a stage and read it."""
    stage, work = STAGES[name], given.work.absolute() / name
    count = min(stage.count, given.images or stage.count)
    images: list[Path | None] = [None]
    if stage.together == 1:
        images = [*pictures(stage, count, given.data.absolute(), work / "pictures")]
    rows, load = [], os.getloadavg()[0]
    for picture in images:
        label = picture.stem if picture is not None else f"{stage.together} images"
        folder = work / label.replace(" ", "_")
        if not given.stored:
            subprocess.run(command(stage, picture, given, folder), check=True, cwd=ROOT)
        rows += [row_of(run, label, stage.metric) for run in _all_runs(folder) if run.state == "done"]
    return {
        "cap_seconds": given.seconds, "load": load / (os.cpu_count() or 1), "machine": processor(), "weight": given.weight,
        "images": len(images) if stage.together == 1 else stage.together, "rows": rows,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10, faces64, photos")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--images", type=int, help="at most so many images of each stage")
    parser.add_argument("--methods", nargs="+", help="only these of the sweep")
    parser.add_argument("--seconds", type=float, default=600.0, help="cap of a run (default 600)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of every image (default 0)")
    parser.add_argument(
        "--weight", type=float, default=0.5, help="of the images in the conditional start (default 0.5)"
    )
    parser.add_argument("--stored", action="store_true", help="only read the runs that the work folder holds")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of every run")
    parser.add_argument("--work", type=Path, default=WORK, help=f"images and runs (default {WORK})")
    parser.add_argument("--json", type=Path, default=RESULT, help=f"the result (default {RESULT})")
    given = parser.parse_args(arguments)
    result = read_json(given.json)
    for name in given.stages:
        result[name] = measure(name, given)
        write_json(given.json, result)
        print(f"{name}: {len(result[name]['rows'])} runs in {given.json}", flush=True)


if __name__ == "__main__":
    main()
