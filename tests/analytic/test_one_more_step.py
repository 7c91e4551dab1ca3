"""One more step against the exact law of the states at the last time, of Gaussian data with a mean."""

import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import ConditionalOracle, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.samplers import DDIM, KarrasGrid, OneMoreStep, UniformGrid, draw
from scoreexp.schedules import VP, FlowMatching

SCHEDULE = VP(beta_max=4.0)  # alpha = 0.36 at the last time
MEAN, VARIANCE, N = 2.0, 0.04, 4000


def model(schedule=SCHEDULE, mean=MEAN):
    return OracleDenoiser(Gaussian(torch.full((2,), mean), torch.full((2,), VARIANCE)), schedule)


def moments(sampler, of=None):
    x = draw(of or model(), sampler, range(N)).x
    return x.mean().item(), x.std().item()


def test_the_mean_of_the_start_is_repaired_and_its_covariance_is_not():
    alpha, sigma = SCHEDULE.at(SCHEDULE.t_max)
    marginal = (alpha**2 * VARIANCE + sigma**2) ** 0.5
    # the flow of Gaussian data keeps (x - alpha mean) / deviation
    lost = VARIANCE**0.5 * alpha * MEAN / marginal
    plain, repaired = (moments(kind(KarrasGrid(60))) for kind in (DDIM, OneMoreStep))
    print(
        f"mean {plain[0]:.3f} plain, {repaired[0]:.3f} repaired, {MEAN} of the data; deviation {repaired[1]:.3f}"
    )
    assert plain[0] == pytest.approx(MEAN - lost, abs=0.01)
    left = alpha**2 * VARIANCE / marginal**2  # share of the error that the model's own answer keeps
    assert repaired[0] == pytest.approx(MEAN - lost * left, abs=0.01)
    assert repaired[1] == pytest.approx(plain[1], rel=0.04)


def test_with_labels_it_is_the_mean_of_the_class():
    classes = [Gaussian(torch.full((2,), mean), torch.full((2,), VARIANCE)) for mean in (-2.0, 2.0)]
    of = ConditionalOracle(classes, [0.5, 0.5], SCHEDULE)
    for label, mean in enumerate((-2.0, 2.0)):
        cond = torch.full((500,), label)
        found = draw(of, OneMoreStep(KarrasGrid(60)), range(500), cond=cond).x.mean().item()
        assert found == pytest.approx(mean, abs=0.03)


def test_it_costs_one_evaluation_and_nothing_changes_where_nothing_is_lost():
    assert draw(model(), OneMoreStep(UniformGrid(20)), [0]).nfe == 21
    flow = model(FlowMatching())
    plain, more = (draw(flow, kind(UniformGrid(20)), range(3)) for kind in (DDIM, OneMoreStep))
    assert torch.equal(plain.x, more.x)
    assert plain.nfe == more.nfe == 20
    x = torch.ones(2, 2)
    starts = [
        kind(UniformGrid(20))(model(), x, streams=ImageStreams([0, 1]), t_start=0.5)
        for kind in (DDIM, OneMoreStep)
    ]
    assert torch.equal(starts[0].x, starts[1].x)
    assert starts[1].nfe == 20


def test_the_noise_of_the_start_is_fresh():
    """The flow of N(mean, 1) moves the mean alone, so samples keep the deviation of the start."""
    alpha, sigma = SCHEDULE.at(SCHEDULE.t_max)
    of = OracleDenoiser(Gaussian(torch.full((2,), MEAN), torch.ones(2)), SCHEDULE)
    found = moments(OneMoreStep(KarrasGrid(100)), of)[1]
    assert found == pytest.approx(sigma * (1 + alpha**4) ** 0.5, rel=0.03), (
        "1 + alpha^2 times sigma with the same"
    )
