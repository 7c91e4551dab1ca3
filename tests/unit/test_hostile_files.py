"""Readers of files meet damaged and hostile ones: they succeed or raise their documented error, soon and in little memory.

Inputs are mutations of small files in the true formats, inside their checksums and compression too, and random bytes.
``make test-slow`` throws more than 10,000.
"""

import contextlib
import functools
import gzip
import io
import json
import logging
import math
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import scoreexp
from scoreexp.api.export import to_torch_export
from scoreexp.app.config_check import check_config
from scoreexp.app.jobs import Job, is_done, stored_status
from scoreexp.bridge.diffusers import convention_of
from scoreexp.bridge.exported import checked_program
from scoreexp.bridge.inert import read_weights
from scoreexp.bridge.recognise import read_object
from scoreexp.core.errors import UserError
from scoreexp.data.cache import Block, Contents, prepared, verify
from scoreexp.data.celeba import _partition
from scoreexp.data.cifar10 import read_batches
from scoreexp.data.corpus import FileTree
from scoreexp.data.errors import DataError
from scoreexp.data.folder import Folder
from scoreexp.data.image_io import ImageError, read_image
from scoreexp.data.mnist import read_idx
from scoreexp.data.pictures import decode_rgb
from scoreexp.embedding.cache import read_field, write_field
from scoreexp.lit.checkpoint import CheckpointError
from scoreexp.lit.csv_logger import CSVLogger
from scoreexp.metrics import PixelFeatures
from scoreexp.metrics.reference import make_reference
from scoreexp.numerics.fokker_planck import ScoreField
from scoreexp.runs.model import build_denoiser, model_record
from scoreexp.runs.reporting.reading import read_run
from scoreexp.runs.reporting.settings import method_settings
from scoreexp.system.json_files import read_json

INPUTS = 10_000
CPU_SECONDS = 20
MEMORY = 300 << 20  # bytes that all inputs together may add to the largest size of the process

# ------------------------------------------------------------------------------------------ mutations

NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0xFF,
    0xFFFF,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WORDS = (
    b"../",
    b"/etc/passwd",
    b"${a}",
    b"*a",
    b"[" * 300,
    b"nan",
    b"-1",
    b"\0",
    b"1e999",
    b"{}",
    b"\xff\xfe",
    b"null",
)
LAYOUTS = (">B", "<H", ">H", "<I", ">I", "<Q", ">Q")


def mutated(data: bytes, other: bytes, op: str, a: int, b: int) -> bytes:
    """``data`` after one change; a names the place, b what happens there."""
    place = a % (len(data) + 1)
    if op == "cut":
        return data[:place]
    if op == "flip" and data:
        changed = bytearray(data)
        changed[place % len(data)] ^= 1 << b % 8
        return bytes(changed)
    if op == "number":
        if b & 1:  # a header or the end
            place = place % 160 if b & 2 else max(0, len(data) - place % 160)
        field = struct.pack(layout := LAYOUTS[b % 7], NUMBERS[b // 7 % 14] % 256 ** struct.calcsize(layout))
        return data[:place] + field + data[place + len(field) :]
    if op == "word":
        word = WORDS[b % len(WORDS)]
        return data[:place] + word + data[place + len(word) * (b % 2) :]
    if op == "splice":
        start = b % (len(other) + 1)
        return data[:place] + other[start : start + 64] + data[place + 64 * (a % 2) :]
    if op == "delete":
        return data[:place] + data[place + 1 + b % 32 :]
    if op == "repeat":
        return data[:place] + data[max(0, place - 1 - b % 64) : place] * (1 + b % 5) + data[place:]
    return random.Random(a * 2**32 + b).randbytes(b % 300)


OPS = ("cut", "flip", "number", "number", "word", "splice", "delete", "repeat", "random")
CHANGES = st.lists(
    st.tuples(st.sampled_from(OPS), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=3,
)


class Layer(NamedTuple):
    """How to reach what a format protects: the part that is changed, and the whole file around it."""

    open: Callable[[bytes, int], bytes]
    close: Callable[[bytes, bytes, int], bytes]


PLAIN = Layer(lambda whole, _: whole, lambda whole, part, _: part)
GZIP = Layer(lambda whole, _: gzip.decompress(whole), lambda whole, part, _: gzip.compress(part, 1))


def _member(whole: bytes, which: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return archive.read(archive.namelist()[which % len(archive.namelist())])


def _with_member(whole: bytes, part: bytes, which: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive, zipfile.ZipFile(buffer, "w") as copy:
        names = archive.namelist()
        for name in names:
            changed = name == names[which % len(names)]
            copy.writestr(zipfile.ZipInfo(name), part if changed else archive.read(name))
    return buffer.getvalue()


ZIP = Layer(_member, _with_member)


def _png_chunk(whole: bytes, which: int) -> tuple[int, int]:
    chunks, place = [], 8
    while place + 12 <= len(whole):
        (length,) = struct.unpack(">I", whole[place : place + 4])
        chunks.append((place, length))
        place += 12 + length
    return chunks[which % len(chunks)]


def _png_data(whole: bytes, which: int) -> bytes:
    place, length = _png_chunk(whole, which)
    return whole[place + 8 : place + 8 + length]


def _png_whole(whole: bytes, part: bytes, which: int) -> bytes:
    place, length = _png_chunk(whole, which)
    name = whole[place + 4 : place + 8]
    chunk = struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    return whole[:place] + chunk + whole[place + 12 + length :]


PNG = Layer(_png_data, _png_whole)


def _description(whole: bytes, _: int) -> bytes:
    return whole[struct.unpack("<Q", whole[16:24])[0] :]


def _described(whole: bytes, part: bytes, _: int) -> bytes:
    (position,) = struct.unpack("<Q", whole[16:24])
    return whole[:24] + struct.pack("<QQ", len(part), zlib.crc32(part)) + whole[40:position] + part


DESCRIPTION = Layer(_description, _described)


def _tar_headers_repaired(whole: bytes, part: bytes, _: int) -> bytes:
    """Each block that looks like a header gets the checksum of its content."""
    content = bytearray(part)
    for start in range(0, len(content) - 511, 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    return gzip.compress(bytes(content), 1)


TAR = Layer(lambda whole, _: gzip.decompress(whole), _tar_headers_repaired)

# ------------------------------------------------------------------------------- valid files and readers


class Reader(NamedTuple):
    seeds: list[bytes]
    layers: tuple[Layer, ...]
    read: Callable[[Path], object]
    documented: tuple[type[Exception], ...]
    name: str = "file"


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(array: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def deep_tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="rgb", **options)
    return buffer.getvalue()


def pictures() -> list[bytes]:
    rgb, deep = pixels(9, 7, 3), pixels(9, 7, 3).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112], exif[305] = 6, "seed"
    plain = [saved(rgb, kind) for kind in ("BMP", "GIF")]
    tagged = [saved(rgb, kind, exif=exif, icc_profile=b"profile") for kind in ("JPEG", "TIFF", "WEBP", "PNG")]
    tiffs = [
        deep_tiff(deep),
        deep_tiff(deep, compression="zlib", rowsperstrip=2),
        deep_tiff((rgb / 255).astype(np.float32), compression="zlib", tile=(16, 16)),
        saved(rgb, "TIFF", compression="tiff_lzw"),
    ]
    palette = Image.fromarray(rgb).quantize(4)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    return [*plain, *tagged, *tiffs, buffer.getvalue(), saved(deep[..., 0], "PNG")]


def idx() -> bytes:
    return bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 5, 4) + pixels(2, 5, 4).tobytes()


def batch(protocol: int) -> bytes:
    return pickle.dumps({b"data": pixels(2, 3072), b"labels": [3, 9], b"filenames": [b"a", b"b"]}, protocol)


def tar(files: dict[str, bytes], kind: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=kind, compresslevel=1) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def read_tree(path: Path) -> None:
    tree = FileTree(path)
    for name in tree.names()[:4]:
        with contextlib.suppress(DataError):  # of one file; the others may be whole
            tree.read(name)


def through_file(write: Callable[[Path], object], suffix: str = "") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        write(path)
        return path.read_bytes()


def cache_file(path: Path) -> None:
    block = Block(pixels(3, 1, 4, 4), np.array([0, 1, 2]), ("a", "b", "c"), ("d is damaged",))
    prepared(path, "recipe", lambda: Contents(4, iter([block])), allow_skipped=True)


def read_cache(path: Path) -> None:
    prepared(path, "recipe", lambda: pytest.fail("the file is there"), allow_skipped=True)
    verify(path)


def field() -> ScoreField:
    return ScoreField(
        times=np.array([0.0, 1.0]),
        log_p=np.zeros((2, 1, 4, 4), np.float32),
        score=np.zeros((2, 1, 2, 4, 4), np.float32),
        kept=np.array([0, 3]),
        solver="picard",
        boundary="neumann",
        tol=1e-6,
        step_times=np.array([0.3, 0.6, 1.0]),
        iterations=np.ones((3, 1), np.int64),
        residuals=np.zeros((3, 5, 1)),
        linear_iterations=np.ones((3, 1), np.int64),
        seconds={"solve": 1.0},
    )


def reference(cache: Path) -> object:
    images = torch.from_numpy(pixels(4, 3, 4, 4))
    return make_reference(
        lambda: [images], PixelFeatures(2), n=4, split="train", recipe="r", keep_features=True, cache=cache
    )


def reference_file() -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        reference(Path(folder))
        (path,) = Path(folder).glob("*.npz")
        return path.name, path.read_bytes()


def model_config() -> dict:
    return {
        "network": {"_target_": "scoreexp.networks.MLP", "width": 8, "blocks": 1},
        "precond": {"_target_": "scoreexp.denoisers.preconditioning.EpsPrediction"},
        "schedule": {"_target_": "scoreexp.schedules.VP"},
    }


def checkpoint(change: Callable[[dict], object] = lambda c: None) -> bytes:
    record = model_record(model_config(), (2,), None)
    content = {"scoreexp": record, "global_step": 3, "loops": {"a": [1, 2.5, None, True]}}
    content["state_dict"] = {f"denoiser.{k}": v for k, v in build_denoiser(record).state_dict().items()}
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def read_run_file(path: Path) -> None:
    run = read_run(path.parent)
    method_settings(run.config)
    assert all(isinstance(problem, str) for problem in check_config(run.config))


CONFIG = """name: a
seed: 3
network: {_target_: scoreexp.networks.MLP, width: 8, depth: [1, 2]}
schedule:
  _target_: scoreexp.schedules.VP
  beta_max: 20.0
lr: 1e-4
run_dir: runs/x
"""
ROWS = b"step,loss,val/psnr\n1,0.5,\n2,0.25,20.5\n3,nan,21\n"


SCHEDULERS = (
    {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0008,
        "timestep_spacing": "trailing",
    },
    {"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "prediction_type": "v_prediction"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000},
)


def foreign(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    state = {
        "model": {"a": torch.arange(6).reshape(2, 3).T, "b": torch.ones(2)},
        "step": 3,
        "names": ["x", (1, None)],
    }
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def safetensors() -> bytes:
    header = b'{"w": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}}'
    return struct.pack("<Q", len(header)) + header + bytes(8)


def edm_pickle() -> bytes:
    folder = Path(__file__).parent.parent / "fixtures" / "bridge"
    return gzip.decompress((folder / "edm_ddpmpp.pkl.gz").read_bytes())


def denoiser() -> bytes:
    shapes = {"0.weight": (4, 5, 3, 3), "2.weight": (4, 4, 3, 3), "4.weight": (4, 4, 3, 3)}
    buffer = io.BytesIO()
    torch.save({f"intermediate_dncnn.{name}": torch.zeros(shape) for name, shape in shapes.items()}, buffer)
    return buffer.getvalue()


def program_file() -> bytes:
    record = model_record(
        {**model_config(), "network": {"_target_": "scoreexp.networks.MLP", "width": 8, "blocks": 1}},
        (2,),
        None,
    )
    return through_file(lambda path: to_torch_export(build_denoiser(record), record, path), ".pt2")


@functools.cache
def readers() -> dict[str, Reader]:
    small = pixels(9, 7, 3)
    exported = {"cifar-10-batches-py/test_batch": batch(2), "cifar-10-batches-py/readme": b"text"}
    binary = {"b/test_batch.bin": b"\x01" + bytes(3072)}
    tree = {"thumbs/1.png": saved(small, "PNG"), "thumbs/a/2.png": b"abc" * 50}
    key = "0" * 32
    name, stored = reference_file()
    whole = checkpoint()
    return {
        "image": Reader(pictures(), (PLAIN, PNG), lambda p: read_image(p, max_pixels=2**16), (ImageError,)),
        "archived image": Reader(
            [saved(small, "PNG"), saved(small, "JPEG")],
            (PLAIN, PNG),
            lambda p: decode_rgb(p.read_bytes(), p),
            (DataError,),
        ),
        "surveyed folder": Reader(
            pictures(), (PLAIN, PNG), lambda p: Folder(root=str(p.parent)).survey(), (DataError,), "1.png"
        ),
        "idx": Reader([idx(), gzip.compress(idx())], (PLAIN, GZIP), lambda p: read_idx(p, 3), (DataError,)),
        "tar": Reader(
            [tar(exported), tar(binary), tar(exported, tarfile.PAX_FORMAT)],
            (PLAIN, TAR),
            lambda p: list(read_batches(p, ["test_batch"])),
            (DataError,),
        ),
        "cifar pickle": Reader(
            [batch(2), batch(4)],
            (PLAIN,),
            lambda p: list(read_batches(p.parent, ["test_batch"])),
            (DataError,),
            "test_batch",
        ),
        "zip": Reader(
            [zipped(tree), zipped(tree, zipfile.ZIP_DEFLATED)], (PLAIN, ZIP), read_tree, (DataError,)
        ),
        "partition": Reader(
            [b"000001.jpg 0\n2.jpg 1\n"], (PLAIN,), lambda p: _partition(p, "train"), (DataError,)
        ),
        "cache": Reader(
            [through_file(cache_file, ".cache")], (PLAIN, DESCRIPTION), read_cache, (DataError,), "a.cache"
        ),
        "score cache": Reader(
            [through_file(lambda p: write_field(p, key, field()), ".npz")],
            (PLAIN, ZIP),
            lambda p: read_field(p, key),
            (DataError,),
        ),
        "reference": Reader([stored], (PLAIN, ZIP), lambda p: reference(p.parent), (), name),
        "checkpoint": Reader([whole], (PLAIN, ZIP, ZIP), scoreexp.load, (CheckpointError,)),
        "config": Reader([CONFIG.encode()], (PLAIN,), read_run_file, (UserError,), "config.yaml"),
        "rows": Reader([ROWS], (PLAIN,), lambda p: CSVLogger(p).continue_from(2), (UserError,)),
        "run": Reader([ROWS], (PLAIN,), lambda p: read_run(p.parent), (UserError,), "metrics.csv"),
        "foreign weights": Reader(
            [foreign(True), foreign(False), safetensors()], (PLAIN, ZIP), read_weights, (UserError,)
        ),
        "foreign pickle": Reader([edm_pickle()], (PLAIN,), scoreexp.load, (UserError,), "net.pkl"),
        "foreign denoiser": Reader([denoiser()], (PLAIN, ZIP), scoreexp.load, (UserError,), "net.pth"),
        "foreign program": Reader(
            [program_file()], (PLAIN, ZIP, ZIP), checked_program, (UserError,), "net.pt2"
        ),
        "foreign scheduler": Reader(
            [json.dumps(scheduler).encode() for scheduler in SCHEDULERS],
            (PLAIN,),
            lambda p: convention_of(read_object(p), p, {}),
            (UserError,),
            "scheduler_config.json",
        ),
        "json": Reader([b'{"status": "done", "a": [1, {"b": null}]}'], (PLAIN,), read_json, (UserError,)),
    }


NAMES = (
    *(
        "image",
        "archived image",
        "surveyed folder",
        "idx",
        "tar",
        "cifar pickle",
        "zip",
        "partition",
        "cache",
    ),
    *("score cache", "reference", "checkpoint", "config", "rows", "run", "json"),
)
FOREIGN = ("foreign weights", "foreign pickle", "foreign denoiser", "foreign program", "foreign scheduler")


class Hang(BaseException):
    """Not an Exception, which readers may turn into their own."""


def _hang(*_: object) -> None:
    raise Hang(f"more than {CPU_SECONDS} s of processor time")


@pytest.fixture
def quiet():
    """No messages of the decoders; a limit of processor time, which a busy machine does not use up sooner."""
    logging.disable(logging.CRITICAL)
    before = signal.signal(signal.SIGPROF, _hang)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
    logging.disable(logging.NOTSET)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def confront(reader: Reader, content: bytes) -> None:
    """Read ``content``: a documented error of one line, or none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.name
        path.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            reader.read(path)
        except reader.documented as error:
            message = str(error)
            if "\n" in message:
                pytest.fail(f"several lines: {message!r}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def throw(name: str, count: int) -> None:
    reader, start = readers()[name], peak()
    thrown = 0

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(which=st.integers(0, 2**16), layer=st.sampled_from(reader.layers), changes=CHANGES)
    def run(which: int, layer: Layer, changes: list[tuple[str, int, int]]) -> None:
        nonlocal thrown
        seed = reader.seeds[which % len(reader.seeds)]
        try:
            part = layer.open(seed, which)
        except (
            OSError,
            IndexError,
            ZeroDivisionError,
            struct.error,
            zipfile.BadZipFile,
        ):  # a seed without that layer
            layer, part = PLAIN, seed
        for change in changes:
            part = mutated(part, reader.seeds[(which + 1) % len(reader.seeds)], *change)
        confront(reader, layer.close(seed, part, which))
        thrown += 1
        assert peak() - start < MEMORY

    run()
    assert thrown >= count


@pytest.mark.parametrize("name", NAMES + FOREIGN)
def test_valid_files_are_read(name, quiet):
    for content in readers()[name].seeds:
        confront(readers()[name]._replace(documented=()), content)


@pytest.mark.parametrize("name", NAMES + FOREIGN)
def test_a_few_hostile_files(name, quiet):
    throw(name, 25)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_many_hostile_files(name, quiet):
    throw(name, math.ceil(INPUTS / len(NAMES)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FOREIGN)
def test_many_hostile_models_of_other_libraries(name, quiet):
    throw(name, math.ceil(INPUTS / len(FOREIGN)))


# ---------------------------------------------------------------- what was once accepted, or ended in a traceback


def test_a_checkpoint_names_no_function_through_a_module_of_the_package(tmp_path, quiet):
    targets = [
        ("scoreexp.runs.directory.subprocess.getoutput", "outside the trusted"),
        ("scoreexp.networks.layers.torch.load", "outside the trusted"),
        ("scoreexp.metrics.ExportedExtractor", "outside the trusted"),
        ("scoreexp.schedules.${oc.env:HOME}", "interpolations"),
    ]
    for target, reason in targets:
        path = tmp_path / "evil.ckpt"
        path.write_bytes(
            checkpoint(lambda c, t=target: c["scoreexp"]["config"]["schedule"].update(_target_=t))
        )
        with pytest.raises(CheckpointError, match=reason):
            scoreexp.load(path)


def test_an_interpolation_in_a_checkpoint_is_not_resolved(tmp_path, quiet):
    path = tmp_path / "evil.ckpt"
    hidden = "${oc.create:{_target_:subprocess.getoutput,cmd:'touch executed'}}"
    path.write_bytes(checkpoint(lambda c: c["scoreexp"]["config"]["schedule"].update(beta_max=hidden)))
    with pytest.raises(CheckpointError, match="interpolations"):
        scoreexp.load(path)


def test_trusted_packages_answer_for_their_own_names_only(tmp_path, quiet):
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(
        checkpoint(lambda c: c["scoreexp"]["config"].update(schedule={"_target_": "tarfile.os.getcwd"}))
    )
    with pytest.raises(CheckpointError, match="outside the trusted"):
        scoreexp.load(path, trust=["tarfile"])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["scoreexp"].update(config=[1]),
        lambda c: c["scoreexp"].update(event_shape=None),
        lambda c: c["scoreexp"]["config"]["network"].update(width=2**40),
        lambda c: c.update(state_dict=[1]),
        lambda c: c["state_dict"].update({3: 4}),
        lambda c: c["scoreexp"]["config"]["network"].update(itself=c["scoreexp"]["config"]),
        lambda c: c["scoreexp"].update(
            event_shape=[3, 2**17, 2**17],
            config={**model_config(), "network": {"_target_": "scoreexp.networks.ExactPosteriorMean"}},
        ),
    ],
)
def test_a_crafted_checkpoint_is_one_line_and_takes_no_memory(tmp_path, quiet, change):
    before, path = peak(), tmp_path / "crafted.ckpt"
    path.write_bytes(checkpoint(change))
    with pytest.raises(CheckpointError) as error:
        scoreexp.load(path)
    assert "\n" not in str(error.value)
    assert peak() - before < MEMORY


def test_checkpoints_and_arrays_that_unpack_to_more_than_they_are(tmp_path, quiet):
    before = peak()
    whole = checkpoint()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in files if name.endswith("data.pkl"))
    size = struct.pack("<i", 2**31 - 1)
    bombs = {
        "compressed or overlap": zipped({**files, "a/data/99": bytes(2**20)}, zipfile.ZIP_DEFLATED),
        "holds a bytearray": zipped(
            {**files, pickled: b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\nJ" + size + b"\x85Rs."}
        ),
    }
    for reason, content in bombs.items():
        (tmp_path / "bomb.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=reason):
            scoreexp.load(tmp_path / "bomb.ckpt")
    for content in (zipped({"description.npy": bytes(2**20)}, zipfile.ZIP_DEFLATED), b"\x93NUMPY\x01\x00"):
        (tmp_path / "bomb.npz").write_bytes(content)
        with pytest.raises(DataError, match="damaged or not one"):
            read_field(tmp_path / "bomb.npz", "0" * 32)
    assert peak() - before < MEMORY


def gzip_of_zeros(mebibytes: int) -> bytes:
    return gzip.compress(bytes(1 << 20)) * mebibytes


def test_gzip_bombs_are_not_unpacked(tmp_path, quiet):
    before, path = peak(), tmp_path / "bomb"
    path.write_bytes(gzip_of_zeros(80))
    with pytest.raises(DataError, match="holds more than"):
        read_idx(path, 3)
    info = tarfile.TarInfo("test_batch")
    info.size = 2**40
    header = info.tobuf()
    path.write_bytes(gzip.compress(header) + gzip_of_zeros(64))
    with pytest.raises(DataError, match=r"has 1099511627776 bytes"):
        list(read_batches(path, ["test_batch"]))
    info = tarfile.TarInfo("long")  # the name of the next member, which tarfile reads into memory
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**32
    path.write_bytes(gzip.compress(info.tobuf()) + gzip_of_zeros(560))
    with pytest.raises(DataError, match="unpacks to more than"):
        list(read_batches(path, ["test_batch"]))
    assert peak() - before < 2 * MEMORY


@pytest.mark.parametrize("name", ["/etc/test_batch", "../test_batch", "a/../../test_batch", "..\\test_batch"])
def test_archives_with_paths_outside_them_are_refused(tmp_path, quiet, name):
    (tmp_path / "a.tar.gz").write_bytes(tar({name: batch(2)}))
    with pytest.raises(DataError, match="path outside it"):
        list(read_batches(tmp_path / "a.tar.gz", ["test_batch"]))
    (tmp_path / "a.zip").write_bytes(zipped({name: b"a"}))
    with pytest.raises(DataError, match="a path outside it"):
        FileTree(tmp_path / "a.zip")
    with pytest.raises(DataError, match="a path outside it"):
        FileTree(tmp_path).read(name)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused(tmp_path, quiet, kind):
    info = tarfile.TarInfo("a/test_batch")
    info.type, info.linkname = kind, "elsewhere"
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(1024)))
    with pytest.raises(DataError, match="a link, device or path"):
        list(read_batches(tmp_path / "a.tar.gz", ["test_batch"]))


def test_a_zip_member_is_read_to_its_stated_size_only(tmp_path, quiet):
    before = peak()
    content = bytearray(zipped({"a": bytes(1 << 27)}, zipfile.ZIP_DEFLATED))
    place = content.rindex(b"PK\x01\x02")
    (tmp_path / "bomb.zip").write_bytes(content)
    with pytest.raises(DataError, match="more than any image"):
        FileTree(tmp_path / "bomb.zip").read("a")
    content[place + 24 : place + 28] = struct.pack("<I", 100)  # the directory says 100 bytes
    (tmp_path / "bomb.zip").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        FileTree(tmp_path / "bomb.zip").read("a")
    assert peak() - before < 2 * MEMORY


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}(U\x04data"
        + b"r"
        + struct.pack("<I", 2**28)
        + b"K\x01U\x06labels]u.",  # a far place of the memo
        b"\x80\x05" + b"\x96" + struct.pack("<Q", 2**34) + b".",  # a bytearray of any size
        b"\x80\x02" + b"](K\x01K\x01e" + b"q\x00" + b"".join(b"](h\x00h\x00eq\x00" for _ in range(40)) + b".",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}X\x08\x00\x00\x00__dict__}s\x86b.",  # a state for a function
    ],
)
def test_pickles_that_would_take_memory_or_change_functions(tmp_path, quiet, content):
    before = peak()
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="download it again"):
        list(read_batches(tmp_path, ["test_batch"]))
    assert peak() - before < MEMORY


def test_labels_of_any_other_kind_are_refused(tmp_path, quiet):
    for label in ([[1]], 10, True, "a", 2**70, None):
        content = pickle.dumps({b"data": pixels(1, 3072), b"labels": [label]}, 2)
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match=r"not 0\.\.9"):
            list(read_batches(tmp_path, ["test_batch"]))


def test_a_prepared_file_with_another_length_or_description(tmp_path, quiet):
    before = peak()
    whole = through_file(cache_file, ".cache")
    described = json.loads(_description(whole, 0))
    wrong = [
        {"shape": [3, 1, 4, 2**40]},
        {"shape": [-3, 1, 4, -4]},
        {"shape": 3},
        {"checksums": [1, 2]},
        {"labels": [1, 2]},
        {"labels": "abc"},
        {"names": ["a"]},
        {"recipe": None},
    ]
    parts = [json.dumps({**described, **change}).encode() for change in wrong]
    files = [_described(whole, part, 0) for part in [*parts, b"[" * 10**5, b"[]", b"{}", b"\xff"]]
    for content in [*files, whole[:24] + struct.pack("<Q", 2**62) + whole[32:], whole + b"\0"]:
        path = tmp_path / "a.cache"
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            read_cache(path)
    assert peak() - before < MEMORY


def test_a_score_field_of_other_shapes_or_types(tmp_path, quiet):
    for change in (
        {"score": np.zeros((2, 4, 4))},
        {"kept": np.zeros(2)},
        {"log_p": np.full((2, 1, 4, 4), "a")},
    ):
        content = through_file(lambda p: write_field(p, "0" * 32, field()), ".npz")
        with np.load(io.BytesIO(content)) as archive:
            arrays = {**archive, **change}
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match="damaged or not one"):
            read_field(tmp_path / "a.npz", "0" * 32)


def test_picture_bombs_and_formats_that_run_programs(tmp_path, quiet):
    before = peak()
    with pytest.raises(DataError, match="2100 x 2100 pixels"):
        decode_rgb(saved(np.zeros((2100, 2100), np.uint8), "PNG"), "a")
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match="not an image"):
        decode_rgb(program, "a")
    (tmp_path / "a.png").write_bytes(program)
    assert not Folder(root=str(tmp_path)).survey().sizes
    flat = np.zeros((64, 64, 3), np.uint16)
    strip = zlib.compress(bytes(1 << 26))  # where 24,576 bytes belong
    buffer = io.BytesIO(deep_tiff(flat, compression="zlib"))
    with tifffile.TiffFile(buffer) as file:
        tags = file.pages[0].tags
        offset, length = tags["StripOffsets"].valueoffset, tags["StripByteCounts"].valueoffset
        kinds = [tags[name].dtype for name in ("StripOffsets", "StripByteCounts")]
    content = bytearray(buffer.getvalue()) + strip
    for place, kind, value in zip((offset, length), kinds, (len(buffer.getvalue()), len(strip))):
        field = struct.pack("<H" if kind == 3 else "<I", value % (2**16 if kind == 3 else 2**32))
        content[place : place + len(field)] = field
    (tmp_path / "bomb.tif").write_bytes(content)
    assert kinds == [4, 4] or len(strip) < 2**16
    with pytest.raises(ImageError, match=r"more than its size says|damaged"):
        read_image(tmp_path / "bomb.tif")
    assert peak() - before < 2 * MEMORY


def test_a_pipe_is_not_waited_for(tmp_path, quiet):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a device or pipe"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: &a [1, 1]\nb: [*a, *a]\n"),
        ("config.yaml", "[" * 10**5),
        ("config.yaml", "- 1\n"),
        ("config.yaml", "seed: a\n"),
        ("config.yaml", "a: ['\n"),
        ("metrics.csv", "step,loss\n1,abc\n"),
        ("metrics.json", "[" * 10**5),
        ("status.json", "[1]"),
    ],
)
def test_damaged_run_folders_are_one_line(tmp_path, quiet, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name) as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["loss\n1\n", "step,loss\n1,a\n", "step,a\n" + "9" * 5000 + ",1\n", "step\n²\n"]
)
def test_damaged_tables_of_a_resumed_run_are_one_line(tmp_path, quiet, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        CSVLogger(tmp_path / "metrics.csv").continue_from(5)


def test_a_status_without_its_entries_is_not_done(tmp_path, quiet):
    job = Job("a", "scoreexp.train", (), tmp_path)
    (tmp_path / "status.json").write_text('{"status": "done"}')
    assert not is_done(job)
    assert stored_status(tmp_path).status == "done"
