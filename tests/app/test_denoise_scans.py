"""``denoise`` on files of several pages: each page by itself, or all as one volume."""

import json

import numpy as np
import pytest
import tifffile
import torch
from conftest import composed
from PIL import Image

import scoreexp as se
from scoreexp.app.commands.denoise import denoise
from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.data.image_io import Picture, read_image, write_image
from scoreexp.data.scan_io import read_scan
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers import TV, BySampling, HyRes
from scoreexp.restorers.images import restore_pixels
from scoreexp.samplers import sampler_of_one_level


def cube(bands=6, height=24, width=20, sigma=0.1):
    """Ramps of brightness that all bands share, with noise: counts of 16 bits."""
    spectrum = np.linspace(0.3, 0.7, bands)[:, None, None]
    clean = spectrum * np.linspace(0.5, 1, height)[:, None] * np.ones(width)
    noisy = clean + sigma * np.random.default_rng(0).standard_normal(clean.shape)
    return (65535 * noisy.clip(0, 1)).astype(np.uint16)


def asked(source, *overrides):
    return composed("denoise", f"input={source}", "device=cpu", *overrides)


def test_each_page_is_an_image_and_one_without_noise_is_kept(tmp_path, capsys):
    values = cube(3)
    values[1] = 4321
    np.save(tmp_path / "a.npy", values)
    (done,) = denoise(asked(tmp_path / "a.npy", "restorer=tv", "sigma=0.1"))
    made = np.load(done.target)
    assert done.target == tmp_path / "a_denoised.npy"
    assert made.dtype == np.uint16
    np.testing.assert_array_equal(made[1], 4321)
    for page in (0, 2):
        pixels = (values[page] / np.float32(65535))[..., None]
        expected = restore_pixels(TV(), None, pixels, GaussianNoise(0.2)).states[-1][..., 0]
        assert np.abs(made[page] - 65535.0 * expected).max() <= 0.51
    told = json.loads((tmp_path / "a_denoised.json").read_text())["pictures"][0]
    assert told["levels"] == [pytest.approx(0.1), None, pytest.approx(0.1)]
    assert (told["pages"], told["page"]) == (3, 3)
    assert (
        "1 of 3 pages are kept as they were, the first is 2: all values of the page are equal"
        in capsys.readouterr().out
    )
    assert (tmp_path / "a_denoised_strip.png").exists()
    with pytest.raises(UserError, match="exists: add overwrite=true"):
        denoise(asked(tmp_path / "a.npy", "restorer=tv", "sigma=0.1"))


def test_noise_that_is_fainter_than_the_prior_knows_is_refused_alike_in_scans_and_pictures(tmp_path):
    text = r"the noise, 0\.001 of the range, is fainter than 0\.005.*restorer=non_local_means.*window="
    np.save(tmp_path / "a.npy", cube(1)[0])
    write_image(tmp_path / "a.png", Picture(cube(1)[0][..., None] / np.float32(65535)))
    for name in ("a.npy", "a.png"):
        for noise in (["sigma=0.001"], ["noise=correlated", "noise.sigma=0.002", "noise.length=1"]):
            with pytest.raises(ValueError, match=text):
                denoise(asked(tmp_path / name, *noise))
    with pytest.raises(ValueError, match=text):
        se.denoise(np.full((24, 20), 0.5), sigma=0.001)


def test_a_scan_and_a_picture_of_the_same_values_have_the_same_result(tmp_path):
    y = np.clip(
        cube(1, 40, 40)[0] / np.float32(65535) - 0.3, 0, 1
    )  # much of it black, where its noise is clipped
    np.save(tmp_path / "a.npy", y)
    write_image(tmp_path / "b.tif", Picture(y[..., None], bit_depth=32))
    plain = "sigma=0.1", "strip=false", "residual=false"
    made = [denoise(asked(tmp_path / name, *plain))[0] for name in ("a.npy", "b.tif")]
    assert made[0].values["restorer"] == made[1].values["restorer"]
    assert "without the bias of clipping at black" in made[0].values["restorer"]
    np.testing.assert_allclose(np.load(made[0].target), tifffile.imread(made[1].target), atol=1e-6)


def test_dead_pixels_of_a_page_and_of_a_volume_are_filled_in(tmp_path):
    values = cube(3, sigma=0.02)
    dead = np.zeros(values.shape[1:], bool)
    dead[5::9, 4::7] = True
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "b.npy", np.where(dead, 0, values).astype(np.uint16))
    write_image(tmp_path / "dead.png", Picture((~dead)[..., None].astype(np.float32)))
    for words in (["restorer=tv"], ["restorer=hyres", "volume=true"]):
        given = ["sigma=0.02", "overwrite=true", "strip=false", "residual=false", *words]
        made = []
        for name, mask in (("a", "null"), ("b", "auto"), ("b", tmp_path / "dead.png")):
            (done,) = denoise(asked(tmp_path / f"{name}.npy", f"dead={mask}", *given))
            made.append(np.load(done.target)[:, dead] / 65535)
        whole, found, told = made
        np.testing.assert_array_equal(found, told)
        assert done.values["dead_pixels"] == dead.sum()
        assert np.abs(told - whole).max() < 0.04
    assert np.array_equal(read_image(tmp_path / "b_denoised_dead.png").pixels[..., 0] == 0, dead)
    np.save(tmp_path / "c.npy", cube(1, 30)[0])
    with pytest.raises(UserError, match=r"dead=.*is 20 x 24 pixels in 1 channel, the image 20 x 30 pixels"):
        denoise(asked(tmp_path / "c.npy", f"dead={tmp_path / 'dead.png'}", "sigma=0.1"))


def test_a_hot_pixel_darkens_no_picture_and_is_in_the_file(tmp_path, capsys):
    hot = np.tile(cube(1)[0].astype(np.float32) / 65535, (3, 3))
    hot[3, 4] = 20.0
    np.save(tmp_path / "hot.npy", hot)
    (done,) = denoise(asked(tmp_path / "hot.npy", "restorer=tv", "sigma=0.005"))
    assert "pictures       show " in capsys.readouterr().out
    assert np.load(done.target).max() > 10
    with Image.open(tmp_path / "hot_denoised_strip.png") as strip:
        shown = np.asarray(strip.convert("L"))
    middle = shown[shown.shape[0] // 2 - 100 : shown.shape[0] // 2 + 100, 50:350]
    assert middle.std() > 20  # of 255


def test_pages_of_tiff_are_refused_unless_it_is_said_what_they_are(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", cube(3), photometric="minisblack")
    with pytest.raises(UserError, match=r"holds 3 images.*volume=false for an image each, volume=true"):
        denoise(asked(tmp_path / "a.tif", "restorer=tv", "sigma=0.1"))
    (done,) = denoise(asked(tmp_path / "a.tif", "restorer=tv", "sigma=0.1", "volume=false"))
    assert tifffile.imread(done.target).shape == (3, 24, 20)


def test_a_folder_holds_images_and_scans_and_a_result_keeps_its_format(tmp_path):
    folder = tmp_path / "in"
    write_image(folder / "a.png", cube(1)[0].astype(np.float32) / 65535)
    np.save(folder / "b.npy", cube(2))
    done = denoise(asked(folder, "restorer=tv", "sigma=0.1"))
    assert [result.target.name for result in done] == ["a.png", "b.npy"]
    from scoreexp.denoise import run

    with pytest.raises(UserError, match=r"its suffix must be '\.npy'"):
        run(asked(folder / "b.npy", f"output={tmp_path / 'b.png'}"))


def test_a_volume_goes_through_at_once(tmp_path):
    values = cube()
    np.save(tmp_path / "a.npy", values)
    (done,) = denoise(asked(tmp_path / "a.npy", "restorer=hyres", "sigma=0.1", "volume=true"))
    y = torch.from_numpy(2 * (values / np.float32(65535)) - 1)[None]
    x = HyRes()(Observation(y, Identity(), GaussianNoise(0.2)), streams=ImageStreams([0])).x[0]
    expected = 65535.0 * (x.clamp(-1, 1) / 2 + 0.5)
    assert np.abs(np.load(done.target) - expected.numpy()).max() <= 0.51
    (done,) = denoise(asked(tmp_path / "a.npy", "restorer=hyres", "volume=true", "overwrite=true"))
    assert 0.08 < done.sigma < 0.12, "estimated over the bands"


def test_a_volume_that_is_none_or_has_no_model_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", cube(1))
    np.save(tmp_path / "two.npy", cube(2))
    for source, given, text in (
        ("one", "restorer=hyres", "has one page, and a volume several"),
        ("two", "seed=0", "volume=true needs a model of volumes"),
        ("two", "restorer=posterior_mean", "volume=true needs a model of volumes"),
        ("two", "gif=true", "leave them out for a scan"),
    ):
        with pytest.raises(UserError, match=text):
            denoise(asked(tmp_path / f"{source}.npy", "sigma=0.1", "volume=true", given))
    assert not list(tmp_path.glob("*_denoised*"))


@pytest.mark.integration
def test_a_model_of_noisy_cubes_is_trained_and_denoises_one_with_more_bands(tmp_path):
    values = cube()
    np.save(tmp_path / "a.npy", values)
    given = [
        f"data.root={tmp_path / 'a.npy'}", "data.size=8", "data.bands=4", "data.crops=4", "data.batch_size=2",
        "network.widths=[4]", "trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.accelerator=cpu",
        "data.num_val=2", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    result = train(composed("train", "experiment=cube_noise2score", *given))
    overrides = [f"ckpt={result.checkpoint}", "volume=true", "sigma=0.1", "overwrite=true"]
    (done,) = denoise(asked(tmp_path / "a.npy", *overrides))
    pixels = np.moveaxis(values, 0, -1) / np.float32(65535)
    model = se.load(result.checkpoint)
    sampler = sampler_of_one_level(model.schedule)
    blocks = [
        restore_pixels(BySampling(sampler), model, pixels[..., block], GaussianNoise(0.2)).states[-1]
        for block in (slice(0, 4), slice(2, 6))
    ]
    expected = np.concatenate(
        [blocks[0][..., :2], (blocks[0][..., 2:] + blocks[1][..., :2]) / 2, blocks[1][..., 2:]], -1
    )
    made = np.moveaxis(read_scan(done.target).values[..., 0], 0, -1)
    assert np.abs(made - 65535 * expected.astype(np.float64)).max() <= 0.6
    np.save(tmp_path / "b.npy", values[:3])
    with pytest.raises(UserError, match="models blocks of 4 pages"):
        denoise(asked(tmp_path / "b.npy", *overrides))
