"""The rescaled schedule against the paper's algorithm, and the mean that it repairs."""

import pytest
import torch

from scoreexp.denoisers import Denoiser, EpsPrediction, OracleDenoiser, ScorePrediction, VPrediction
from scoreexp.numerics.oracles import Gaussian
from scoreexp.samplers import DDIM, QuadraticGrid, draw
from scoreexp.schedules import DDPM, EDM, VP, ZeroTerminalSNR


def test_the_steps_have_the_betas_of_the_paper():
    schedule = ZeroTerminalSNR(DDPM())
    # algorithm 1, step by step
    root = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * first / (first - last)
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, sigma = schedule(times)
    torch.testing.assert_close(alpha, root, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(sigma, (1 - root**2).sqrt(), rtol=1e-9, atol=0)
    assert schedule.at(1.0) == (0.0, 1.0)


def test_what_predicts_noise_is_refused():
    network = torch.nn.Identity()
    for kind in (EpsPrediction, ScorePrediction):
        with pytest.raises(ValueError, match=rf"{kind.__name__} does not determine x_0 .*precond=v"):
            Denoiser(network, kind(), ZeroTerminalSNR(DDPM()))
    Denoiser(network, VPrediction(), ZeroTerminalSNR(DDPM()))
    with pytest.raises(TypeError, match=r"of=.* must be a VariancePreserving"):
        ZeroTerminalSNR(EDM())


def test_samples_have_the_mean_that_the_plain_schedule_loses():
    plain = VP(beta_max=4.0)  # alpha = 0.36 at the last time
    data = Gaussian(torch.full((2,), 2.0), torch.full((2,), 0.04))
    means, deviations = [], []
    for schedule in (plain, ZeroTerminalSNR(plain)):
        x = draw(OracleDenoiser(data, schedule), DDIM(QuadraticGrid(200)), range(2000)).x
        means.append(x.mean().item())
        deviations.append(x.std().item())
    print("means", means, "deviations", deviations)
    assert means[0] < 1.9
    assert means[1] == pytest.approx(2.0, abs=0.01)
    assert deviations[1] == pytest.approx(0.2, rel=0.06)
