"""Generation from a mixture of noise and an image: the start by hand, the flow of a Gaussian in closed form."""

import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers import ConditionalStart
from scoreexp.samplers import ProbabilityFlow, UniformGrid
from scoreexp.schedules import VEPower

MEAN, VARIANCE = 0.3, 0.2


def test_the_flow_through_the_mixture():
    """x_0 = m + (x_T - m) sqrt((v + s_0^2) / (v + s_T^2)) for N(m, v) under a variance-exploding schedule."""
    shape, schedule = (1, 4, 4), VEPower()
    model = OracleDenoiser(Gaussian(torch.full(shape, MEAN), torch.full(shape, VARIANCE)), schedule)
    y = torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(2, *shape)
    sampler = ProbabilityFlow(UniformGrid(2), denoise_last=False, solver=RK45(rtol=1e-7, atol=1e-9))
    z = ImageStreams([3, 4]).normal(y)
    first, last = (float(schedule.at(t)[1]) for t in (schedule.t_max, schedule.t_min))
    for weight in (0.0, 0.25):
        restorer = ConditionalStart(sampler, weight=weight, sigma=1.0, mean=0.1)
        found = restorer(
            Observation(y, Identity(), GaussianNoise(0.0)), model, streams=ImageStreams([3, 4])
        ).x
        start = (1 - weight) * (2 * (0.1 + z) - 1) + weight * y  # of [0, 1] in the units of the model
        shrunk = ((VARIANCE + last**2) / (VARIANCE + first**2)) ** 0.5
        torch.testing.assert_close(found, MEAN + (start - MEAN) * shrunk, rtol=1e-4, atol=1e-5)
