"""`python -m scoreexp.edit`: strips of a small class-conditional model with any weights."""

import json

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image

from scoreexp.app.commands.edit import edit
from scoreexp.app.launch import run_app
from scoreexp.core.ranges import to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import read_image
from scoreexp.edit import PROVIDED, SCHEMA
from scoreexp.editing import DDPMInversion
from scoreexp.guidance import ClassifierFree
from scoreexp.runs.model import build_denoiser, load, model_record
from scoreexp.samplers import UniformGrid

CONFIG = {
    "network": {
        "_target_": "scoreexp.networks.UNet",
        "channels": 16,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_resolutions": [],
    },
    "precond": {"_target_": "scoreexp.denoisers.EDMPrediction"},
    "schedule": {"_target_": "scoreexp.schedules.VP"},
    "model": {"label_dropout": 0.1},
}


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "last.ckpt"
    record = model_record(CONFIG, (3, 8, 8), 3)
    model = build_denoiser(record)
    random = torch.Generator().manual_seed(0)
    for name, weights in model.named_parameters():  # answers depend on the label
        torch.nn.init.normal_(weights, 0, 5.0 if "class_embedding" in name else 0.1, generator=random)
    state = {f"denoiser.{key}": value for key, value in model.state_dict().items()}
    torch.save({"scoreexp": record, "global_step": 1, "state_dict": state}, path)
    return path


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for name, size in (("one", 8), ("two", 8), ("large", 9)):
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    return tmp_path


def edited(ckpt, pictures, *overrides, name="one"):
    return edit(composed("edit", f"ckpt={ckpt}", f"input={pictures / name}.png", "device=cpu", *overrides))


def frames(folder):
    return [read_image(path).pixels for path in sorted(folder.glob("frame_*.png"))]


def test_a_picture_comes_back_and_as_another_class(ckpt, pictures):
    asked = ["label=0", "to=2", "editor.grid.steps=4", "seed=5"]
    folder = edited(ckpt, pictures, *asked)
    assert folder == pictures / "one_edited"
    given = read_image(pictures / "one.png").pixels
    assert np.array_equal(frames(folder)[0], given)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["evaluations"] == 12, "inversion and two replays of 4 times"
    assert (meta["to"], meta["label"]) == (2, 0)
    assert (folder / "strip.png").exists()

    strong = [
        "guidance=classifier_free",
        "guidance.weight=40",
    ]  # the weights are any, so the label says little
    folder = edited(ckpt, pictures, *asked, *strong, f"out={pictures / 'guided'}")
    same, other = frames(folder)
    assert np.array_equal(same, given)
    assert np.abs(other - given).max() > 2 / 255
    editing, model = DDPMInversion(UniformGrid(4)), ClassifierFree(load(ckpt), weight=40.0)
    x_0 = 2 * torch.from_numpy(given.transpose(2, 0, 1)[None].copy()) - 1
    inversion = editing.invert(model, x_0, streams=ImageStreams([5]), cond=torch.tensor([0]))
    expected = to_unit(editing.replay(model, inversion, cond=torch.tensor([2])))[0].clamp(0, 1).numpy()
    assert np.abs(other.transpose(2, 0, 1) - expected).max() <= 0.51 / 255
    assert json.loads((folder / "meta.json").read_text())["evaluations"] == 24


def test_the_way_to_another_picture(ckpt, pictures):
    folder = edited(
        ckpt, pictures, "editor=interpolation", f"other={pictures / 'two.png'}", "editor.frames=3",
        "editor.steps=4", "editor.sampler.grid.steps=4",
    )  # fmt: skip
    strip = frames(folder)
    assert len(strip) == 3
    assert np.abs(strip[0] - strip[2]).max() > 0.01
    assert json.loads((folder / "meta.json").read_text())["evaluations"] == 2 * 4 + 3 * 4


@pytest.mark.parametrize(
    ("name", "overrides", "match"),
    [
        ("one", ["label=0"], r"comes back as it was where no class is wanted: give to=0 to 2"),
        ("one", ["to=3"], r"label=3: allowed is 0 to 2"),
        ("one", ["to=1", "guidance=classifier_free"], "give that of the image, label=0 to 2"),
        ("one", ["editor=interpolation"], "Interpolation takes 2 of input and other: add other=PICTURE"),
        ("one", ["to=1", "other=two.png"], "DDPMInversion takes 1 of input and other: leave other out"),
        ("large", ["to=1"], r"large.png has channels, height and width \(3, 9, 9\), the model \(3, 8, 8\)"),
        ("one", ["to=1", "editor.t_start=7"], "t_start=7"),
    ],
)
def test_what_cannot_be_edited_is_one_line_and_leaves_nothing(ckpt, pictures, name, overrides, match):
    with pytest.raises(ValueError, match=match) as error:
        edited(ckpt, pictures, *overrides, name=name)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in pictures.iterdir()) == ["large.png", "one.png", "two.png"]


def test_a_folder_with_something_in_it_is_kept(ckpt, pictures):
    (pictures / "one_edited").mkdir()
    (pictures / "one_edited" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="is not an empty folder: give a new one with out=DIR"):
        edited(ckpt, pictures, "to=1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["editor.grid.steps=0"], "editor.grid.steps=0 must be an int >= 1"),
        (["editor=interpolate"], "interpolation"),
        (["guidance=autoguidance"], "guidance.weak.path"),
    ],
)
def test_keys_are_checked_before_anything_is_read(arguments, said, pictures, ckpt, capsys):
    argv = [f"ckpt={ckpt}", f"input={pictures / 'one.png'}", "to=1", *arguments]
    assert run_app("edit", "scoreexp.edit:run", schema=SCHEMA, provided=PROVIDED, argv=argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
