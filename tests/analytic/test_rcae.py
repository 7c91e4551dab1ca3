"""The contractive objective against the denoising one by quadrature, as the noise level falls."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.objectives import DenoisingScoreMatching, ReconstructionContractive, X0Weighting
from scoreexp.schedules import VE, VP

MEANS, WEIGHTS, VARIANCE = torch.tensor([[-0.8], [0.6]]), torch.tensor([0.3, 0.7]), 0.09
MIXTURE = GaussianMixture(WEIGHTS, MEANS, torch.full((2,), VARIANCE))


def gauss(n):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def expected(objective, model, level, with_noise):
    """Its expectation over the mixture's data, and over the noise, by quadrature."""
    nodes, weights = gauss(40)
    x = (MEANS.double() + VARIANCE**0.5 * nodes).flatten()
    p = (WEIGHTS[:, None].double() * weights).flatten()
    z, q = gauss(10) if with_noise else (torch.zeros(1).double(), torch.ones(1).double())
    rows, noise = x.repeat_interleave(len(z))[:, None], z.repeat(len(x))[:, None]
    t = model.schedule.t_of_sigma(torch.full((len(rows),), level, dtype=torch.float64))
    loss = objective(model, Batch(x=rows), t, noise).detach()
    return (loss * (p[:, None] * q).flatten()).sum().item()


@pytest.mark.parametrize("schedule", [VE(), VP()], ids=["ve", "vp"])
def test_it_meets_the_denoising_loss_to_sixth_order_in_the_noise_level(schedule):
    model, levels = OracleDenoiser(MIXTURE, schedule), [0.08, 0.04, 0.02]
    rcae, dae = ReconstructionContractive(None), DenoisingScoreMatching(X0Weighting())
    gaps = []
    for level in levels:
        contractive, denoising = (
            expected(o, model, level, noisy) for o, noisy in ((rcae, False), (dae, True))
        )
        gaps.append(abs(contractive - denoising))
        assert denoising == pytest.approx(level**2, rel=0.5), "the loss itself is of second order"
    orders = [math.log2(a / b) for a, b in pairwise(gaps)]
    print("gaps", gaps, "orders", orders)
    assert orders[-1] == pytest.approx(6, abs=0.3)


def test_of_linear_reconstructions_both_have_one_loss_and_the_denoiser_is_the_best():
    class Scaled(DenoiserBase):
        def __init__(self, gain):
            self.gain, self.schedule, self.event_shape = gain, VP(), (1,)

        def __call__(self, x_t, t, cond=None):
            return self.gain * x_t / self.schedule(t)[0][:, None]

    level, best = 0.5, None
    variance = (WEIGHTS[:, None] * (MEANS**2 + VARIANCE)).sum().item()
    for gain in np.linspace(0, 1, 101):
        contractive = expected(ReconstructionContractive(None), Scaled(gain), level, False)
        assert contractive == pytest.approx((gain - 1) ** 2 * variance + level**2 * gain**2, rel=1e-6)
        best = min(best or (math.inf, 0), (contractive, gain))
    assert best[1] == pytest.approx(variance / (variance + level**2), abs=0.006)


def test_random_directions_have_the_exact_norm_as_expectation():
    spread = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.5, 0.2], [0.0, 0.2, 2.0]])
    model = OracleDenoiser(Gaussian(torch.zeros(3), spread), VE())
    x = torch.zeros(4000, 3, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = model.schedule.t_of_sigma(torch.full((4000,), 0.7, dtype=torch.float64))
    exact, random, many = (
        ReconstructionContractive(k)(model, Batch(x=x), t, noise).detach() for k in (None, 1, 16)
    )
    assert exact.std() < 1e-12
    assert random.mean().item() == pytest.approx(exact[0].item(), rel=0.02)
    assert many.std() < random.std() / 3
