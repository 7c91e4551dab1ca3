"""The bundled prior: what its card says, and what its weights do on photographs that they were not trained on."""

from importlib import resources

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_nl_means

import scoreexp as se
from scoreexp import prior
from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import generator
from scoreexp.data.photo import photographs
from scoreexp.data.pictures import read_picture, with_channels
from scoreexp.observations import GaussianNoise

HELD_OUT = {3: "motorcycle_left", 1: "camera"}


def held_out(channels):
    """A crop ``[1, C, 128, 128]`` in model units."""
    name = HELD_OUT[channels]
    assert name not in [source["path"].rsplit(".", 1)[0] for source in prior.card()["sources"]]
    pixels = with_channels(read_picture(photographs()[name]), channels)[60:188, 150:278]
    return to_model(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float())


def psnr(estimate, clean):
    return float(-10 * torch.log10((to_unit(estimate).clip(0, 1) - to_unit(clean)).square().mean()))


def test_the_package_carries_at_most_four_megabytes_and_names_every_source():
    weights = resources.files("scoreexp.prior").joinpath("photo.safetensors").read_bytes()
    card = prior.card()
    assert len(weights) <= 4_000_000
    assert card["parameters"] == sum(p.numel() for p in prior.load().network.parameters())
    assert all(source["licence"] and source["author"] for source in card["sources"])
    assert len({(source["package"], source["path"]) for source in card["sources"]}) == len(card["sources"])


def test_images_of_other_channels_are_refused_in_a_line():
    observation = se.Observation(torch.zeros(1, 2, 16, 16), se.observations.Identity(), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="images of 2 channels for a network of 3: give images of 3, or"):
        se.restore(observation, prior.load())


@pytest.mark.parametrize("channels", [1, 3])
def test_one_evaluation_beats_non_local_means_by_a_decibel(channels):
    clean, model = held_out(channels), prior.load()
    for sigma in (15 / 255, 50 / 255):
        noise = torch.randn(clean.shape, generator=generator(0, "noise"))
        noisy = clean + 2 * sigma * noise
        estimate = model(noisy, model.schedule.t_of_sigma(torch.tensor([2 * sigma], dtype=torch.float64)))
        image = to_unit(noisy)[0].permute(1, 2, 0).numpy()
        classical = denoise_nl_means(image, sigma=sigma, h=0.8 * sigma, fast_mode=True, channel_axis=-1)
        classical = to_model(torch.from_numpy(classical.reshape(image.shape)).permute(2, 0, 1)[None])
        assert psnr(estimate, clean) > psnr(classical, clean) + 1


def test_it_is_a_score_model_of_all_its_levels():
    """A posterior mean is a projection: the expected noise and what it misses are orthogonal, so their squares add to 1."""
    clean, model = held_out(3), prior.load()
    for sigma in np.geomspace(0.04, 1.0, 6):  # 5 to 127 of 255; below it was hardly trained
        noise = torch.randn(clean.shape, generator=generator(1, "noise"))
        t = model.schedule.t_of_sigma(torch.tensor([sigma], dtype=torch.float64))
        expected = model.eps(clean + sigma * noise, t)
        squares = expected.square().mean() + (noise - expected).square().mean()
        assert float(squares) == pytest.approx(1, abs=0.05)
