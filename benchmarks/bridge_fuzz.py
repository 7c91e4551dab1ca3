"""Damaged files of other libraries: ``python -m benchmarks.bridge_fuzz [--count N] [--first N] [--json [PATH]]``

Small files of each format that is read without its library are damaged at random and loaded: bytes and slices, JSON values,
and the pickle inside an archive of torch, with its checksums made good. A file may load, or be refused with a ``UserError``
of one line. Anything else is a finding: another exception, a call of the canary that is planted in pickles, more than
five seconds of processor time, or more memory than 2 GiB above what the process had (Linux: ``RLIMIT_AS``).
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bridge_fixtures import FOLDER, drawn
from scoreexp.bridge import DRUNet, OpenAIUNet
from scoreexp.core.errors import UserError
from scoreexp.runs.model import load

RESULT = Path(__file__).parent / "results" / "bridge_fuzz.json"
SECONDS, BYTES = 5.0, 2 << 30

Files = dict[str, bytes]
"""The files of a model by their names; the first is the one that is loaded, or its folder if that has a ``/``."""


@dataclass
class Report:
    """What became of the files.

    Attributes:
        outcomes: how many were loaded, and how many were refused by each class of error.
        findings: what must not be: the number of the file, its kind and what happened.
        spent: seconds of the processor for each file.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)


class Canary:
    """Would make a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


# ------------------------------------------------------------------------------------------------- intact files


def torch_bytes(value: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def safetensors_bytes(state: dict[str, Tensor]) -> bytes:
    header, body = {}, b""
    for name, tensor in state.items():
        data = tensor.numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def intact(mark: Path) -> dict[str, Files]:
    """A small model of each format; those of pickles hold the canary."""
    originals = json.loads(gzip.decompress((FOLDER / "originals.json.gz").read_bytes()))
    drunet = DRUNet(event_shape=(1, 8, 8), widths=(2, 2, 2, 2), blocks=1).state_dict()
    ffdnet = {
        f"module.intermediate_dncnn.itermediate_dncnn.{2 * i}.weight": torch.zeros(made, taken, 3, 3)
        for i, (made, taken) in enumerate([(4, 5), (4, 4), (4, 4)])
    }
    openai = OpenAIUNet(event_shape=(1, 8, 8), channels=32, multipliers=(1,), blocks=1).state_dict()
    flags = {
        "image_size": 8,
        "num_channels": 32,
        "channel_mult": "1",
        "num_res_blocks": 1,
        "attention_resolutions": "4",
    }
    sde = originals["score_sde vp"]
    averages = {"model": drawn(sde["shapes"]), "ema": {"shadow_params": list(drawn(sde["shapes"]).values())}}
    unet = {
        "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8],
        "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1,
    }  # fmt: skip
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "num_train_timesteps": 1000}
    k = {
        "type": "image_v1", "input_channels": 1, "input_size": [8, 8], "mapping_out": 8, "depths": [1], "channels": [8],
        "self_attn_depths": [False],
    }  # fmt: skip
    azula = {
        "format": "azula", "denoiser": "KarrasDenoiser", "schedule": {"name": "VPSchedule"}, "event_shape": [1, 8, 8],
        "backbone": {"_target_": "scoreexp.networks.MLP"},
    }  # fmt: skip
    canary = Canary(mark)

    def text(value: Any) -> bytes:
        return json.dumps(value).encode()

    return {
        "safetensors": {
            "a.safetensors": safetensors_bytes(drunet),
            "a.json": text({"sigma_range": [0.01, 0.2]}),
        },
        "torch zip": {"a.pth": torch_bytes({**drunet, "hidden": canary})},
        "torch legacy": {"a.pth": torch_bytes({**drunet, "hidden": canary}, zipped=False)},
        "bare pickle": {"a.pth": pickle.dumps({"w": torch.zeros(2), "hidden": canary})},
        "ffdnet": {"a.pth": torch_bytes(ffdnet, zipped=False)},
        "dncnn": {
            "a.pth": torch_bytes({f"{i}.weight": torch.zeros(1, 1, 3, 3) for i in range(3)}),
            "a.json": text({"format": "dncnn", "sigma": 0.1, "padding": "zeros", "eps": 1e-5}),
        },
        "edm": {"a.pkl": gzip.decompress((FOLDER / "edm_ncsnpp.pkl.gz").read_bytes())},
        "guided_diffusion": {
            "a.pt": torch_bytes({**openai, "hidden": canary}),
            "a.json": text({"format": "guided_diffusion", "flags": flags}),
        },
        "score_sde": {"a.pth": torch_bytes(averages), "a.json": text(sde["stated"])},
        "denoising_diffusion_pytorch": {
            "a.pt": torch_bytes(
                {
                    "model": {"alphas_cumprod": torch.ones(3)},
                    "ema": {"ema_model.w": torch.ones(1)},
                    "hidden": canary,
                }
            ),
            "a.json": text({"image_size": 8}),
        },
        "k_diffusion": {
            "a.pth": torch_bytes({"model": drunet, "hidden": canary}),
            "a.json": text({"model": k}),
        },
        "azula": {
            "a.pth": torch_bytes({f"backbone.{key}": w for key, w in drunet.items()}),
            "a.json": text(azula),
        },
        "diffusers": {
            "unet/config.json": text(unet),
            "model_index.json": text({"unet": ["diffusers", "UNet2DModel"]}),
            "scheduler/scheduler_config.json": text(scheduler),
            "unet/diffusion_pytorch_model.safetensors": safetensors_bytes(drunet),
        },
    }


# ------------------------------------------------------------------------------------------------------ damage

NUMBERS = (0, 1, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**63, 2**64 - 1)
OPCODES = (
    b"().0123456789:;<=BCDFGHIJKLMNPQRSTUVX[]abcdeghijlopqrstu}"
    b"\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x90\x91\x94\x95"
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "a", "9" * 5000,
    "../../etc/passwd", "${oc.env:HOME}", [], {}, [0], [[[]]], [1] * 2000, [None], ["x"], {"_target_": "os.system"},
    {"a": {"b": 1}}, "scoreexp.networks.MLP", [2**40, 2**40],
)  # fmt: skip


def damaged_bytes(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """One to four changes: a bit, a byte, an instruction of a pickle, a number, or a slice cut, doubled or foreign."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(found) + 1)
        if rng.random() < 0.5:  # what a reader decides by stands at the ends
            at = min(at, len(found)) if rng.random() < 0.3 else rng.randrange(min(len(found), 600) + 1)
        end = min(len(found), at + rng.choice((1, 2, 8, 40, 400)))
        what = rng.randrange(9)
        if what == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(found):
            found[at] = rng.randrange(256)
        elif what == 2 and at < len(found):
            found[at] = rng.choice(OPCODES)
        elif what == 3:
            packed = struct.pack(rng.choice(("<Q", ">Q")), rng.choice(NUMBERS))
            found[at : at + 8] = packed[: rng.choice((1, 2, 4, 8))]
        elif what == 4:
            del found[at:end]
        elif what == 5:
            found[at:at] = found[at:end]
        elif what == 6:
            del found[at:]
        elif what == 7:
            start = rng.randrange(len(other) + 1)
            found[at:at] = other[start : start + rng.choice((1, 8, 64, 512))]
        else:
            found[at:at] = bytes([rng.choice(OPCODES)])
    return bytes(found)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """A value, a key, or the root exchanged."""
    value = json.loads(data)
    places = list(_places(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not places:
            return json.dumps(rng.choice(ODD)).encode()
        holder, key = rng.choice(places)
        what = rng.randrange(6)
        with contextlib.suppress(LookupError, TypeError):
            if what == 0:
                del holder[key]
            elif what == 1 and isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            else:
                holder[key] = rng.choice(ODD)
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def damaged_archive(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """An archive with right checksums around a damaged member, most often the pickle, or without one, or with one twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as made:
        names = archive.namelist()
        chosen = rng.choice([*(name for name in names if name.endswith("data.pkl")), rng.choice(names)])
        drop, double = rng.random() < 0.05, rng.random() < 0.05
        for name in names:
            held = archive.read(name)
            if name == chosen and drop:
                continue
            if name == chosen and not double:
                held = damaged_bytes(held, rng, other)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a name stands twice
                made.writestr(name, held)
                if name == chosen and double:
                    made.writestr(name, held)
    return out.getvalue()


def damaged(files: Files, rng: random.Random, others: list[bytes]) -> Files:
    """The files with one of them damaged."""
    name = rng.choice(list(files))
    data, other = files[name], rng.choice(others)
    if name.endswith(".json") and rng.random() < 0.8:
        return {**files, name: damaged_json(data, rng)}
    if data[:2] == b"PK" and rng.random() < 0.7:
        return {**files, name: damaged_archive(data, rng, other)}
    return {**files, name: damaged_bytes(data, rng, other)}


# ------------------------------------------------------------------------------------------------------ the run


@contextlib.contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """At most ``more`` bytes above what the process has mapped; where that is not known, no bound."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(
    count: int,
    seed: int = 0,
    first: int = 0,
    seconds: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Damage and load ``count`` files; file number i depends on the seed and i alone.

    Args:
        count: of files.
        seed: of the damage.
        first: number of the first file.
        seconds: of the processor, above which a file is a finding.
        say: is told each finding.
    """
    report = Report()
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings(), bounded_memory(BYTES):
        warnings.simplefilter("ignore")
        mark = Path(home, "executed")
        models = intact(mark)
        others = [next(iter(files.values())) for files in models.values()]
        for number in range(first, first + count):
            rng = random.Random(f"{seed} {number}")
            kind = list(models)[number % len(models)]
            folder = Path(home, "model")
            _write(damaged(models[kind], rng, others), folder)
            first = next(iter(models[kind]))
            problem = _loaded(folder if "/" in first else folder / first, report)
            if mark.exists():
                mark.unlink()
                problem = "the canary was called"
            if not problem and report.spent[-1] > seconds:
                problem = f"took {report.spent[-1]:.1f} s"
            if problem:
                report.findings.append(f"{number} {kind}: {problem}")
                say(report.findings[-1])
    return report


def _write(files: Files, folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for old in [path for path in folder.rglob("*") if path.is_file()]:
        if old.relative_to(folder).as_posix() not in files:
            old.unlink()


def _loaded(path: Path, report: Report) -> str | None:
    """What must not be, if it is."""
    started, problem = time.process_time(), None
    try:
        load(path)
        report.outcomes["loaded"] += 1
    except UserError as error:
        report.outcomes[type(error).__name__] += 1
        if "\n" in str(error):
            problem = f"a message of several lines: {str(error)[:200]!r}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {str(error)[:160]} ({where.filename}:{where.lineno})"
    report.spent.append(time.process_time() - started)
    return problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file: to go on")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULT)
    options = parser.parse_args()
    report = fuzz(options.count, options.seed, options.first, SECONDS, lambda line: print(line, flush=True))
    print(
        f"{options.count} files: {dict(report.outcomes)}, {len(report.findings)} findings, slowest {max(report.spent):.2f} s"
    )
    if options.json:
        found = {
            "count": options.count,
            "first": options.first,
            "seed": options.seed,
            "slowest_seconds": round(max(report.spent), 2),
            "outcomes": dict(report.outcomes),
            "findings": report.findings,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
