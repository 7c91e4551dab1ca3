"""Zero-Shot Noise2Noise: its halves, what it removes, and what it refuses."""

import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.observations import GaussianNoise, Identity, Observation, Radon
from scoreexp.restorers import ZSN2N
from scoreexp.restorers.zs_n2n import diagonal_means


def observed(x, sigma=0.2, seeds=None):
    streams = ImageStreams(seeds or range(len(x)), "noise")
    return Observation.simulate(x, Identity(), GaussianNoise(sigma), streams)


def test_the_halves_are_the_means_of_the_diagonals():
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    first, second = diagonal_means(x)
    for i in range(3):
        for j in range(4):
            a, b, c, d = (
                x[..., 2 * i, 2 * j],
                x[..., 2 * i, 2 * j + 1],
                x[..., 2 * i + 1, 2 * j],
                x[..., 2 * i + 1, 2 * j + 1],
            )
            torch.testing.assert_close(first[..., i, j], (b + c) / 2)
            torch.testing.assert_close(second[..., i, j], (a + d) / 2)


def test_the_halves_have_independent_noise_and_agree_on_ramps():
    noise = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(1))
    first, second = (half.flatten() for half in diagonal_means(noise))
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.04
    assert first.var() == pytest.approx(0.5, rel=0.05)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    first, second = diagonal_means((0.3 * row - 0.2 * column)[None, None])
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("channels", "size"), [(3, (40, 40)), (1, (39, 41))])
def test_noise_is_removed_from_a_smooth_image(channels, size):
    ramp = torch.linspace(-0.5, 0.5, size[0])[:, None].expand(1, channels, *size)
    observation = observed(ramp)
    made = ZSN2N(steps=150)(observation, streams=ImageStreams([0]))
    assert made.x.shape == ramp.shape
    assert (made.x - ramp).square().mean() < 0.3 * (observation.y - ramp).square().mean()
    assert made.nfe == 0
    assert made.trajectory == []


def test_a_seed_names_a_result_whatever_the_batch_and_nothing_else_is_touched():
    x = torch.zeros(2, 1, 8, 8)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    observation, seen = observed(x), []
    whole = ZSN2N(steps=3)(
        observation, streams=ImageStreams([4, 7]), keep=2, callback=lambda i, n, *rest: seen.append((i, n))
    )
    assert torch.equal(torch.rand(1), expected), "the global generator is as it was"
    assert seen == [(i, 6) for i in range(1, 7)]
    single = Observation(observation.y[1:], Identity(), GaussianNoise(0.2))
    assert torch.equal(ZSN2N(steps=3)(single, streams=ImageStreams([7])).x, whole.x[1:])
    assert torch.equal(whole.trajectory[0], observation.y)
    assert not ZSN2N.needs_model


def test_what_it_cannot_serve_is_refused():
    restorer, streams = ZSN2N(steps=1), ImageStreams([0])
    with pytest.raises(ValueError, match=r"cannot undo Radon"):
        restorer(Observation(torch.zeros(1, 1, 5, 8), Radon(8, 5), GaussianNoise(0.1)), streams=streams)
    with pytest.raises(ValueError, match=r"not data \(1, 2\)"):
        restorer(Observation(torch.zeros(1, 2), Identity(), GaussianNoise(0.1)), streams=streams)
    with pytest.raises(ValueError, match=r"2 x 2 pixels at least, not \(1, 9\)"):
        restorer(Observation(torch.zeros(1, 1, 1, 9), Identity(), GaussianNoise(0.1)), streams=streams)
    two = Observation(torch.zeros(2, 1, 4, 4), Identity(), GaussianNoise(0.1))
    with pytest.raises(ValueError, match="2 observations for 1 seeds"):
        restorer(two, streams=streams)
    with pytest.raises(FloatingPointError, match="not finite at step 1 of 1: the image holds NaN"):
        restorer(Observation(two.y[:1] * float("nan"), Identity(), GaussianNoise(0.1)), streams=streams)


def test_it_fits_inside_of_an_evaluation_without_gradients():
    with torch.inference_mode():
        observation = observed(torch.zeros(1, 1, 8, 8))
        assert ZSN2N(steps=2)(observation, streams=ImageStreams([0])).x.isfinite().all()
