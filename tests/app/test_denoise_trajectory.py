"""`denoise` keeps states on the way: their values, their files, the animation, in tiles and by every kind of sampler."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image

from scoreexp.app.commands.denoise import denoise
from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.data.image_io import read_image
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.observations import GaussianNoise
from scoreexp.restorers import BySampling
from scoreexp.restorers.images import Tiles, restore_pixels
from scoreexp.samplers import DDIM, ConstantGrid, Langevin, UniformGrid
from scoreexp.schedules import VP, ConstantNoise


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    small = [
        "data.name=astronaut",
        "network.widths=[8,8]",
        "trainer.max_steps=1",
        "trainer.val_check_interval=1",
    ]
    cfg = composed(
        "train", "experiment=photo32_score_cnn", "debug=fast", "trainer.accelerator=cpu",
        "callbacks.monitor.pictures=0", *small, f"run_dir={run}",
    )  # fmt: skip
    return train(cfg).checkpoint


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 18, 3), dtype=np.uint8)).save(path)
    return path


def denoise_cfg(checkpoint, source, *overrides):
    given = [f"ckpt={checkpoint}", f"input={source}", "sigma=0.1", "sampler=langevin", "sampler.grid.steps=8"]
    return composed("denoise", *given, "device=cpu", *overrides)


def test_langevin_writes_intermediate_pictures_and_an_animation(checkpoint, noisy, tmp_path, capsys):
    out = tmp_path / "clean.png"
    denoise(denoise_cfg(checkpoint, noisy, f"output={out}", "intermediate=3", "gif=true"))
    files = sorted((tmp_path / "clean_intermediate").iterdir())
    assert [f.name for f in files] == ["state_001.png", "state_002.png", "state_003.png"]
    assert all(read_image(f).pixels.shape == (13, 18, 3) for f in files)
    states = [np.asarray(Image.open(f), int) for f in [noisy, *files, out]]
    assert all(np.abs(a - b).max() > 0 for a, b in pairwise(states)), "every state is another"
    with Image.open(tmp_path / "clean.gif") as animation:
        assert animation.n_frames == 5
        for i, state in enumerate(states):
            animation.seek(i)
            assert animation.size == (18, 13)
            assert animation.info["duration"] == (1500 if i == 4 else 100)
            # 234 colours fit into a palette of 256
            assert np.abs(np.asarray(animation.convert("RGB"), int) - state).max() <= 1
    said = capsys.readouterr().out
    assert "clean_intermediate (3 images)" in said
    assert "clean.gif (5 frames)" in said


def test_an_animation_alone_and_no_more_states_than_there_are(checkpoint, noisy, tmp_path):
    denoise(denoise_cfg(checkpoint, noisy, f"output={tmp_path / 'a.png'}", "gif=true"))
    assert Image.open(tmp_path / "a.gif").n_frames == 9
    assert not (tmp_path / "a_intermediate").exists()


def test_nothing_is_overwritten_unless_asked(checkpoint, noisy, tmp_path):
    arguments = [f"output={tmp_path / 'b.png'}", "gif=true", "strip=false", "residual=false"]
    (tmp_path / "b.gif").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"b\.gif exists: add overwrite=true"):
        denoise(denoise_cfg(checkpoint, noisy, *arguments))
    assert (tmp_path / "b.gif").read_bytes() == b"precious"
    assert not (tmp_path / "b.png").exists()
    denoise(denoise_cfg(checkpoint, noisy, *arguments, "intermediate=5", "overwrite=true"))
    with pytest.raises(UserError, match=r"b\.json exists: add overwrite=true"):
        denoise(denoise_cfg(checkpoint, noisy, f"output={tmp_path / 'b.webp'}", "intermediate=2"))
    (tmp_path / "b.json").unlink()
    with pytest.raises(UserError, match=r"b_intermediate exists: add overwrite=true"):
        denoise(denoise_cfg(checkpoint, noisy, f"output={tmp_path / 'b.webp'}", "intermediate=2"))
    denoise(denoise_cfg(checkpoint, noisy, *arguments, "intermediate=2", "overwrite=true"))
    assert len(list((tmp_path / "b_intermediate").iterdir())) == 2, "no leftovers of the longer run"


class PixelGaussian(DenoiserBase):
    """The exact denoiser of x_0 ~ N(m, v), every pixel on its own."""

    event_shape = None

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self._scales(x_t, t)
        return 0.1 + alpha * 0.04 / (alpha**2 * 0.04 + sigma**2) * (x_t - alpha * 0.1)


def denoise_states(model, sampler, pixels, sigma, *, intermediate, tile=None, overlap=32):
    noise, tiles = GaussianNoise(2 * sigma), Tiles(tile, overlap)
    return restore_pixels(
        BySampling(sampler), model, pixels, noise, keep=intermediate + 1, tiles=tiles
    ).states


@pytest.mark.parametrize("channels", [1, 3])
def test_states_are_pictures_on_the_way(channels):
    model, sigma = PixelGaussian(VP()), 0.15
    y = np.random.default_rng(1).uniform(0.3, 0.8, (24, 40, channels)).astype(np.float32)
    sampler = DDIM(UniformGrid(121))
    states = denoise_states(model, sampler, y, sigma, intermediate=2)
    assert [s.shape for s in states] == [y.shape] * 4
    np.testing.assert_allclose(states[0], y, atol=1e-6)
    # the probability flow scales the distance to the mean with the marginal standard deviation of x_t / alpha
    t_start = VP().t_of_sigma(torch.tensor(2 * sigma, dtype=torch.float64)).item()
    for state, share in zip(states[1:3], (1 / 3, 2 / 3)):
        alpha, s = VP().at(t_start + share * (VP().t_min - t_start))
        scale = np.sqrt((0.04 + (s / alpha) ** 2) / (0.04 + (2 * sigma) ** 2))
        expected = (0.1 + (2 * y - 1 - 0.1) * scale + 1) / 2
        np.testing.assert_allclose(state, expected, atol=5e-3)  # first-order, 120 steps
    tiled = denoise_states(model, sampler, y, sigma, intermediate=2, tile=16, overlap=4)
    for a, b in zip(states, tiled):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_states_of_langevin_are_those_after_its_updates():
    model, y = PixelGaussian(ConstantNoise(0.2)), np.full((4, 5, 3), 0.8, np.float32)
    eta = 0.01
    states = denoise_states(model, Langevin(ConstantGrid(10), eta, noise=0.0), y, 0.1, intermediate=4)
    for state, n in zip(states, (0, 2, 4, 6, 8, 10), strict=True):
        expected = 0.1 + (0.6 - 0.1) * (1 - eta / 0.08) ** n  # in units of [-1, 1], marginal variance 0.08
        np.testing.assert_allclose(state, (expected + 1) / 2, atol=1e-5)
