"""`denoise` of a picture of which nothing is known: the noise estimated, the restorer chosen, the result judged."""

import json

import numpy as np
import pytest
import torch
from conftest import composed

import scoreexp as se
from scoreexp import prior
from scoreexp.api.denoise import by_residual
from scoreexp.app.commands.denoise import denoise
from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import Picture, read_image, write_image
from scoreexp.denoise import SCHEMA
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    Identity,
    Observation,
    PoissonNoise,
)
from scoreexp.schedules import VE


class Wiener(DenoiserBase):
    """The exact posterior mean of stationary Gaussian images, as smooth as photographs, of any size."""

    schedule, event_shape = VE(0.002, 1.0), None

    def __call__(self, x_t, t, cond=None):
        _, sigma = self._scales(x_t, t)
        down, right = (torch.fft.fftfreq(n, dtype=x_t.dtype) for n in x_t.shape[-2:])
        power = 2e-5 / (down[:, None] ** 2 + right**2 + 1e-4) ** 1.5
        mean = x_t.mean((-1, -2), keepdim=True)
        return mean + torch.fft.ifft2(torch.fft.fft2(x_t - mean) * power / (power + sigma**2)).real


@pytest.fixture(autouse=True)
def _prior(monkeypatch):
    """In the place of the bundled one."""
    monkeypatch.setattr(prior, "load", lambda device="cpu": Wiener())


def scene(side=128, channels=3):
    row, column = np.mgrid[:side, :side] / 100
    x = 0.45 + 0.25 * np.sin(4 * row) * np.cos(3 * column) + 0.15 * (column > 0.6)
    return np.repeat(x[..., None], channels, 2)


def noisy(noise, side=128, channels=3):
    x = to_model(torch.from_numpy(np.moveaxis(scene(side, channels), -1, 0))[None])
    return np.moveaxis(to_unit(noise.sample(x, ImageStreams([0])))[0].numpy(), 0, -1)


def psnr(x, side=128):
    return -10 * np.log10(np.mean((x - scene(side, x.shape[-1])) ** 2))


def saved(path, pixels, **kwargs):
    write_image(path, Picture(pixels.astype(np.float32), **kwargs))
    return path


def denoised(source, *overrides):
    return denoise(composed("denoise", f"input={source}", "device=cpu", *overrides))


@pytest.mark.parametrize(
    "noise",
    [
        GaussianNoise(0.2),
        PoissonNoise(30.0),
        GammaNoise(16.0),
        CorrelatedNoise(0.2, 0.7),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_every_noise_is_found_and_removed(noise, tmp_path, capsys):
    side = 192 if isinstance(noise, CorrelatedNoise) else 128
    y = noisy(noise, side)
    (done,) = denoised(saved(tmp_path / "a.tif", y, bit_depth=32))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.tif", "a_denoised.json", "a_denoised.tif", "a_denoised_residual.png", "a_denoised_strip.png",
    ]  # fmt: skip
    clean = read_image(done.target).pixels
    assert psnr(clean, side) > psnr(y, side) + 7
    (values,) = json.loads((tmp_path / "a_denoised.json").read_text())["pictures"]
    assert values["noise"]["kind"] == type(noise).__name__
    assert values["trust"] == "good"
    assert values["residual"]["scale"] == pytest.approx(1, abs=0.15)
    assert values["residual"]["correlation"] < 0.15
    assert max(map(abs, values["residual"]["shift"])) < 0.01
    assert values["psnr"] > 20
    assert values["psnr_by"] == "the prior's own variance"
    assert done.sigma == pytest.approx(float(np.std(y - scene(side))), rel=0.1)
    said = capsys.readouterr().out
    assert "estimated from a.tif (good" in said
    assert "PSNR about" in said
    assert np.array_equal(clean, se.denoise(y.astype(np.float32)))


def test_what_is_known_is_not_estimated(tmp_path, capsys):
    path = saved(tmp_path / "a.png", noisy(PoissonNoise(20.0)))
    assumed = {
        "sigma=0.1": GaussianNoise(0.2),
        "noise=poisson noise.peak=20": PoissonNoise(20.0),
        "noise=gaussian noise.sigma=0.2 restorer=tv": GaussianNoise(0.2),
        "restorer=tv noise=poisson noise.peak=20": PoissonNoise(20.0),
    }
    for number, (keys, noise) in enumerate(assumed.items()):
        (done,) = denoised(path, *keys.split(), f"output={tmp_path / f'{number}.png'}")
        restorer = se.restorers.TV() if "tv" in keys else None
        expected = se.denoise(read_image(path).pixels, noise=noise, restorer=restorer)
        assert np.abs(read_image(done.target).pixels - expected).max() <= 0.51 / 255
        assert done.values["noise"]["kind"] == type(noise).__name__
    assert "estimated" not in capsys.readouterr().out


def asked(*words):
    """The command as a user types it; its exit code."""
    return run_app("denoise", "scoreexp.denoise:run", schema=SCHEMA, argv=[*words, "device=cpu"])


def test_a_law_that_is_named_without_its_parameters_is_estimated(tmp_path, capsys):
    y = noisy(PoissonNoise(20.0), 64, 1).astype(np.float32)
    path, out = saved(tmp_path / "a.tif", y, bit_depth=32), tmp_path / "b.tif"
    found = {}
    for words in ("noise=poisson", "noise=gaussian", "noise=poisson noise.peak=10"):
        assert asked(f"input={path}", f"output={out}", *words.split(), "overwrite=true") == 0
        (values,) = json.loads((tmp_path / "b.json").read_text())["pictures"]
        found[words] = values["noise"]
    assert found["noise=poisson"] == {"kind": "PoissonNoise", "peak": pytest.approx(20, rel=0.1), "sigma": 0}
    assert found["noise=gaussian"]["kind"] == "GaussianNoise"
    assert found["noise=poisson noise.peak=10"] == {"kind": "PoissonNoise", "peak": 10, "sigma": 0}
    assert "10 counts at white, as given" in capsys.readouterr().out
    assert asked(f"input={path}", "noise=poisson_gaussian", "noise.peak=10") == 1
    assert "noise=poisson_gaussian: give noise.sigma too, or no parameter" in capsys.readouterr().err
    by_class, by_object = (
        se.denoise(y, noise=noise) for noise in (PoissonNoise, PoissonNoise(found["noise=poisson"]["peak"]))
    )
    np.testing.assert_allclose(by_class, by_object, atol=1e-4)


def test_the_bias_of_clipped_noise_is_taken_off_and_said():
    noise, clean = GaussianNoise(0.3), np.clip(4 * scene(64) - 2, 0, 1)
    x = to_model(torch.from_numpy(np.moveaxis(clean, -1, 0))[None])
    y = np.moveaxis(to_unit(noise.sample(x, ImageStreams([0])))[0].numpy(), 0, -1).clip(0, 1)
    said = []
    corrected = se.denoise(y, noise=noise, say=said.append)
    as_it_is = se.denoise(y, noise=noise, restorer=se.restorers.PosteriorMean(8))
    off = [float(np.abs((made - clean)[clean == 0].mean())) for made in (corrected, as_it_is)]
    assert off[0] < 0.6 * off[1]
    assert "posterior mean in 8 evaluations, without the bias of clipping at black and white" in said[1]
    assert np.mean((corrected - clean) ** 2) < 0.8 * np.mean((as_it_is - clean) ** 2)


def test_dead_pixels_are_found_filled_in_and_reported(tmp_path, capsys):
    side, plain = 72, ("strip=false", "residual=false")
    y = noisy(GaussianNoise(0.1), side).astype(np.float32)
    dead = np.zeros((side, side), bool)
    dead[4::17, 6::19] = True
    spoiled = np.where(dead[..., None], np.float32([1.5, 1.5, -0.5]), y)
    paths = [saved(tmp_path / f"{n}.tif", p, bit_depth=32) for n, p in (("a", y), ("b", spoiled))]
    (whole,) = denoised(paths[0], *plain)
    (none,) = denoised(paths[0], "dead=auto", f"output={tmp_path / 'n.tif'}", *plain)
    assert np.array_equal(read_image(whole.target).pixels, read_image(none.target).pixels)
    assert not list(tmp_path.glob("*_dead.png"))
    assert "none stands out of the noise" in capsys.readouterr().out
    (done,) = denoised(paths[1], "dead=auto", *plain)
    assert "dead pixels    16 of 5184" in capsys.readouterr().out
    assert done.values["dead_pixels"] == dead.sum() == 16
    assert done.sigma == pytest.approx(whole.sigma, rel=0.03), "as if there were none"
    mask = read_image(tmp_path / "b_denoised_dead.png").pixels
    assert np.array_equal(mask[..., 0] == 0, dead)
    clean, reference = read_image(done.target).pixels, read_image(whole.target).pixels
    assert np.sqrt(np.mean((clean - reference)[dead] ** 2)) < 0.02
    assert np.abs(clean - reference)[~dead].max() < 0.02
    (told,) = denoised(
        paths[1], f"dead={tmp_path / 'b_denoised_dead.png'}", f"output={tmp_path / 'm.tif'}", *plain
    )
    assert np.array_equal(read_image(told.target).pixels, clean)
    assert np.array_equal(se.denoise(spoiled, dead="auto"), clean)
    turned = torch.from_numpy(np.moveaxis(spoiled, -1, 0).copy())
    by_mask = se.denoise(turned, dead=torch.from_numpy(dead)).numpy()
    np.testing.assert_allclose(np.moveaxis(by_mask, 0, -1), clean, atol=1e-6)


def test_masks_of_dead_pixels_that_cannot_be_are_refused(tmp_path):
    path = saved(tmp_path / "a.png", noisy(GaussianNoise(0.2), 64))
    for value, text in ((0.0, "all black, so nothing is known"), (1.0, "without a dead pixel: paint them")):
        mask = saved(tmp_path / f"{value}.png", np.full((64, 64, 1), value))
        with pytest.raises(UserError, match=text):
            denoised(path, f"dead={mask}")
    with pytest.raises(ValueError, match=r"dead has shape \(3, 3\), the image \(64, 64, 3\)"):
        se.denoise(noisy(GaussianNoise(0.2), 64), dead=np.ones((3, 3)))
    assert asked(f"input={path}", "dead=nowhere.png") == 1


def test_a_folder_goes_on_and_is_counted(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    saved(folder / "a.png", noisy(GaussianNoise(0.2), 64))
    saved(folder / "b.png", np.full((40, 40, 1), 0.5))
    saved(folder / "c.tif", noisy(GaussianNoise(0.2), 64, 1), bit_depth=16)
    with pytest.raises(UserError, match=r"1 of 3 images failed: .*b\.png"):
        denoised(folder)
    out = tmp_path / "in_denoised"
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "c.tif", "denoised.json"]
    assert len(json.loads((out / "denoised.json").read_text())["pictures"]) == 2
    assert "b.png: no noise was found, all pixels are equal: give sigma=" in capsys.readouterr().out
    (folder / "b.png").unlink()
    denoised(folder, "overwrite=true")
    assert "2 of 2 images" in capsys.readouterr().out


def test_depth_gray_and_transparency_survive(tmp_path):
    alpha = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    path = saved(tmp_path / "a.png", noisy(GaussianNoise(0.1), 64), alpha=alpha, bit_depth=16)
    (done,) = denoised(path)
    before, after = read_image(path), read_image(done.target)
    assert after.bit_depth == 16
    assert np.array_equal(before.alpha, after.alpha)
    gray = noisy(GaussianNoise(0.2), 64, 1)[..., 0]
    assert se.denoise(gray).shape == gray.shape


@pytest.mark.parametrize(
    ("pixels", "keys", "message"),
    [
        (np.full((32, 32, 3), 0.5), [], "no noise was found, all pixels are equal: give sigma="),
        (np.ones((32, 32, 3)), [], "no noise was found, all pixels are equal"),
        (scene(), [], "no noise was found: give sigma="),
        (np.full((1, 1, 3), 0.5), [], "at least 16 pixels a side is needed: give sigma"),
        (noisy(PoissonNoise(0.3)).clip(0, 1), [], r"less than one count per pixel.* give noise=poisson noise\.peak="),
        (noisy(GaussianNoise(0.2)), ["sigma=0.1", "noise=poisson"], "two answers"),
        (noisy(GaussianNoise(0.2)), ["sigma=0.6"], r"sigma=0\.6 in units of .* is outside"),
        (noisy(CorrelatedNoise(0.2)), ["restorer=tv"], "TV is for white Gaussian noise, not CorrelatedNoise: take PnP"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_writes_nothing(pixels, keys, message, tmp_path):
    path = saved(tmp_path / "a.tif", pixels, bit_depth=32)
    with pytest.raises(ValueError, match=message) as error:
        denoised(path, *keys)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("side", [1, 2, 7, 16])
def test_the_smallest_and_plainest_pictures_are_denoised_where_the_level_is_known(side, capsys):
    for y in (np.clip(noisy(GaussianNoise(0.2), side), 0, 1), np.full((side, side, 1), 0.25)):
        assert se.denoise(y, sigma=0.1, say=print).shape == y.shape
    assert "nothing to judge the result by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image": np.full((20, 20), 7.0)},
            "give .0, 1. apart from noise, counts divided by their number at white",
        ),
        ({"image": np.full((20, 20), np.nan)}, "not finite"),
        ({"sigma": 0.1, "noise": GaussianNoise(0.2)}, "two answers"),
        ({"restorer": se.restorers.TV(), "model": Wiener()}, "TV takes no model"),
    ],
)
def test_python_users_are_told_the_same(arguments, message):
    with pytest.raises(ValueError, match=message):
        se.denoise(**{"image": noisy(GaussianNoise(0.2)), **arguments})


def test_models_of_any_size_and_samplers_take_the_place_of_the_prior():
    y = noisy(GaussianNoise(0.2), 64).astype(np.float32)
    sampler = se.samplers.DDIM(se.samplers.UniformGrid(1))  # one time: the posterior mean
    expected = se.denoise(y, sigma=0.1)
    for arguments in ({"sampler": sampler}, {"model": Wiener(), "sampler": sampler}):
        np.testing.assert_allclose(se.denoise(y, sigma=0.1, **arguments), expected, atol=1e-6)
    averaged = se.restorers.Averaged(se.restorers.BySampling(se.samplers.DDPM(se.samplers.UniformGrid(5))), 8)
    assert psnr(se.denoise(y, sigma=0.1, restorer=averaged), 64) > psnr(y, 64) + 7


def test_python_users_hear_what_was_done(capsys):
    se.denoise(noisy(GaussianNoise(0.2)), say=print)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["noise", "restorer", "residual"]
    assert "white Gaussian, sigma 0.1" in said[0]
    assert "what was removed looks like noise alone" in said[2]


def test_noise_alone_in_few_pixels_is_no_pattern_and_texture_in_it_is():
    noise, x = GaussianNoise(0.2), torch.zeros(1, 1, 24, 24)
    texture = 0.2 * torch.sin(1.2 * torch.arange(24.0))
    for seed in range(4):
        y = noise.sample(x, ImageStreams([seed]))
        assert "looks like noise alone" in str(by_residual(Observation(y, Identity(), noise), x))
        assert "has a pattern that such noise has not" in str(
            by_residual(Observation(y + texture, Identity(), noise), x)
        )


def test_tiles_give_what_the_whole_gives():
    pixels = noisy(GaussianNoise(0.2), 150, 1).astype(np.float32)
    reaches = se.restorers.Bilateral()  # six pixels, fewer than the outer quarter of the overlap
    whole = se.denoise(pixels, sigma=0.1, restorer=reaches, tile=None)
    np.testing.assert_allclose(se.denoise(pixels, sigma=0.1, restorer=reaches, tile=64), whole, atol=1e-6)
