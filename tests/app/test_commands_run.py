"""The commands of the README and of docs/ run as they stand there, on pictures of 24 pixels and models of two steps.

Training is described only (``dry_run=true``), but for runs that a later command of the page takes up. What takes minutes
however it is shortened, and what needs files or packages that are not here, is composed and checked by ``test_docs`` alone.
"""

import importlib.util
import re
import shlex
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import tifffile
from command_lines import run_module, shown_commands
from conftest import composed
from PIL import Image

from scoreexp.app.commands.train import train

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

TOP = Path(__file__).parents[2]
PAGES = [path for path in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))) if path.is_file()]

# Parts of commands that are not run, and why.
NOT_RUN = {
    "scoreexp.train -m": "a sweep takes minutes",
    "scoreexp.compare sweep=": "trainings take minutes",
    "scoreexp.compare 'experiments=": "trainings take minutes",
    "sampler=auto": "fitting a solver takes half a minute",
    ",zs_n2n]": "its 2000 steps take minutes",
    "download=true": "a connection",
    "metrics=[fid": "the Inception weights",
    "ckpt=ddpm-cat-256": "a model of diffusers",
    "to=diffusers": "the package diffusers",
    "ckpt=ffdnet_weights": "weights of FFDNet",
    "ckpt=[ffdnet_weights": "weights of FFDNet",
    "ckpt=model-10.pt": "a model of denoising-diffusion-pytorch",
    "in=network-snapshot.pkl": "a model of EDM",
    "noise.proxy.path": "a calibrated sensor",
}
MISSING = (
    "cifar10",
    "celeba",
    "faces64",
    "ffhq",
    "experiment=mnist",
)  # data sets that are not here: such a command says where to get them

# What makes a command short: given last, where the value of a key that counts is.
SHORT = {
    "compare": ["run_dir=compared"],
    "compress": ["n=4", "measured_on=2"],
    "denoise": ["overwrite=true"],
    "diagnose": ["n=4", "samples=4", "levels=[0.5]"],
    "evaluate": ["n=4"],
    "restore": ["overwrite=true"],
    "sample": ["n=1"],
}
SMALL = [
    "network.channels=16",
    "network.multipliers=[1,2]",
    "network.blocks=1",
    "network.attention_resolutions=[]",
]
FITTED = ("filter2noise", "mid", "noiser", "zs_n2n")  # restorers that take steps for each picture


def shortened(name: str, words: list[str]) -> list[str]:
    """What is added to a command."""
    keys = {word.partition("=")[0] for word in words}
    if name == "train" and not {"--help", "--cfg"} & keys:
        network = SMALL if "init_from" in keys else []
        return [*network, *(["debug=fast", "trainer.max_steps=2"] if "run_dir" in keys else ["dry_run=true"])]
    fewer = [f"{key}={value}" for key, value in {"nfe": 2, "seconds": 0.1}.items() if key in keys]
    steps = ["restorer.steps=2"] * any(f"restorer={restorer}" in words for restorer in FITTED)
    return SHORT.get(name, []) + fewer + steps


@pytest.fixture(scope="module")
def run_for(tmp_path_factory):
    """The run that a command is for: trained for two steps where it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")
    write_mnist(folder / "mnist")
    digits = [
        "data=mnist",
        f"data.root={folder / 'mnist'}",
        "data.size=28",
        "data.classes=true",
        "data.num_val=2",
    ]
    recipes = {
        "ddgan": ["experiment=swiss_roll_ddgan", "trainer.val_check_interval=2"],
        "border=valid": ["experiment=photo32_ours", *SMALL, "sampler.grid.steps=2"],
        "langevin": ["experiment=photo32_score_cnn", "data.size=16"],
        "label": [
            "experiment=photo32_ddpm",
            *SMALL,
            *digits,
            "model.label_dropout=0.1",
            "sampler.grid.steps=2",
        ],
        "usual": ["experiment=photo32_ddpm", *SMALL, "data.size=16", "sampler.grid.steps=2"],
    }

    def run(line: str) -> Path:
        is_labelled = re.search(r"\blabel=|guidance=|editor=", line)
        name = next((name for name in recipes if name in line), "label" if is_labelled else "usual")
        path = folder / re.sub(r"\W", "_", name)
        if not path.exists():
            words = [*recipes[name], "trainer.max_steps=2", "trainer.accelerator=cpu", f"run_dir={path}"]
            train(composed("train", *words))
        return path

    return run


def write_mnist(root: Path) -> None:
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for part in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (20, 28, 28)), np.arange(20) % 10
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
            (root / f"{part}-{kind}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())


def write_files(folder: Path, page: Path) -> None:
    """The files that the commands of a page name."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:24, :24] / 24
    scene = np.stack([rows, columns, np.cos(9 * rows * columns)], axis=-1) * 0.5 + 0.25
    photo = Image.fromarray(np.uint8(255 * np.clip(scene + rng.normal(0, 0.1, scene.shape), 0, 1)))
    for name in (
        *("noisy.png", "photo.png", "scratched.png", "clean.png", "small.png", "blurred.png", "dark.png"),
        *("scan.png", "counts.tif", "raw.tif"),
        *(f"{part}/{name}.png" for part in ("clean", "FRAMES") for name in "abc"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        photo.save(folder / name)
    for name in ("my.jpg", *(f"images/{name}.png" for name in "abc")):  # of what is reduced to 64 pixels
        (folder / name).parent.mkdir(exist_ok=True)
        photo.resize((64, 64)).save(folder / name)
    (folder / "NOISY").mkdir()
    for name in "abc":  # of what is cut into squares of up to 160 pixels
        photo.resize((160, 160)).save(folder / "NOISY" / f"{name}.png")
    for name in ("one.png", "two.png", "three.png", "eight.png"):
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(folder / name)
    Image.fromarray(np.uint8(255 * (rng.random((24, 24)) > 0.2))).save(folder / "holes.png")
    Image.fromarray(np.uint8(255 * (np.arange(576).reshape(24, 24) != 300))).save(folder / "mask.png")
    Image.fromarray(np.uint8([[16, 32, 16], [32, 64, 32], [16, 32, 16]])).save(folder / "kernel.png")
    cube = np.float32(0.5 + 0.1 * rng.standard_normal((8, 24, 24)))
    tifffile.imwrite(folder / "cube.tif", cube, photometric="minisblack")
    tifffile.imwrite(folder / "stack.tif", np.uint8(255 * cube.clip(0, 1)), photometric="minisblack")
    np.save(folder / "cube.npy", cube)
    for name in ("CLEAN", "NOISY"):
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / "cube.npy", np.tile(cube, (1, 4, 4)))
    np.save(folder / "counts.npy", cube[0])
    for name in ("noisy.wav", "clean.wav", "clean_speech/a.wav", "clean_speech/b.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        with wave.open(str(folder / name), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.int16(3000 * rng.standard_normal(40_000)).tobytes())
    if importlib.util.find_spec("pydicom"):
        write_dicom(folder / "slice.dcm", np.int16(1000 * cube[0] - 500))
    if importlib.util.find_spec("nibabel"):
        import nibabel

        nibabel.save(nibabel.Nifti1Image(cube.T, np.eye(4)), folder / "head.nii.gz")
    for title, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', page.read_text(), re.S):
        (folder / title).parent.mkdir(exist_ok=True, parents=True)
        (folder / title).write_text(text)


def write_dicom(path: Path, values: np.ndarray) -> None:
    import pydicom

    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.Rows, ds.Columns = values.shape
    ds.PixelData = values.tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


def place_runs(folder: Path, command: str, run: Path) -> None:
    """``run`` under the names that stand for one in the pages, and as the runs that a report is about."""
    for name in ("RUN", "RUN_DIR", "A", "B", *re.findall(r"(?<=[\[=,])outputs/\w+", command)):
        place = folder / name
        if place.is_symlink():
            place.unlink()
        if not place.exists() and "run_dir=" not in command:
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(run)
    for name, source in (("FILE", "best.ckpt"), ("EARLIER.ckpt", "last.ckpt")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(run / "checkpoints" / source)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_run(page, run_for, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_files(tmp_path, page)
    faults = []
    for line in shown_commands(page.read_text()):
        command = line.partition(" # ")[0]
        no_scan = any(name in command and not Path(name).exists() for name in ("slice.dcm", "head.nii.gz"))
        if no_scan or any(part in command for part in NOT_RUN):
            continue
        module, *words = shlex.split(command)[2:]
        place_runs(tmp_path, command, run_for(line))
        code = run_module(module, [*words, *shortened(module.partition(".")[2], words)], monkeypatch)
        said = capsys.readouterr()
        is_missing = any(name in command for name in MISSING) and "not exist: " in said.err
        if code and not is_missing:
            faults.append(f"{line}\n{said.err}")
    assert faults == []
