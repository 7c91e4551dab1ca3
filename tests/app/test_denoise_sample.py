"""`denoise` and `sample` on the user's own pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, composed
from PIL import Image

from scoreexp.app.commands.denoise import denoise
from scoreexp.app.commands.sample import sample
from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.data.image_io import Picture, read_image, write_image
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.observations import GaussianNoise
from scoreexp.restorers import BySampling
from scoreexp.restorers.images import Tiles, restore_pixels
from scoreexp.samplers import DDIM, UniformGrid, fit_solver, trajectories
from scoreexp.schedules import VP


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    return train(composed("train", *TINY, "trainer.max_steps=2", f"run_dir={run}")).checkpoint


@pytest.fixture
def noisy(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "noisy.png"
    Image.fromarray(rng.integers(0, 256, (21, 35, 3), dtype=np.uint8)).save(path)
    return path


def denoise_cfg(checkpoint, source, *overrides):
    given = [
        f"ckpt={checkpoint}",
        f"input={source}",
        "sigma=0.2",
        "+sampler.grid.steps=3",
        "device=cpu",
        *overrides,
    ]
    return composed("denoise", *given)


def test_output_has_the_size_and_depth_of_the_input(checkpoint, noisy, tmp_path):
    (done,) = denoise(denoise_cfg(checkpoint, noisy, f"output={tmp_path / 'clean.png'}", "strip=true"))
    out = read_image(tmp_path / "clean.png")
    assert out.pixels.shape == (21, 35, 3), "padded to the network's multiple and cropped again"
    assert done.sigma == 0.2
    assert (tmp_path / "clean_strip.png").exists()


@pytest.mark.parametrize("mode", ["L", "RGBA", "16 bit"])
def test_grey_transparent_and_16_bit_pictures(checkpoint, tmp_path, mode):
    rng = np.random.default_rng(0)
    path, out = tmp_path / "in.png", tmp_path / "out.png"
    if mode == "16 bit":
        write_image(path, Picture(rng.random((16, 24, 3), dtype=np.float32), bit_depth=16))
    else:
        channels = {"L": (), "RGBA": (4,)}[mode]
        Image.fromarray(rng.integers(0, 256, (16, 24, *channels), dtype=np.uint8)).save(path)
    denoise(denoise_cfg(checkpoint, path, f"output={out}"))
    before, after = read_image(path), read_image(out)
    assert after.pixels.shape == before.pixels.shape
    assert after.bit_depth == before.bit_depth
    if mode == "RGBA":
        assert np.array_equal(before.alpha, after.alpha)


def test_folder_keeps_its_tree_and_one_bad_file_does_not_end_it(checkpoint, noisy, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(noisy.read_bytes())
    (folder / "deep" / "b.png").write_bytes(noisy.read_bytes())
    (folder / "bad.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"1 of 3 images failed.*bad\.png"):
        denoise(denoise_cfg(checkpoint, folder, f"output={tmp_path / 'out'}"))
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert written == ["a.png", "deep/b.png"]


def test_nothing_is_overwritten_unless_asked(checkpoint, noisy, tmp_path):
    out = tmp_path / "clean.png"
    out.write_bytes(b"precious")
    with pytest.raises(UserError, match="overwrite=true"):
        denoise(denoise_cfg(checkpoint, noisy, f"output={out}"))
    assert out.read_bytes() == b"precious"
    denoise(denoise_cfg(checkpoint, noisy, f"output={out}", "overwrite=true"))
    assert read_image(out).pixels.shape == (21, 35, 3)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["sigma=0"], "sigma=0.* > 0"),
        (["sigma=-0.1"], "sigma=-0.1.* > 0"),
        (["sigma=1e9"], "this model denoises"),
        (["input=nowhere.png"], "nowhere.png does not exist"),
        (["ckpt=nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["device=cuda:99"], "device=cuda:99"),
        (["output=clean.xyz"], "suffix"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    checkpoint, noisy, tmp_path, overrides, match, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match) as error:
        denoise(denoise_cfg(checkpoint, noisy, *overrides))
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noisy.png"]


class PixelGaussian(DenoiserBase):
    """The exact denoiser of x_0 ~ N(m, v), every pixel on its own."""

    event_shape = None
    schedule = VP()

    def __init__(self, mean: float, variance: float):
        self.mean, self.variance = mean, variance

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self._scales(x_t, t)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)


def test_exact_denoiser_follows_the_probability_flow_whole_or_in_tiles():
    mean, variance, sigma = 0.1, 0.04, 0.2  # in units of [-1, 1]; the user's sigma is half of it
    model = PixelGaussian(mean, variance)
    rng = np.random.default_rng(1)
    x0 = (mean + variance**0.5 * rng.standard_normal((40, 56, 3)) + 1) / 2
    y = (x0 + sigma / 2 * rng.standard_normal(x0.shape)).astype(np.float32)
    restorer = BySampling(DDIM(UniformGrid(400)))
    whole = restore_pixels(restorer, model, y, GaussianNoise(sigma), tiles=Tiles(None)).states[-1]
    # the probability flow maps the marginal N(m, v + s^2) onto N(m, v) linearly
    expected = (mean + (2 * y - 1 - mean) * (variance / (variance + sigma**2)) ** 0.5 + 1) / 2
    np.testing.assert_allclose(whole, expected.clip(0, 1), atol=2e-3)
    tiled = restore_pixels(restorer, model, y, GaussianNoise(sigma), tiles=Tiles(16, 4)).states[-1]
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def sample_cfg(checkpoint, *overrides):
    return composed(
        "sample", f"ckpt={checkpoint}", "sampler=ddpm", "sampler.grid.steps=4", "device=cpu", *overrides
    )


def test_seed_names_a_picture_whatever_the_batch(checkpoint, tmp_path):
    for size in (8, 3, 1):
        sample(sample_cfg(checkpoint, "n=8", f"batch_size={size}", f"out={tmp_path / str(size)}"))
    sample(sample_cfg(checkpoint, "seeds=[5]", f"out={tmp_path / 'alone'}"))
    for size in ("3", "1"):
        for seed in range(8):
            a, b = (np.asarray(Image.open(tmp_path / s / f"seed_{seed:06d}.png"), int) for s in ("8", size))
            assert np.abs(a - b).max() <= 1, "the last bit of a sum may depend on the batch"
    alone = np.asarray(Image.open(tmp_path / "alone" / "seed_000005.png"), int)
    assert np.abs(alone - np.asarray(Image.open(tmp_path / "8" / "seed_000005.png"), int)).max() <= 1
    first, second = (np.asarray(Image.open(tmp_path / "8" / f"seed_00000{s}.png"), int) for s in (0, 1))
    assert np.abs(first - second).max() > 10, "different seeds, different images"


def test_sample_leaves_pictures_a_grid_and_how_they_were_made(checkpoint, tmp_path):
    folder = sample(sample_cfg(checkpoint, "n=2", "seeds=7"))
    assert sorted(p.name for p in folder.iterdir()) == [
        "grid.png",
        "meta.json",
        "seed_000007.png",
        "seed_000008.png",
    ]
    assert folder.parent.name == "samples"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["seeds"] == [7, 8]
    assert meta["nfe_per_sample"] == 4


def test_sampler_auto_is_fitted_to_the_model_and_kept_beside_its_checkpoint(
    checkpoint, tmp_path, monkeypatch, capsys
):
    def quickly(model, steps, **given):
        reference = trajectories(model, 4, tolerance=0.5)
        return fit_solver(model, steps, reference=reference, iterations=1, **given)

    monkeypatch.setattr("scoreexp.runs.solvers.fit_solver", quickly)
    auto = ["sampler=auto", "sampler.steps=2", "n=2"]
    for out in ("first", "again"):
        given = [f"ckpt={checkpoint}", "device=cpu", f"out={tmp_path / out}", *auto]
        sample(composed("sample", *given))
    kept = Path(checkpoint).with_name(f"{Path(checkpoint).stem}.auto-2.json")
    said = capsys.readouterr().out
    assert kept.is_file()
    assert "(fitted, in" in said
    assert "(as fitted before" in said
    meta = json.loads((tmp_path / "again" / "meta.json").read_text())
    assert meta["nfe_per_sample"] == 2
    stored = json.loads(kept.read_text())
    taken = "fitted" if stored["error"] <= stored["base_error"] else "without a fit"
    error = min(stored["error"], stored["base_error"])
    assert meta["solver"] == {"path": str(kept), "taken": taken, "error": error}
    first, again = (read_image(tmp_path / out / "seed_000001.png").pixels for out in ("first", "again"))
    assert np.array_equal(first, again)


def test_sample_refuses_labels_and_full_folders(checkpoint, tmp_path):
    with pytest.raises(UserError, match="label=1: the model has no classes"):
        sample(sample_cfg(checkpoint, "label=1"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        sample(sample_cfg(checkpoint, f"out={tmp_path / 'full'}"))
