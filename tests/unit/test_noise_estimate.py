"""estimate: the model and its parameters where it says good, a doubt where there is one."""

import numpy as np
import pytest
import torch
from skimage import data

from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.observations import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
)
from scoreexp.observations.noise.estimate import (
    LENGTHS,
    _levels_of_filtered,
    clipped_ends,
    concomitant_scale,
    estimate,
)


def scene(height=256, width=320):
    """Waves, boxes and a range of brightness, in [0.02, 0.95]."""
    row, column = np.mgrid[:height, :width] / 100
    x = 0.4 + 0.25 * np.sin(2 * row) * np.cos(1.5 * column) + 0.2 * (column > 1.7)
    x[40:90, 30:120], x[150:220, 200:290] = 0.05, 0.9
    return x.clip(0.02, 0.95)[..., None]


def noisy(clean, noise, seed=0):
    x = to_model(torch.from_numpy(np.moveaxis(clean, -1, 0))[None].double())
    return np.moveaxis(to_unit(noise.sample(x, ImageStreams([seed])))[0].numpy(), 0, -1)


def parameters(noise):
    return {name: value for name, value in vars(noise).items() if not name.startswith("_")}


def not_whole(pixels):
    """Counts with so little noise of reading that it changes nothing but the steps between the values."""
    return pixels + 1e-4 * np.random.default_rng(7).standard_normal(pixels.shape)


def eight_bits(pixels):
    return (pixels.clip(0, 1) * 255).round() / 255


@pytest.mark.parametrize(
    ("noise", "within"),
    [
        (GaussianNoise(0.05), 0.05),
        (GaussianNoise(0.4), 0.05),
        (PoissonNoise(30.0), 0.05),
        (PoissonNoise(4.0), 0.05),
        (PoissonNoise(0.7), 0.001),
        (PoissonGaussianNoise(30.0, 0.1), 0.15),  # the two parts make up for each other's errors
        (PoissonGaussianNoise(200.0, 0.05), 0.15),
        (GammaNoise(1.0), 0.1),
        (GammaNoise(10.0), 0.08),
        (CorrelatedNoise(0.2, 0.5), 0.1),
        (CorrelatedNoise(0.2, 1.0), 0.1),
    ],
    ids=lambda value: repr(parameters(value)) if hasattr(value, "sample") else str(value),
)
def test_each_model_is_told_from_the_others_with_its_parameters(noise, within):
    found, trust, why = estimate(noisy(scene(), noise))
    assert (type(found), trust) == (type(noise), "good"), why
    assert parameters(found) == pytest.approx(parameters(noise), rel=within)


@pytest.mark.parametrize(
    ("noise", "law", "expected", "within"),
    [
        (
            GaussianNoise(0.2),
            PoissonGaussianNoise,
            {"sigma": 0.2},
            0.05,
        ),  # the counts that it does not show are few
        (GaussianNoise(0.2), CorrelatedNoise, {"sigma": 0.2, "length": LENGTHS[0]}, 0.1),
        (
            PoissonNoise(30.0),
            GaussianNoise,
            {"sigma": 2 * (0.44 / 30) ** 0.5},
            0.1,
        ),  # 0.44: mean of the scene
        (PoissonNoise(4.0), PoissonGaussianNoise, {"peak": 4.0}, 0.02),
        (PoissonNoise(200.0), PoissonNoise, {"peak": 200.0}, 0.05),
        (GammaNoise(10.0), GammaNoise, {"looks": 10.0}, 0.08),
        (CorrelatedNoise(0.2, 1.0), CorrelatedNoise, {"sigma": 0.2, "length": 1.0}, 0.1),
    ],
)
def test_of_a_law_that_is_named_the_parameters_alone_are_estimated(noise, law, expected, within):
    found, _, why = estimate(not_whole(noisy(scene(), noise)), law)
    assert type(found) is law, why
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=within)


def test_a_law_that_is_named_and_does_not_fit_is_doubted():
    speckled = noisy(scene(), GammaNoise(10.0))
    assert estimate(speckled, GammaNoise).trust == "good"
    assert "GaussianNoise does not fit its noise" in (why := estimate(speckled, GaussianNoise).why)
    assert "GammaNoise is nearer" in why
    shared = noisy(scene(), CorrelatedNoise(0.2, 1.0))
    assert "neighbours share its noise" in estimate(shared, PoissonNoise).why
    with pytest.raises(
        ValueError, match="the parameters of NoiseModel cannot be estimated, those of GaussianNoise"
    ):
        estimate(speckled, NoiseModel)


@pytest.mark.parametrize("name", ["camera", "coffee"])
@pytest.mark.parametrize("peak", [0.5, 1.0, 30.0])
def test_counts_of_photographs_within_a_tenth_or_doubtful(name, peak):
    clean = getattr(data, name)()[:400, :400].reshape(400, 400, -1) / 255
    counts = noisy(clean, PoissonNoise(peak))
    whole, trust, _ = estimate(counts)
    if len(np.unique(counts)) <= 100:
        assert (type(whole), trust) == (PoissonNoise, "good")
        assert whole.peak == pytest.approx(peak, rel=1e-9)
    found, trust, _ = estimate(not_whole(counts))
    assert trust == "doubtful" or (
        isinstance(found, PoissonGaussianNoise) and found.peak == pytest.approx(peak, rel=0.1)
    )


def test_clipping_to_eight_bits_is_undone_by_the_second_measurement():
    found, _, why = estimate(eight_bits(noisy(scene(), GaussianNoise(0.7))))
    assert isinstance(found, GaussianNoise), why
    assert found.sigma == pytest.approx(0.7, rel=0.07)  # 0.60 without it


def test_noise_with_black_pixels_is_no_speckle_however_its_variance_grows():
    clean = scene()
    clipped = (clean * (1 + 0.45 * np.random.default_rng(0).standard_normal(clean.shape))).clip(0, None)
    assert not isinstance(estimate(clipped).noise, GammaNoise)
    assert "darker than speckle can be" in estimate(clipped, GammaNoise).why


def test_values_at_the_ends_are_clipped_noise_where_there_are_as_many_as_the_law_brings():
    y = noisy(scene(), GaussianNoise(0.2))
    assert clipped_ends(y, GaussianNoise(0.2)) == (False, False)
    assert clipped_ends(eight_bits(y), GaussianNoise(0.2)) == (True, True)
    dark = 0.03 + 0.004 * noisy(0 * scene(), GaussianNoise(2.0))  # less noise in the dark than is assumed
    assert clipped_ends(dark.clip(0, 1), GaussianNoise(0.1)) == (False, False)
    assert clipped_ends(eight_bits(noisy(scene(), PoissonNoise(2.0))), PoissonNoise(2.0)) == (False, True)


def test_large_pictures_are_looked_at_in_tiles():
    large = np.tile(noisy(scene(), PoissonGaussianNoise(30.0, 0.1)), (4, 4, 1))
    found, trust, _ = estimate(large)
    assert trust == "good"
    assert found.peak == pytest.approx(30, rel=0.15)


def test_the_levels_of_filtered_noise_are_those_of_drawn_noise():
    length = float(LENGTHS[20])
    drawn = noisy(np.full((256, 256, 1), 0.5), CorrelatedNoise(0.2, length))
    found, _, _ = estimate(drawn)
    assert found.length == pytest.approx(length, rel=0.05)
    assert found.sigma == pytest.approx(0.2, rel=0.05)
    assert _levels_of_filtered()[0] == pytest.approx([1, 1, 1], abs=0.03)  # nearly white


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.full((80, 80, 1), 0.5), "no noise was found"),
        (data.chelsea()[:256, :256] / 255, "weaker than its texture"),
        (noisy(scene(48, 48), GaussianNoise(0.2)), "smaller than 64"),
        (not_whole(noisy(np.full((128, 128, 1), 0.4), PoissonNoise(10.0))), "fits it about as well"),
        (noisy(np.repeat(scene(), 3, 2), GaussianNoise(0.1)) + 0.2 * (np.random.default_rng(1).standard_normal(
            (256, 320, 3)) * [0, 0, 1]), "channels disagree"),
        (not_whole(noisy(0.02 * scene(), PoissonNoise(1.0))), "too few of its pixels"),
        (eight_bits(noisy(scene(), PoissonNoise(0.3))), "counts above white are missing"),
        (eight_bits(noisy(0.4 + 0.6 * scene(), GaussianNoise(0.5))), "clipped to white"),
        (scene() + (0.2 * (1 - scene())) * np.random.default_rng(0).standard_normal((256, 320, 1)),
         "no model fits its noise, GaussianNoise is the nearest"),
        (scene() + 0.4 * scene() * noisy(0 * scene(), CorrelatedNoise(1.0, 0.7)), "depends on brightness"),
    ],
)  # fmt: skip
def test_doubts_are_said(pixels, why):
    estimated = estimate(pixels)
    assert estimated.trust == "doubtful"
    assert why in estimated.why


@pytest.mark.parametrize("side", [16, 17, 24, 33])
def test_the_smallest_pictures_get_an_answer(side):
    assert estimate(noisy(scene(side, side), GaussianNoise(0.2))).trust == "doubtful"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((12, 100, 3)), "16 pixels"),
        (np.zeros((100, 100)), r"\[H, W, C\]"),
        (np.zeros((100, 100, 3), np.uint8), "uint8"),
        (np.full((100, 100, 1), np.nan), "not finite"),
    ],
)
def test_refusals(pixels, message):
    with pytest.raises(ValueError, match=message):
        estimate(pixels)


def test_the_concomitant_scale_minimises_its_objective():
    r = np.random.default_rng(0).standard_normal(50)
    s = concomitant_scale(r)
    objective = [(r @ r) / (2 * len(r) * v) + v / 2 for v in (0.99 * s, s, 1.01 * s)]
    assert objective[1] == min(objective) == pytest.approx(s)
    with pytest.raises(ValueError, match="empty"):
        concomitant_scale(r[:0])
