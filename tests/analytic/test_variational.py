"""The variational bound on a Gaussian in closed form, and the learned schedule that is trained by it."""

import math

import numpy as np
import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.core.streams import generator
from scoreexp.denoisers import Denoiser, EpsPrediction, OracleDenoiser
from scoreexp.denoisers.counting import counting
from scoreexp.networks import MLP
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian
from scoreexp.objectives import VariationalBound
from scoreexp.objectives.base import streams_of
from scoreexp.samplers import DDIM, LogSNRGrid, draw
from scoreexp.schedules import VP, FlowMatching, LearnedVP

VARIANCE = 0.3
DATA = Gaussian(torch.zeros(1), torch.full((1,), VARIANCE))
NLL = 0.5 * math.log2(2 * math.pi * math.e * VARIANCE)  # its mean, in bits

# x_0 and z of two values each, with the moments of the Gaussians: exact for squared errors of linear maps
X = VARIANCE**0.5 * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[:, None]
Z = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
NODES, WEIGHTS = (torch.from_numpy(a) / 2 for a in np.polynomial.legendre.leggauss(60))
NODES = NODES + 0.5  # on [0, 1]


def curved(gamma_min=-8.0, gamma_max=3.0):
    """A learned schedule away from its start."""
    schedule = LearnedVP(gamma_min, gamma_max, units=8)
    stream = generator(0, "curve")
    for parameter in (schedule.weights, schedule.slopes):
        parameter.data += 0.7 * torch.randn(parameter.shape, generator=stream)
    schedule.slopes.data -= 5  # smooth, for the quadrature
    return schedule


def over_times(objective, schedule, times=NODES, weights=WEIGHTS):
    """The mean of the objective over x_0, noise and uniform times."""
    model, n = OracleDenoiser(DATA, schedule), len(times)
    losses = objective(model, Batch(x=X.repeat(n, 1)), times.repeat_interleave(4), Z.repeat(n, 1))
    return (losses.reshape(n, 4).mean(1) * weights).sum()


def gap(schedule):
    """Of the bound of infinitely many steps and NLL, in bits: what the decoder and the prior cost."""
    low, high = schedule.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64))
    nats = (
        torch.log1p(low.exp() / VARIANCE) + VARIANCE * (-high).exp() - torch.log1p(VARIANCE * (-high).exp())
    )
    return nats / 2 / math.log(2)


def test_the_bound_is_the_likelihood_but_for_the_ends_and_so_are_its_gradients():
    schedule = curved()
    bound = over_times(VariationalBound(levels=None), schedule)
    expected = gap(schedule)
    assert bound.item() - NLL == pytest.approx(expected.item(), abs=1e-7)
    ends = [schedule.first, schedule.log_span]
    found, exact = torch.autograd.grad(bound, ends), torch.autograd.grad(expected, ends)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-7)
    tight = LearnedVP(-13.3, 10.0)
    assert over_times(VariationalBound(levels=None), tight).item() == pytest.approx(NLL, abs=1e-5)


def test_a_wrong_model_has_a_larger_bound():
    schedule = curved()
    wrong = OracleDenoiser(Gaussian(torch.zeros(1), torch.full((1,), 0.2)), schedule)
    batch, n = Batch(x=X.repeat(60, 1)), 60
    losses = VariationalBound(levels=None)(wrong, batch, NODES.repeat_interleave(4), Z.repeat(n, 1))
    assert (losses.reshape(n, 4).mean(1) * WEIGHTS).sum() > NLL + gap(schedule) + 0.01


def test_finitely_many_steps_bound_it_from_above_with_an_error_of_order_one():
    schedule, excess = curved(), []
    for steps in (1, 10, 100, 200):
        times = (
            torch.arange(steps, dtype=torch.float64) + 0.5
        ) / steps  # each belongs to the end of its step
        objective = VariationalBound(steps=steps, levels=None)
        bound = over_times(objective, schedule, times, torch.full((steps,), 1 / steps)).item()
        excess.append(bound - NLL - gap(schedule).item())
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] > 0
    assert excess[2] / excess[3] == pytest.approx(2, abs=0.05)


def test_the_curve_is_trained_to_the_least_second_moment():
    schedule = curved()
    curve = [schedule.weights, schedule.slopes, schedule.centres]
    objective = VariationalBound(levels=None)
    found = torch.autograd.grad(over_times(objective, schedule), curve)

    class SecondMoment:
        def __call__(self, *given):
            return (objective.diffusion(*given) / math.log(2)) ** 2  # through the noisy states and the model

    exact = torch.autograd.grad(over_times(SecondMoment(), schedule), curve)
    assert max(gradient.abs().max() for gradient in exact) > 1e-3
    for one, other in zip(found, exact, strict=True):  # the bound itself does not depend on the curve
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_one_bit_per_sign_is_found_for_data_of_two_levels():
    schedule, levels = LearnedVP(-13.3, 10.0), torch.tensor([[-1.0], [1.0]])
    model = OracleDenoiser(EmpiricalImages(levels), schedule)
    z, mass = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(40))
    times, weights = (torch.from_numpy(a) / 2 for a in np.polynomial.legendre.leggauss(80))
    x = torch.ones(len(z) * len(times), 1, dtype=torch.float64)
    noise = z.repeat(len(times))[:, None]
    bound = VariationalBound(levels=2)(model, Batch(x=x), (times + 0.5).repeat_interleave(len(z)), noise)
    mean = (bound.reshape(len(times), len(z)) @ mass / mass.sum() @ weights).item()
    assert 1 <= mean < 1.001


def test_the_decoder_is_a_law_of_the_levels():
    objective, level = VariationalBound(levels=5), torch.tensor(0.4, dtype=torch.float64)
    values = torch.linspace(-1, 1, 5, dtype=torch.float64)
    x = values[:, None].expand(5, 2)
    noise = torch.linspace(0, 1, 10, dtype=torch.float64).reshape(5, 2)
    state = x + 0.4 * streams_of(noise, "reconstruction").normal(x)
    weights = torch.exp(-0.5 * ((state[..., None] - values) / 0.4) ** 2)
    p = weights / weights.sum(-1, keepdim=True)
    expected = -torch.stack([p[i, :, i].log().sum() for i in range(5)])
    found = objective.reconstruction(x, level, noise)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_schedules_that_are_not_learned_have_a_bound_and_those_without_an_end_are_refused():
    nodes, weights = (torch.from_numpy(a) / 2 for a in np.polynomial.legendre.leggauss(400))  # steep at t_min
    times = VP().t_min + (1 - VP().t_min) * (nodes + 0.5)
    bound = over_times(VariationalBound(levels=None), VP(), times, weights).item()
    low, high = (2 * math.log(level) for level in VP().sigma_range)
    nats = math.log1p(math.exp(low) / VARIANCE) + VARIANCE * math.exp(-high)
    nats -= math.log1p(VARIANCE * math.exp(-high))
    assert bound - NLL == pytest.approx(nats / 2 / math.log(2), abs=1e-5)
    with pytest.raises(ValueError, match=r"FlowMatching schedule has the noise levels .* inf: choose"):
        VariationalBound()(OracleDenoiser(DATA, FlowMatching()), Batch(x=X), torch.full((4,), 0.5), Z)
    with pytest.raises(ValueError, match=r"gamma_min=1, gamma_max=0: choose gamma_min < gamma_max"):
        LearnedVP(1, 0)


def test_a_learned_schedule_is_trained_and_saved_with_its_network_and_serves_a_sampler():
    torch.manual_seed(0)
    model = Denoiser(MLP(event_shape=(2,), width=8, blocks=1), EpsPrediction(), curved())
    names = {name for name, _ in model.named_parameters()}
    assert {"schedule.first", "schedule.log_span", "schedule.weights"} <= names
    batch, t = Batch(x=torch.zeros(8, 2)), torch.linspace(0, 1, 8, dtype=torch.float64)
    VariationalBound()(model, batch, t, torch.randn(8, 2)).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.schedule.parameters())
    again = Denoiser(MLP(event_shape=(2,), width=8, blocks=1), EpsPrediction(), LearnedVP(units=8))
    again.load_state_dict(model.state_dict())
    assert (
        again.schedule.sigma_range
        == model.schedule.sigma_range
        == pytest.approx((math.exp(-4), math.exp(1.5)))
    )
    with counting() as evaluations:
        samples = [draw(one, DDIM(LogSNRGrid(4)), seeds=[0, 1]).x for one in (model, again)]
    assert torch.equal(*samples)
    assert evaluations.rows == 16
