"""Models that have seen noisy images alone come nearer to the clean ones."""

from functools import partial

import pytest
import torch

import scoreexp as se
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.observations import CorrelatedNoise, GaussianNoise, Identity, Observation
from scoreexp.restorers import Noise2Score

SHAPE = (1, 24, 24)


def waves(count):
    """Smooth images ``[N, 1, 24, 24]``: a wave of random direction and phase each."""
    random = generator(0, "waves")
    row, column = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    a, b, phase = torch.rand(3, count, 1, 1, 1, generator=random)
    return 0.6 * torch.sin(0.2 * (2 * a - 1) * row + 0.2 * (2 * b - 1) * column + 6.28 * phase)


@pytest.mark.parametrize(("name", "share"), [("noise2score", 0.2), ("sdap", 0.2), ("cbsn", 0.4)])
def test_the_error_is_a_small_share_of_that_of_the_noise(name, share):
    clean = waves(96)
    noise = CorrelatedNoise(0.5, 0.6) if name == "sdap" else GaussianNoise(0.5)
    y = noise.sample(clean, ImageStreams(range(96)))
    torch.manual_seed(0)
    if name == "noise2score":
        network = se.networks.ScoreCNN(event_shape=SHAPE, widths=(24, 24, 24))
        objective = se.objectives.ARDAE(largest=0.5, smallest=0.1, ramp=100)
        precond = se.denoisers.ScorePrediction()
    else:
        centre = name == "cbsn"
        network = se.networks.BlindSpot(
            event_shape=SHAPE, channels=16, blocks=1, stride=1 if centre else 2, centre=centre
        )
        objective = (
            se.objectives.DownsampledInvariance(stride=1, ramp=60) if centre else se.objectives.SDAP(stride=2)
        )
        precond = se.denoisers.X0Prediction()
    model = se.train(
        se.denoisers.Denoiser(network, precond, se.schedules.ConstantNoise(0.5)),
        y,
        steps=120,
        objective=objective,
        time_law=se.objectives.UniformTime(),
        optimizer=partial(torch.optim.Adam, lr=5e-3),
        batch_size=8,
    )
    if name == "noise2score":
        x = Noise2Score()(Observation(y, Identity(), noise), model, streams=ImageStreams(range(96))).x
    else:
        with torch.no_grad():
            x = model(y, torch.full((96,), 0.5, dtype=torch.float64))
    assert (x - clean).square().mean() < share * (y - clean).square().mean()
