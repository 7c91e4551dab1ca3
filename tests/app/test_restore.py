"""`restore` on the user's own damaged pictures, with the tiny models of an earlier build."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image

import scoreexp as se
from scoreexp import prior
from scoreexp.app.commands.restore import restore
from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import read_image
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.metrics import psnr
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import (
    Blur,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    RandomMask,
    SuperResolution,
)
from scoreexp.restore import PROVIDED, SCHEMA
from scoreexp.restorers import DDNM, DDRM, DDS
from scoreexp.restorers.images import Tiles, as_observed, image_streams, restore_image, restore_observed
from scoreexp.samplers import UniformGrid
from scoreexp.schedules import VE, VP

MODELS = Path(__file__).parents[1] / "fixtures" / "v0_1"
TASKS = ["inpaint", "inpaint_box", "deblur", "deblur_motion", "super_resolution", "denoise", "gray"]


def picture(path, height=24, width=36, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def asked(source, *overrides, model="ncsnpp"):
    few = [] if any("restorer" in o for o in overrides) else ["restorer=dds", "restorer.grid.steps=2"]
    return composed(
        "restore",
        f"ckpt={MODELS / model}.ckpt",
        f"input={source}",
        "device=cpu",
        "overwrite=true",
        *few,
        *overrides,
    )


def observed_png(path, values):
    """``[1, C, H, W]`` in [-1, 1] as a picture of 8 bits."""
    unit = ((values[0] + 1) / 2).clamp(0, 1).movedim(0, -1).numpy()
    Image.fromarray((unit * 255).round().astype(np.uint8).squeeze()).save(path)
    return path


@pytest.mark.parametrize("task", TASKS)
def test_a_simulated_picture_is_restored_measured_and_written(task, tmp_path, capsys):
    source = picture(tmp_path / "photo.png")
    (done,) = restore(asked(source, f"task={task}", "simulate=true", "strip=true"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "photo.png",
        "photo_restored.json",
        "photo_restored.png",
        "photo_restored_strip.png",
    ]
    before, after = read_image(source).pixels, read_image(done.target).pixels
    assert after.shape == before.shape
    found = float(psnr(*((as_observed(p) + 1) / 2 for p in (after, before))))
    assert done.values["psnr"] == pytest.approx(found, abs=0.02)  # of the picture before it became 8 bits
    assert done.values["nfe"] == 2
    assert f"PSNR {done.values['psnr']:.2f} dB, SSIM " in capsys.readouterr().out
    values = json.loads((tmp_path / "photo_restored.json").read_text())
    assert values["pictures"][0]["psnr"] == done.values["psnr"]
    assert values["task"]["operator"]["_target_"].startswith("scoreexp.observations.")


@pytest.mark.parametrize(
    ("task", "operator"),
    [
        ("inpaint", RandomMask((24, 36))),
        ("deblur", GaussianBlur(1.6, size=(24, 36))),
        ("super_resolution", SuperResolution(4, size=(24, 36))),
        ("denoise", Identity()),
        ("gray", Grayscale()),
    ],
)
def test_the_command_and_python_agree_bitwise(task, operator, tmp_path, monkeypatch):
    """Also in the observation: the same noise for the same seed."""
    made = {}
    monkeypatch.setattr(
        "scoreexp.app.commands.restore.write_image", lambda path, image, **_: made.update(pixels=image.pixels)
    )
    source = picture(tmp_path / "photo.png")
    restore(asked(source, f"task={task}", "simulate=true", "seed=5"))
    observation = se.Observation.simulate(
        as_observed(read_image(source).pixels), operator, GaussianNoise(0.1), ImageStreams([5], "observation")
    )
    restorer = DDS(UniformGrid(2))
    x = se.restore(observation, str(MODELS / "ncsnpp.ckpt"), restorer, seeds=[5]).x
    assert np.array_equal(made["pixels"], ((x[0] + 1) / 2).clamp(0, 1).movedim(0, -1).numpy())
    other = se.restore(observation, str(MODELS / "ncsnpp.ckpt"), restorer, seeds=[6]).x
    assert not torch.equal(other, x)


def test_the_input_is_the_observation_unless_it_is_simulated(tmp_path):
    """Of a picture reduced by four comes one four times as large, which the reduction takes near the input again."""
    small = picture(tmp_path / "small.png", 6, 9)
    clean = picture(tmp_path / "clean.png", 24, 36, seed=1)
    arguments = ["task=super_resolution", f"reference={clean}", "restorer=ddnm", "restorer.grid.steps=2"]
    (done,) = restore(asked(small, *arguments, "sigma=0"))
    after = as_observed(read_image(done.target).pixels)
    assert after.shape == (1, 3, 24, 36)
    assert done.values["psnr"] < 15, "of two unrelated pictures"
    (simulated,) = restore(asked(small, "task=denoise"))
    assert "psnr" not in simulated.values, "there is nothing to measure against"


def test_the_user_s_own_mask_and_kernel(tmp_path):
    source = picture(tmp_path / "photo.png")
    seen = np.full((24, 36), 255, np.uint8)
    seen[4:9, 10:30] = 0
    Image.fromarray(seen).save(tmp_path / "mask.png")
    kept = ["restorer=ddnm", "restorer.grid.steps=2", "sigma=0"]
    (done,) = restore(asked(source, "task=inpaint", f"mask={tmp_path / 'mask.png'}", *kept))
    before, after = read_image(source).pixels, read_image(done.target).pixels
    assert np.abs(after - before)[seen > 0].max() <= 1 / 255, "seen pixels without noise are kept"
    assert np.abs(after - before)[seen == 0].max() > 0.1
    Image.fromarray(np.array([[0, 0, 0], [0, 200, 0], [0, 0, 0]], np.uint8)).save(tmp_path / "kernel.png")
    (done,) = restore(asked(source, "task=deblur", f"kernel={tmp_path / 'kernel.png'}", *kept))
    assert np.abs(read_image(done.target).pixels - before).max() <= 1 / 255, "a point blurs nothing"


def test_an_observed_blur_without_a_periodic_border_keeps_the_frame_of_the_picture(tmp_path):
    source = picture(tmp_path / "photo.png", 20, 28)
    (done,) = restore(asked(source, "task=deblur", "task.operator.border=valid", f"reference={source}"))
    assert read_image(done.target).pixels.shape == (20, 28, 3)
    assert "psnr" in done.values


@pytest.mark.parametrize("task", ["inpaint", "deblur", "denoise"])
def test_any_size_and_gray_pictures_through_a_colour_model(task, tmp_path):
    source = picture(tmp_path / "gray.png", 21, 35, channels=1)
    (done,) = restore(asked(source, f"task={task}", "simulate=true"))
    assert read_image(done.target).pixels.shape == (21, 35, 1)


# ------------------------------------------------------------------------- how pictures come to the model


SIDES, VARIANCE = (10, 14), 0.25


class White(se.denoisers.DenoiserBase, wraps=True):
    """White Gaussian data of any size, whose sides divide by four."""

    schedule, downsampling_factor = VP(), 4

    def __init__(self, channels):
        self.event_shape = (channels, 8, 8)

    def __call__(self, x_t, t, cond=None):
        assert x_t.shape[1] == self.event_shape[0]
        assert [side % 4 for side in x_t.shape[-2:]] == [0, 0]
        oracle = Gaussian(torch.zeros(x_t.shape[1:]), torch.full(x_t.shape[1:], VARIANCE))
        return OracleDenoiser(oracle, self.schedule)(x_t, t)


@pytest.mark.parametrize(
    "operator", [RandomMask((10, 14)), SuperResolution(2, size=(10, 14)), GaussianBlur(0.8, size=(10, 14))]
)
@pytest.mark.parametrize(
    "restorer",
    [DDS(UniformGrid(4), eta=0.0, gamma=20.0, cg_steps=40), DDRM(UniformGrid(4)), DDNM(UniformGrid(4))],
    ids=lambda r: type(r).__name__,
)
def test_padding_adds_unknowns_and_no_data(operator, restorer):
    """The padded operator sees what the operator sees, and restores it from the same data, also by its decomposition."""
    x = 0.5 * torch.randn(1, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    observation = se.Observation(operator(x), operator, GaussianNoise(1e-4))
    restored = se.restore(observation, White(3), restorer).x
    assert restored.shape == x.shape
    assert (operator(restored) - observation.y).abs().max() < 0.2 * observation.y.abs().max()


@pytest.mark.parametrize("tile", [8, 16])
def test_tiles_of_a_mask_give_what_the_whole_picture_gives(tile):
    """A white prior and no fresh noise: every pixel is on its own, whatever the tile."""
    seen = torch.ones(26, 39)
    seen[3:9, 3:30] = 0
    operator, model = Mask(seen), White(3)
    y = operator(torch.randn(1, 3, 26, 39, generator=torch.Generator().manual_seed(0)))
    observation = se.Observation(y, operator, GaussianNoise(0.1))
    restorer = DDNM(UniformGrid(1))
    whole, tiled = (
        restore_observed(
            restorer,
            model,
            observation,
            streams_of=lambda row, column: ImageStreams([3]),
            tiles=Tiles(side, 4),
        )
        for side in (None, tile)
    )
    hole = seen == 0
    torch.testing.assert_close(tiled.x[..., ~hole], whole.x[..., ~hole], rtol=0, atol=0.02)
    assert tiled.nfe == whole.nfe == 1
    assert tiled.x.shape == whole.x.shape == (1, 3, 26, 39)
    with pytest.raises(ValueError, match="a hole hides a whole tile of 4 x 4 pixels"):
        restore_observed(
            restorer, model, observation, streams_of=lambda row, column: ImageStreams([3]), tiles=Tiles(4, 0)
        )


@pytest.mark.parametrize("size", [(40, 52), (41, 54)])
def test_tiles_of_a_blur_without_border_have_every_observation_of_a_pixel_where_it_counts(size):
    """A white prior, and a kernel whose inverse dies out within the overlap: the whole solve and the tiles' agree."""
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]])
    operator = Blur(kernel, size, "valid")
    y = operator(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    observation = se.Observation(y, operator, GaussianNoise(0.1))
    restorer = DDS(UniformGrid(1), gamma=20.0, cg_steps=60)
    whole, tiled = (
        restore_observed(
            restorer,
            White(3),
            observation,
            streams_of=lambda row, column: ImageStreams([3]),
            tiles=Tiles(side, 16),
        ).x
        for side in (None, 24)
    )
    torch.testing.assert_close(tiled, whole, rtol=0, atol=0.02)


@pytest.mark.parametrize(("kernel", "parts"), [(3, 6), (7, 9), (9, 1)])
def test_tiles_overlap_as_far_as_a_kernel_asks_for(kernel, parts):
    """By four times its reach, the outer quarter being context; where that is over half a tile the image stays whole."""
    operator = Blur(torch.ones(kernel, kernel) / kernel**2, (40, 48), "valid")
    observation = se.Observation(operator(torch.zeros(1, 3, 40, 48)), operator, GaussianNoise(0.1))
    done, said = [(1, 1)], []
    restore_observed(
        DDS(UniformGrid(1)),
        White(3),
        observation,
        streams_of=lambda row, column: ImageStreams([3]),
        tiles=Tiles(24, 0),
        progress=lambda i, n: done.append((i, n)),
        warn=said.append,
    )
    assert done[-1] == (parts, parts)
    assert len(said) == (parts == 1)


def test_colour_through_a_gray_model_is_its_channels(capsys):
    operator = RandomMask((12, 16))
    x = torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    observation = se.Observation(operator(x), operator, GaussianNoise(0.1))
    restorer = DDS(UniformGrid(2), eta=0.0)

    def restored(given):
        made = restore_image(
            restorer,
            White(1),
            given,
            streams_of=lambda r, c, n: ImageStreams([image_streams(0, r, c, 3).seeds[1]] * n),
        )
        return made.states[-1]

    colour = restored(observation)
    for i in range(3):
        one = se.Observation(observation.y[:, i : i + 1], operator, observation.noise)
        assert np.array_equal(colour[..., i : i + 1], restored(one))
    mixed = se.Observation(Grayscale()(x), Grayscale(), GaussianNoise(0.1))
    with pytest.raises(
        ValueError, match="images of 1 channels, and Grayscale takes one of 3: give a model of 3"
    ):
        restored(mixed)


def test_a_picture_that_tiles_cannot_divide_goes_through_whole_and_says_so():
    said = []
    operator = GaussianBlur(0.8, size=(16, 24))
    observation = se.Observation(torch.zeros(1, 3, 16, 24), operator, GaussianNoise(0.1))
    arguments = {"streams_of": lambda row, column: ImageStreams([0]), "warn": said.append}
    tiled = restore_observed(DDS(UniformGrid(2)), White(3), observation, tiles=Tiles(8), **arguments)
    whole = restore_observed(DDS(UniformGrid(2)), White(3), observation, tiles=Tiles(None), **arguments)
    assert torch.equal(tiled.x, whole.x)
    assert said == ["GaussianBlur sees beyond a tile: the whole image goes through at once"]


# ------------------------------------------------------------------------------- without a checkpoint, and doubts


class Flat(DenoiserBase):
    """A prior of images of any size, whose pixels are ``N(0, 0.25)`` each."""

    schedule, event_shape = VE(0.02, 1.0), None

    def __call__(self, x_t, t, cond=None):
        sigma = self.schedule.sigma(t).reshape(-1, 1, 1, 1)
        return (x_t * 0.25 / (0.25 + sigma**2)).to(x_t.dtype)


@pytest.fixture
def bundled(monkeypatch):
    """A stand-in for the prior that comes with the package."""
    monkeypatch.setattr(prior, "load", lambda device: Flat())


@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_checkpoint_the_bundled_prior_is_taken_and_named(channels, bundled, tmp_path, capsys):
    source = picture(tmp_path / "photo.png", channels=channels)
    (done,) = restore(asked(source, "task=inpaint", "simulate=true", "ckpt=null"))
    assert "prior          the bundled one of photographs; ckpt=FILE takes another" in capsys.readouterr().out
    assert read_image(done.target).pixels.shape == (24, 36, channels)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["sigma=0.001", "restorer=pnp_admm", "restorer.rho=1e4"],
            r"the residual is 0\.\d+, \d+ times the noise of 0\.001",
        ),
        (
            ["sigma=0.4", "restorer=dds", "restorer.gamma=1e6"],
            r"far below the noise of 0\.4: the noise of the data is in the picture",
        ),
        (["sigma=0", "restorer=ddrm"], "saturated noise, so the restorer diverged"),
        (["sigma=0.1", "restorer=dds", "restorer.gamma=1"], None),
    ],
)
def test_what_speaks_against_the_picture_is_said(overrides, said, bundled, tmp_path, capsys):
    source = picture(tmp_path / "photo.png")
    if "sigma=0" in overrides:  # black and white at random, and kept
        noise = np.random.default_rng(0).integers(0, 2, (24, 36, 3), dtype=np.uint8) * 255
        Image.fromarray(noise).save(source)
    few = [] if "restorer=pnp_admm" in overrides else ["restorer.grid.steps=4"]
    restore(asked(source, "task=denoise", "ckpt=null", *overrides, *few))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == (said is not None)
    assert said is None or re.search(said, lines[0])


def test_without_a_restorer_the_one_that_serves_the_task_is_taken_and_named(bundled, tmp_path, capsys):
    source = picture(tmp_path / "photo.png")
    bare = ["ckpt=null", "~restorer", "simulate=true"]
    for task, name in (("denoise", "PosteriorMean"), ("inpaint", "DDRM"), ("deblur", "DDRM")):
        (done,) = restore(asked(source, f"task={task}", *bare))
        assert f"36 x 24 pixels, {name}, " in capsys.readouterr().out
        [values] = json.loads(done.target.with_suffix(".json").read_text())["pictures"]
        assert values["restorer"] == done.restorer == name
    (done,) = restore(asked(source, "task=deblur", "task.operator.border=valid", *bare))
    assert done.restorer == "PiGDM"


# ------------------------------------------------------------------------------------------------ bad input


BAD = [
    (["task=inpaint"], "add mask=FILE"),
    (["task=inpaint", "mask=white.png"], "without a hole: paint"),
    (["task=inpaint", "mask=black.png"], "all black, so nothing is known"),
    (["task=inpaint", "mask=corner.png"], "mask=.* is 2 x 2 pixels, the image 36 x 24 pixels"),
    (["task=deblur", "mask=small.png"], "mask=.* is not used by this task: leave it out, or take task=inpaint"),
    (["task=denoise", "kernel=small.png"], "kernel=.* is not used by this task"),
    (["task=inpaint", "mask=photo.png"], "is no mask, .* of it is gray: give a picture in black and white"),
    (["task=deblur", "kernel=black.png"], "all black: give the image of a kernel"),
    (["task=deblur", "kernel=even.png"], "odd sides, padded with zeros"),
    (["task=deblur", "kernel=large.png"], "the kernel of 41 x 41 is larger than the image of 24 x 36"),
    (["task=super_resolution", "task.operator.factor=5", "simulate=true"], "crop the image to 20 x 35, or pad it to 25"),
    (["task=denoise", "sigma=0", "restorer=diffpir", "restorer.grid.steps=2"], "DiffPIR divides by the noise level"),
    (["task=gray"], "images of 1 channel, and this one has 3: give such an image, or simulate=true"),
    (["task=denoise", "simulate=true", "reference=small.png"], "measures against the input itself"),
    (["task=denoise", "reference=small.png"], "the reference is 9 x 6 pixels, the restored image 36 x 24"),
    (["task=denoise", "reference=gray.png"], "the reference has 1 channels, the restored image 3"),
    (["task=inpaint", "simulate=true", "restorer=zs_n2n", "ckpt=null", "restorer.steps=2"], "cannot undo RandomMask"),
    (["task=denoise", "label=1"], "the model has no classes"),
    (["task=denoise", "sigma=13"], "13 of 255 is 0.051"),
    (["task=denoise", "output=photo.xyz"], "photo.xyz"),
]  # fmt: skip


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photo.png")
    picture(tmp_path / "small.png", 6, 9, channels=1)
    picture(tmp_path / "gray.png", channels=1)
    for name, value, size in (
        ("white", 255, (24, 36)),
        ("black", 0, (24, 36)),
        ("even", 9, (4, 4)),
        ("large", 9, (41, 41)),
    ):
        Image.fromarray(np.full(size, value, np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.uint8([[0, 255], [255, 255]])).save(tmp_path / "corner.png")
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(("overrides", "said"), BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(overrides, said, inputs, tmp_path):
    with pytest.raises(ValueError, match=said) as error:
        restore(asked("photo.png", *overrides))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == inputs


class Halved(LinearOperator):
    """Whose adjoint is wrong."""

    def __call__(self, x):
        return 2 * x

    def adjoint(self, y):
        return y


def test_a_wrong_adjoint_of_an_operator_of_ones_own_is_named_with_both_inner_products():
    model = OracleDenoiser(Gaussian(torch.zeros(1, 8, 8), torch.ones(1, 8, 8)), VP())
    observation = se.Observation(torch.zeros(1, 1, 8, 8), Halved(), GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"Halved: <A x, y> = -?\d.* but <x, A\^T y> = -?\d.*: correct it"):
        se.restore(observation, model, DDS(UniformGrid(2)))


def test_a_model_of_one_size_alone_says_which(inputs, tmp_path):
    """The exact network knows images of its own size."""
    model = OracleDenoiser(Gaussian(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)), VP())
    observation = se.Observation(torch.zeros(1, 3, 8, 12), Identity(), GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"samples of shape \(3, 8, 12\) for an oracle of \(3, 8, 8\)"):
        se.restore(observation, model, DDS(UniformGrid(2)))


def test_a_bad_picture_ends_no_folder_and_the_values_are_those_of_the_rest(inputs, tmp_path, capsys):
    for number in range(2):
        picture(tmp_path / "in" / f"{number}.png", 16, 20, seed=number)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    picture(tmp_path / "in" / "odd.png", 18, 20)
    with pytest.raises(UserError, match=r"2 of 4 images failed: .*bad\.png, .*odd\.png"):
        restore(asked("in", "task=super_resolution", "simulate=true"))
    values = json.loads((tmp_path / "in_restored" / "restored.json").read_text())
    assert [Path(row["output"]).name for row in values["pictures"]] == ["0.png", "1.png"]
    assert values["mean"]["psnr"] == pytest.approx(sum(row["psnr"] for row in values["pictures"]) / 2)
    said = capsys.readouterr().out
    assert f"PSNR {values['mean']['psnr']:.2f} dB" in said
    assert "does not divide the size 18 x 20" in said


def test_outputs_are_not_replaced_unless_asked(inputs):
    restore(asked("photo.png", "task=denoise"))
    Path("photo_restored.png").unlink()
    with pytest.raises(UserError, match=r"photo_restored\.json exists: add overwrite=true"):
        restore(asked("photo.png", "task=denoise", "overwrite=false"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "task is required: add what damaged the picture"),
        (["task=inpant"], "did you mean 'inpaint'?"),
        (["task=inpaint", "task.operator.hole=3"], "task.operator.hole=3 must be a number >= 0 and <= 1"),
        (["task=inpaint", "+task.operator.size=3"], "task.operator.size=3 cannot be set"),
        (["task=denoise", "mask=nowhere.png"], "mask=nowhere.png does not exist"),
        (["task=denoise", "restorer=ddss"], "did you mean 'dds'?"),
        (["task=denoise", "sigma=-1"], "sigma=-1 must be"),
    ],
)
def test_keys_are_checked_before_torch_is_imported(arguments, said, inputs, capsys):
    argv = ["input=photo.png", *arguments]
    assert run_app("restore", "scoreexp.restore:run", schema=SCHEMA, provided=PROVIDED, argv=argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_the_help_lists_tasks_and_restorers(capsys):
    assert run_app("restore", "scoreexp.restore:run", argv=["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("  task=" in line and "super_resolution" in line for line in lines)
    assert any("  restorer=" in line and "red_diff" in line for line in lines)
