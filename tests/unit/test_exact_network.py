"""The exact posterior mean as a network."""

import pytest
import torch

from scoreexp.core.streams import generator
from scoreexp.denoisers.denoiser import Denoiser, OracleDenoiser
from scoreexp.denoisers.preconditioning import X0Prediction
from scoreexp.networks import ExactPosteriorMean
from scoreexp.numerics.oracles import EmpiricalImages
from scoreexp.schedules import DDPM, VE

IMAGES = torch.rand(5, 3, 4, 4, generator=generator(0, "images")) * 2 - 1


def exact(schedule):
    network = ExactPosteriorMean(event_shape=(3, 4, 4))
    network.store(IMAGES)
    return Denoiser(network, X0Prediction(), schedule)


@pytest.mark.parametrize("schedule", [VE(sigma_min=0.1, sigma_max=3.0), DDPM()], ids=["alpha=1", "alpha<1"])
def test_it_is_the_oracle_at_every_noise_level(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_max, 6, dtype=torch.float64)
    x_t = torch.randn(6, 3, 4, 4, generator=generator(1, "x"), dtype=torch.float64)
    wanted = OracleDenoiser(EmpiricalImages(IMAGES.double()), schedule)(x_t, t)
    # the network sees c_in x_t in float64, its c_noise too: only rounding is left, which the softmax magnifies
    torch.testing.assert_close(exact(schedule)(x_t, t), wanted, rtol=0, atol=1e-6)


def test_the_state_dict_restores_any_number_of_images():
    fresh = ExactPosteriorMean(event_shape=(3, 4, 4))
    fresh.load_state_dict(exact(VE()).network.state_dict())
    assert torch.equal(fresh.images, IMAGES)
    with pytest.raises(RuntimeError, match="images"):
        fresh.load_state_dict({})


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"images of shape \(2, 1, 4, 4\)"):
        ExactPosteriorMean(event_shape=(3, 4, 4)).store(torch.zeros(2, 1, 4, 4))
