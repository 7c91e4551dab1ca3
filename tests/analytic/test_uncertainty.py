"""Learned weights by noise level, and P2: against their closed forms."""

import math

import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import (
    DenoisingScoreMatching,
    EpsWeighting,
    Objective,
    P2Weighting,
    UncertaintyWeighted,
)
from scoreexp.schedules import EDM, FlowMatching

LEVELS = torch.tensor([0.05, 0.3, 1.0, 8.0], dtype=torch.float64)
MODEL = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), EDM())
BATCH, NOISE = Batch(x=torch.zeros(40, 2)), torch.zeros(40, 2)


class ThisLoss(Objective):
    """Losses that are given, whatever the model."""

    def __init__(self, losses):
        self.losses = losses

    def __call__(self, model, batch, t, noise):
        return self.losses


def test_the_learned_size_of_each_level_is_its_mean_loss():
    t = LEVELS.repeat_interleave(10)
    scale = torch.tensor([0.01, 0.2, 1.0, 30.0], dtype=torch.float64).repeat_interleave(10)
    losses = scale * torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = UncertaintyWeighted(ThisLoss(losses)).double()
    assert torch.equal(objective(MODEL, BATCH, t, NOISE), losses), "u starts at 0"
    means = losses.reshape(4, 10).mean(1)
    # u is linear in the weight and the loss convex in u: u = log E[L | r] at every level is the minimum
    columns = []
    with torch.no_grad():
        for unit in torch.eye(len(objective.weight), dtype=torch.float64):
            objective.weight.copy_(unit)
            columns.append(objective.log_size(LEVELS))
        features = torch.stack(columns, 1)
        objective.weight.copy_(torch.linalg.pinv(features) @ means.log())
    torch.testing.assert_close(objective.log_size(LEVELS).detach(), means.log(), rtol=0, atol=1e-9)
    loss = objective(MODEL, BATCH, t, NOISE).mean()
    assert loss.item() == pytest.approx((1 + means.log()).mean().item(), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, objective.weight)
    assert gradient.abs().max() < 1e-9
    with torch.no_grad():
        objective.weight[-1] += 0.1
    (elsewhere,) = torch.autograd.grad(objective(MODEL, BATCH, t, NOISE).mean(), objective.weight)
    assert elsewhere[-1] == pytest.approx(1 - math.exp(-0.1), abs=1e-9)


def test_the_gradient_of_the_model_is_divided_by_the_size():
    losses = torch.ones(2, dtype=torch.float64, requires_grad=True)
    objective = UncertaintyWeighted(ThisLoss(losses)).double()
    with torch.no_grad():
        objective.weight[-1] = 2.0
    objective(MODEL, Batch(x=torch.zeros(2, 2)), LEVELS[:2], torch.zeros(2, 2)).sum().backward()
    torch.testing.assert_close(losses.grad, torch.full_like(losses, -2.0).exp())


def test_an_infinite_noise_level_has_a_finite_size():
    objective = UncertaintyWeighted(DenoisingScoreMatching(EpsWeighting()))
    torch.nn.init.normal_(objective.weight)
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), FlowMatching())
    loss = objective(model, Batch(x=torch.zeros(1, 2)), torch.ones(1, dtype=torch.float64), torch.ones(1, 2))
    assert loss.isfinite().all()


def test_p2_is_the_simple_loss_divided_by_a_power_of_the_snr():
    alpha, sigma = torch.tensor([1.0, 0.8, 0.0]), torch.tensor([0.1, 0.6, 1.0])
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(P2Weighting(0.5, 2.0)(alpha, sigma), snr / (2 + snr).sqrt())
    assert torch.equal(P2Weighting(0.0)(alpha, sigma), EpsWeighting()(alpha, sigma))
