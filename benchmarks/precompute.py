"""Throughput of the pre-computation: ``python -m benchmarks.precompute [--quick] [--json [PATH]]``

Score fields of 1000 crops of the bundled photographs, 32 x 32 pixels with 3 channels, solved by ``scoreexp.precompute``
and streamed to disk, then embedded for training once from memory and once with the paths in a file. Each row is a
process of its own with one thread; its memory is the growth of the peak over the same command on 16 images. Reading the
photographs and cutting the crops is not counted.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.fokker_planck import describe_machine

RESULT = Path(__file__).parent / "results" / "precompute.json"
IMAGES, QUICK, SMALL, SIDE = 1000, 64, 16, 32
# the field per image of the project's own embedding, and the field per channel of arXiv 2404.06661
CASES = {
    "one field per image, 10 times": ["experiment=photo32_ours"],
    "one field per channel, 20 times": [
        "experiment=photo32_ours_ve",
        "embedding.precomputation.solver=spectral",
        "embedding.precomputation.boundary=neumann",
    ],
}
TORCH = "fokker_planck@embedding.precomputation=spectral_torch"
CROPS = ["data.name=[astronaut,chelsea,coffee,rocket]", "data.crop=random", f"data.size={SIDE}"]


def measure(overrides: list[str], images: int, cache: str, task: str) -> dict[str, float]:
    """Seconds, and the peak of the resident memory in MiB."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from scoreexp.app.commands import precompute as precomputing
    from scoreexp.app.conf_dir import conf_dir

    torch.set_num_threads(1)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(
            "train", [*overrides, *CROPS, f"data.crops={-(-images // 4)}", f"embedding.cache={cache}"]
        )
    data, embedding = instantiate(cfg.data), instantiate(cfg.embedding)
    data.setup("fit")
    start = time.perf_counter()
    if task == "solve":
        precomputing.precompute(cfg)
    else:
        if task == "embed, paths in a file":
            precomputing._HELD_BYTES = 0
        precomputing.embed_training_images(data, embedding, 0, None)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_apart(*args: Any) -> dict[str, float]:
    """``measure`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *args).result()


def run(images: int) -> dict[str, Any]:
    """All measurements."""
    cases = dict(CASES)
    if torch.cuda.is_available():
        cases["one field per image, 10 times, CUDA"] = [*CASES["one field per image, 10 times"], TORCH]
    rows = []
    for case, overrides in cases.items():
        for task in ("solve", "embed, paths in memory", "embed, paths in a file"):
            folder = tempfile.mkdtemp()
            try:
                if task != "solve":
                    measure_apart(overrides, images, folder, "solve")
                many = measure_apart(overrides, images, folder, task)
                size = sum(path.stat().st_size for path in Path(folder).rglob("*.npz"))
                few = measure_apart(overrides, SMALL, f"{folder}/few", task)
            finally:
                shutil.rmtree(folder)
            row = {
                "case": case,
                "task": task,
                "images": images,
                "images_per_second": images / many["seconds"],
                "growth_mib": many["mib"] - few["mib"],
                "kib_on_disk_per_image": size / images / 1024,
            }
            rows.append(row)
            print(
                f"{case:38} {task:24} {row['images_per_second']:8.0f} images/s  {row['growth_mib']:6.0f} MiB more than for "
                f"{SMALL} images  {row['kib_on_disk_per_image']:.0f} KiB/image on disk",
                flush=True,
            )
    return {"machine": describe_machine(), "side": SIDE, "channels": 3, "rows": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} images, as a smoke test")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    arguments = parser.parse_args()
    result = run(QUICK if arguments.quick else IMAGES)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
