"""Learned noise on two classes with exact denoisers: what its pairs gain, and what they cost."""

import pytest
import torch

from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import ConditionalOracle, OracleDenoiser
from scoreexp.guidance import ClassifierFree, fit_noise_network, noise_law, noise_pairs
from scoreexp.numerics.oracles import Gaussian
from scoreexp.samplers import DDIM, QuadraticGrid
from scoreexp.schedules import VP

CLASSES = [Gaussian(torch.full((2,), mean), torch.full((2,), 0.3)) for mean in (-0.4, 0.4)]
MODEL, GRID, N = ConditionalOracle(CLASSES, [0.5, 0.5], VP()), QuadraticGrid(20), 600
Z = torch.randn(N, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COND = torch.arange(N) % 2


def certainty(z):
    """Mean log p(class | x) of samples that start from ``z`` without guidance, and their deviation within a class."""
    start = MODEL.schedule.prior_std * z
    x = DDIM(GRID)(ClassifierFree(MODEL, 1.0), start, streams=ImageStreams(range(N)), cond=COND).x
    smallest = torch.full((N,), MODEL.schedule.t_min, dtype=torch.float64)
    log_p = MODEL.log_posterior(x, smallest)[torch.arange(N), COND].mean().item()
    return log_p, torch.stack([x[k == COND].std(0).mean() for k in (0, 1)]).mean().item()


def test_pairs_and_the_network_raise_the_certainty_of_the_class_and_their_loss_of_diversity_is_reported():
    target = noise_pairs(MODEL, Z, COND, GRID, high=3.0)
    network, law = fit_noise_network(MODEL, (2,), GRID, pairs=600, high=3.0, steps=200, width=32, lr=1e-2)
    plain, paired, learned = (certainty(z) for z in (Z, target, network(Z.float(), COND).double()))
    print("log p(class), deviation:", plain, paired, learned, law)
    assert plain[0] < paired[0] - 0.05
    assert learned[0] == pytest.approx(paired[0], abs=0.03)
    assert noise_law(Z, COND).is_normal
    for found in (noise_law(target, COND), law):
        assert not found.is_normal
        assert found.spread == pytest.approx((paired[1] / plain[1]) ** 2, rel=0.1)
    assert noise_law(target, 0 * COND).is_normal, "over the two classes together nothing is to be seen"
    assert paired[1] < 0.95 * plain[1], "diversity is lost, which the law of the noise says"


def test_with_one_weight_for_both_ways_the_noise_comes_back():
    errors = []
    for steps in (25, 50, 100):
        again = noise_pairs(MODEL, Z[:100], COND[:100], QuadraticGrid(steps), high=2.0, low=2.0)
        errors.append((again - Z[:100]).square().mean().sqrt().item())
    print("errors", errors)
    assert errors[1] < 0.6 * errors[0], "DDIM is of first order"
    assert errors[2] < 0.6 * errors[1]
    assert noise_law(again, COND[:100]).is_normal


def test_the_law_of_noise():
    assert noise_law(Z, COND).norm == pytest.approx(Z.square().mean().item(), rel=1e-12)
    shrunk, shifted = noise_law(0.8 * Z, COND), noise_law(Z + 0.2, COND)
    assert shrunk.norm_deviations < -3.3
    assert shifted.p_value < 1e-3
    assert not shrunk.is_normal
    assert not shifted.is_normal
    plain = OracleDenoiser(CLASSES[0], VP())
    with pytest.raises(UserError, match="has no classes; train with"):
        fit_noise_network(plain, (2,), GRID)
