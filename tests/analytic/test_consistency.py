"""Consistency training and sampling of a Gaussian, whose consistency function is known in closed form."""

from itertools import pairwise

import pytest
import torch
from scipy import stats

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import ConsistencyPrediction, Denoiser, DenoiserBase, OracleDenoiser
from scoreexp.diagnostics.likelihood import Likelihood
from scoreexp.guidance import Autoguidance
from scoreexp.networks import MLP
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import ConsistencyTraining, EasyConsistencyTuning, LogNormalNoise
from scoreexp.samplers import ConsistencySampler, KarrasGrid, ProbabilityFlow, UniformGrid, start_from_prior
from scoreexp.schedules import EDM, VP, FlowMatching

VARIANCE = 0.3
EDM_SCHEDULE = EDM()


class ExactConsistency(DenoiserBase):
    """The end at ``t_min`` of the probability flow of N(0, VARIANCE), in the units of ``x_t / alpha``."""

    event_shape = (2,)

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self._scales(x_t, t)
        low = self.schedule.sigma_range[0]
        return x_t / alpha * ((VARIANCE + low**2) / (VARIANCE + (sigma / alpha) ** 2)) ** 0.5


@pytest.mark.parametrize("schedule", [EDM(), VP()], ids=lambda s: type(s).__name__)
def test_one_evaluation_is_the_end_of_the_exact_flow(schedule):
    streams = ImageStreams(range(4))
    oracle = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), VARIANCE)), schedule)
    x = start_from_prior(oracle, (2,), streams, dtype=torch.float64)
    one = ConsistencySampler(UniformGrid(1))(ExactConsistency(schedule), x, streams=streams)
    flow = ProbabilityFlow(UniformGrid(2), RK45(1e-10, 1e-10), denoise_last=False)(oracle, x, streams=streams)
    alpha, _ = schedule.at(schedule.t_min)
    assert one.nfe == 1
    torch.testing.assert_close(one.x, flow.x / alpha, rtol=1e-6, atol=1e-8)


def test_two_evaluations_add_the_noise_of_the_second_level():
    model, x = ExactConsistency(EDM_SCHEDULE), 80 * torch.ones(3, 2, dtype=torch.float64)
    sampler = ConsistencySampler(KarrasGrid(2, t_end=0.821))
    result = sampler(model, x, streams=ImageStreams(range(3)))
    z = ImageStreams(range(3)).normal(x)
    ends = [((VARIANCE + 0.002**2) / (VARIANCE + level**2)) ** 0.5 for level in (80.0, 0.821)]
    torch.testing.assert_close(result.x, ends[1] * (ends[0] * x + 0.821 * z), rtol=1e-12, atol=0)
    assert result.nfe == 2


class Gains(torch.nn.Module, DenoiserBase):
    """``f(x, r_i) = g_i x``, a gain for each level of the grid; remembers the levels that it was asked for."""

    event_shape = (1,)

    def __init__(self, levels, gains):
        super().__init__()
        self.schedule, self.levels, self.asked = EDM_SCHEDULE, levels, []
        self.gains = torch.nn.Parameter(gains.clone())

    def forward(self, x_t, t, cond=None):
        i = (t[:, None] - self.levels).abs().argmin(1)
        self.asked.append(i)
        return self.gains[i][:, None] * x_t


def fixed_point(levels):
    """g_1 = 1, and g_{i+1} x the regression of g_i (x_0 + r_i z) on x = x_0 + r_{i+1} z."""
    low, high = levels[:-1], levels[1:]
    ratios = (VARIANCE + low * high) / (VARIANCE + high**2)
    return torch.cat([torch.ones(1, dtype=torch.float64), ratios.cumprod(0)])


# x_0 and z of two values each, with the second moments of the Gaussians: exact for squared errors of linear maps
X = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)[:, None] * VARIANCE**0.5
Z = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]


def gradients(gains, objective, levels):
    """The gradient of each pair's loss in the gains: row i for the pair (i, i + 1)."""
    rows = []
    for i in range(len(levels) - 1):
        model = Gains(levels, gains)
        t = (levels[i] * levels[i + 1]).sqrt().expand(4)
        objective(model, Batch(x=X), t, Z).mean().backward()
        assert [int(asked[0]) for asked in model.asked] == [i, i + 1], (
            "the teacher first, at the smaller level"
        )
        rows.append(model.gains.grad)
    return torch.stack(rows)


def test_the_minimiser_of_the_squared_loss_is_the_regression_on_the_next_level():
    objective = ConsistencyTraining(training_steps=10, first=12, last=12, huber=1e6)  # far beyond every error
    levels = objective.levels(EDM_SCHEDULE, 12)
    exact = fixed_point(levels)
    found = gradients(exact, objective, levels)
    uneven = 1 + 0.1 * (-1.0) ** torch.arange(13)
    scale = gradients(uneven * exact, objective, levels).abs().amax()
    assert found.abs().max() < 1e-9 * scale
    moved = gradients(exact + torch.eye(13, dtype=torch.float64)[5] * 0.1 * exact[5], objective, levels)
    assert moved[4, 5] > 0, "the gain of a level is trained by the pair below it"
    assert (moved[5, 5], moved[6, 5]) == (0, 0), "the teacher has no gradient"


def test_it_tends_to_the_consistency_function_as_levels_get_denser():
    objective = ConsistencyTraining(training_steps=10)
    errors = []
    for n in (320, 640, 1280):
        levels = objective.levels(EDM_SCHEDULE, n)
        flow = ((VARIANCE + levels[0] ** 2) / (VARIANCE + levels**2)).sqrt()
        errors.append((fixed_point(levels) / flow - 1).abs().max().item())
    assert errors[2] < 0.01
    assert [a / b for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.05)


def test_the_loss_is_the_published_one():
    objective = ConsistencyTraining(training_steps=10, first=12, last=12, huber=0.03)
    levels = objective.levels(EDM_SCHEDULE, 12)
    gains = fixed_point(levels)
    loss = objective(
        Gains(levels, gains), Batch(x=X), levels[7] * torch.ones(4, dtype=torch.float64) * 1.001, Z
    )
    error = gains[8] * (X + levels[8] * Z) - gains[7] * (X + levels[7] * Z)
    expected = ((error**2).sum(1) + 0.03**2).sqrt() - 0.03
    torch.testing.assert_close(loss, expected / (levels[8] - levels[7]), rtol=1e-9, atol=0)


def test_levels_are_even_in_the_root_and_the_law_of_pairs_is_the_published_one():
    levels = ConsistencyTraining(training_steps=10).levels(EDM_SCHEDULE, 20)
    assert levels.flip(0).tolist() == pytest.approx(KarrasGrid(21)(EDM_SCHEDULE).tolist())
    t = LogNormalNoise(-1.1, 2.0).sample(20_000, EDM_SCHEDULE, torch.Generator().manual_seed(0))
    counts = torch.histogram(t, levels.clone()).hist[2:-1]
    share = torch.from_numpy(stats.norm(-1.1, 2.0).cdf(levels.log().numpy())).diff()[2:-1]
    expected = share / share.sum() * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_the_curriculum_counts_calls_and_is_saved():
    objective = ConsistencyTraining(training_steps=8, first=2, last=8)  # 3 stages of 2 calls
    model, lengths = ExactConsistency(EDM_SCHEDULE), []
    for _ in range(7):
        lengths.append(objective.intervals(int(objective.calls)))
        objective(model, Batch(x=torch.zeros(1, 2)), torch.ones(1), torch.ones(1, 2))
    assert lengths == [2, 2, 4, 4, 8, 8, 8]
    assert objective.state_dict() == {"calls": 7}


def test_the_boundary_holds_for_every_network_and_both_see_the_same_dropout():
    network = MLP(event_shape=(2,), width=8, blocks=1)
    torch.nn.init.normal_(network.head.weight)
    model = Denoiser(network, ConsistencyPrediction(0.5, 0.002), EDM_SCHEDULE)
    x = torch.randn(3, 2, generator=generator(0, "x"))
    torch.testing.assert_close(model(x, torch.full((3,), 0.002, dtype=torch.float64)), x, rtol=1e-6, atol=0)
    dropped = torch.nn.Dropout(0.5)
    network.register_forward_hook(lambda module, inputs, output: dropped(torch.ones_like(output)))
    seen = []
    dropped.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    ConsistencyTraining(training_steps=2)(
        model, Batch(x=torch.zeros(64, 2)), torch.ones(64), torch.ones(64, 2)
    )
    assert torch.equal(*seen)


def test_what_has_no_end_is_refused():
    with pytest.raises(ValueError, match=r"FlowMatching schedule has the noise levels .* to inf: choose one"):
        ConsistencyTraining(training_steps=10).levels(FlowMatching(), 10)
    with pytest.raises(ValueError, match=r"first=20, last=10: choose last >= first"):
        ConsistencyTraining(training_steps=10, first=20, last=10)


def pairs_of(objective, levels):
    """The two levels that each of ``levels`` is asked at, smaller and larger, and the loss."""
    asked = []

    class Asked(ExactConsistency):
        def __call__(self, x_t, t, cond=None):
            asked.append(t)
            return super().__call__(x_t, t, cond)

    n = len(levels)
    loss = objective(
        Asked(EDM_SCHEDULE), Batch(x=torch.ones(n, 2).double()), levels, torch.ones(n, 2).double()
    )
    return (*asked, loss)


def test_tuning_begins_as_denoising_and_its_pairs_get_nearer():
    levels = torch.tensor([0.002, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)
    objective = EasyConsistencyTuning(training_steps=3, stages=3)
    n = 1 + 8 / (1 + levels.exp())  # at 0.1: 4.8, at 80: 1
    for stage in (1, 2, 3):
        low, high, loss = pairs_of(objective, levels)
        expected = (levels * (1 - n / 2**stage)).clamp(min=0.002)
        torch.testing.assert_close(low, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(high[1:], levels[1:])
        assert high[0] > low[0], "the smallest level, which has none below it, moves up"
        assert loss.isfinite().all()
    first = EasyConsistencyTuning(training_steps=3).below(levels, 1)
    assert (first[1:3] == 0).all(), "the target is the data themselves: the loss of a denoiser"
    assert pairs_of(objective, levels)[0][2] == pytest.approx(1 - n[2] / 8), "and the last stage goes on"


def test_the_loss_of_tuning_is_that_of_the_pair():
    objective = EasyConsistencyTuning(training_steps=1, stages=1, q=4.0, k=0.0, huber=0.03)
    loss = pairs_of(objective, torch.tensor([4.0], dtype=torch.float64))[-1]
    f = [(1 + r) * ((VARIANCE + 0.002**2) / (VARIANCE + r**2)) ** 0.5 for r in (3.0, 4.0)]
    assert loss.item() == pytest.approx((((f[1] - f[0]) ** 2 + 0.03**2) ** 0.5 - 0.03) / (4 - 3), rel=1e-9)


def test_the_likelihood_of_a_consistency_model_is_refused():
    network = MLP(event_shape=(2,), width=8, blocks=1)
    model = Denoiser(network, ConsistencyPrediction(0.5, 0.002), EDM_SCHEDULE)
    with pytest.raises(
        ValueError, match=r"^the model is a consistency model: [^\n]* choose a model of another"
    ):
        Likelihood()(Autoguidance(model, model), torch.zeros(1, 2), streams=ImageStreams([0]))
