"""Sinogram flicking: exchanged rays run along the same lines, and their noise is independent."""

import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.observations import GaussianNoise, Identity, Observation, Radon
from scoreexp.restorers import SinogramFlicking
from scoreexp.restorers.flicking import conjugate, flicked


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [15, 16])
def test_a_sinogram_without_noise_stays_as_it_is(size):
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    x[..., 4:-3, 3:-4] = random(1, 1, size - 7, size - 7)  # no corner of it turns beyond the detectors
    y = Radon(size, 14, full_turn=True)(x)
    torch.testing.assert_close(conjugate(y), y, rtol=0, atol=1e-12)
    assert (y.roll(7, -2) - y).abs().max() > 0.1, "the exchange is more than a turn"


@pytest.mark.parametrize("size", [9, 10])
def test_every_place_has_one_ray_of_its_pair_in_each_of_the_two(size):
    y = random(1, 1, 400, size)
    torch.testing.assert_close(conjugate(conjugate(y)), y)
    drawn = random(1, 1, 400, size, seed=1)
    drawn = drawn + conjugate(drawn)
    chosen = drawn < drawn.median()
    first, second = flicked(y, chosen), flicked(y, ~chosen)
    torch.testing.assert_close(first + second, y + conjugate(y))
    paired = (..., slice(1 - size % 2, None))
    both = torch.stack([first[paired].flatten(), second[paired].flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.06
    torch.testing.assert_close(first.sum(), y.sum())  # the rays of a pair change places


def test_it_removes_more_than_the_mean_of_the_two_rays():
    x = torch.zeros(1, 1, 17, 17)
    x[..., 5:12, 5:12] = 0.1
    clean = Radon(17, 32, full_turn=True)(x)
    observation = Observation.simulate(clean, Identity(), GaussianNoise(0.2), ImageStreams([0], "noise"))
    made = SinogramFlicking(steps=60, width=8, lr=3e-3)(observation, streams=ImageStreams([0])).x
    mean = (observation.y + conjugate(observation.y)) / 2
    assert (made - clean).square().mean() < 0.6 * (mean - clean).square().mean()
    torch.testing.assert_close(conjugate(made), made)


def test_an_odd_number_of_angles_is_refused():
    with pytest.raises(
        ValueError, match=r"15 angles do not come in pairs: give an even number in \[0, 2 pi\)"
    ):
        SinogramFlicking(steps=1)(
            Observation(torch.zeros(1, 1, 15, 8), Identity(), GaussianNoise(0.1)), streams=ImageStreams([0])
        )


def test_a_picture_that_is_no_sinogram_is_refused():
    picture = torch.linspace(-1, 1, 16).expand(1, 1, 12, 16) + 0.1 * random(1, 1, 12, 16).float()
    with pytest.raises(ValueError, match=r"rays of a line are 1\.[12] apart, of which the noise makes 0\.14"):
        SinogramFlicking(steps=1)(
            Observation(picture, Identity(), GaussianNoise(0.1)), streams=ImageStreams([0])
        )
