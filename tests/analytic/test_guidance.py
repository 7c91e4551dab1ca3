"""Guidance on labelled mixtures whose scores, with label and without, are known."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import ConditionalOracle, DenoiserBase, OracleDenoiser, Wrapper
from scoreexp.denoisers.counting import counting
from scoreexp.guidance import Adaptive, Autoguidance, ClassifierFree, LinearAG, ResidualCFG
from scoreexp.guidance.base import LabelGuidance
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers import DDS
from scoreexp.samplers import DDIM, DPMSolverPP, Heun, KarrasGrid, ProbabilityFlow, UniformGrid, draw
from scoreexp.schedules import VP, FlowMatching

GRID = UniformGrid(20)
DDIM_OF_GRID = DDIM(GRID)
COND = torch.arange(64) % 2


def two_classes():
    """Two classes of three Gaussians each, in 16 dimensions."""
    means = 0.6 * torch.randn(6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights, variances = torch.tensor([0.5, 0.3, 0.2]), torch.full((3,), 0.05)
    classes = [GaussianMixture(weights, part, variances) for part in means.split(3)]
    return ConditionalOracle(classes, [0.5, 0.5], VP())


MODEL = two_classes()


class Recorded(LabelGuidance):
    """Classifier-free guidance that keeps the noise of both branches."""

    def __init__(self, model, weight):
        super().__init__(model, weight)
        self.e_c, self.e_null = [], []

    def __call__(self, x_t, t, cond=None):
        with_label, without = self.branches(x_t, t, cond)
        self.e_c.append(self.eps_of(with_label, x_t, t))
        self.e_null.append(self.eps_of(without, x_t, t))
        return self.pushed(with_label, without)


def guided(guidance, seeds=range(64), sampler=DDIM_OF_GRID):
    return draw(guidance, sampler, seeds, cond=COND[: len(seeds)])


def apart(a, b):
    return float((a - b).norm() / b.norm())


# ---------------------------------------------------------------------------- classifier-free


def test_the_law_that_guidance_samples_is_not_the_one_its_score_suggests():
    """Classes N(-1/2, v), N(1/2, v): what DDIM samples, the same flow by another solver, and p(x) p(c | x)^w at t = 0."""
    v, w = 0.16, 3.0
    schedule = VP()
    classes = [Gaussian(torch.tensor([mean]), torch.tensor([v])) for mean in (-0.5, 0.5)]
    model = ClassifierFree(ConditionalOracle(classes, [0.5, 0.5], schedule), w)
    sampled = draw(model, DDIM(KarrasGrid(300)), range(4000), cond=torch.ones(4000, dtype=torch.long)).x

    def guided_score(x, alpha, sigma):
        spread = alpha**2 * v + sigma**2
        share = 1 / (1 + np.exp(-alpha * x / spread))  # of class 1
        with_label, without = (alpha * mean - x for mean in (0.5, share - 0.5))
        return (without + w * (with_label - without)) / spread

    def flow(t, x):
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = schedule.at(t)
        a, g = schedule.drift(time).item(), schedule.diffusion(time).item()
        return a * x - g**2 / 2 * guided_score(x, alpha, sigma)

    quantiles = torch.distributions.Normal(0, 1).icdf((torch.arange(400) + 0.5) / 400).numpy()
    ends = solve_ivp(flow, (schedule.t_max, schedule.t_min), quantiles * schedule.prior_std, rtol=1e-8).y[
        :, -1
    ]
    assert sampled.mean().item() == pytest.approx(ends.mean(), abs=0.02)
    assert sampled.std().item() == pytest.approx(ends.std(), abs=0.02)

    x = np.linspace(-4, 6, 20001)
    wished = np.exp(-((x - 0.5) ** 2) / (2 * v)) * (1 + np.exp(-x / v)) ** (1 - w)
    wished /= wished.sum()
    mean = (x * wished).sum()
    std = math.sqrt(((x - mean) ** 2 * wished).sum())
    print(f"mean {ends.mean():.3f} sampled, {mean:.3f} wished; deviation {ends.std():.3f}, {std:.3f}")
    assert ends.mean() - mean > 0.1
    assert std - ends.std() > 0.05


def test_one_evaluation_outside_the_interval_and_the_model_itself_there():
    times = GRID(MODEL.schedule)
    levels = MODEL.schedule.noise_level(times)
    low, high = levels[15].item(), levels[5].item()
    guidance = ClassifierFree(MODEL, 2.0, interval=(low, high))
    assert guided(guidance).nfe == 20 + 10, "levels 5 to 14 of 20, the lowest left out"
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    always = ClassifierFree(MODEL, 2.0)
    for i, inside in ((4, False), (5, True), (14, True), (15, False)):
        expected = (always if inside else MODEL)(x, times[i].expand(64), COND)
        torch.testing.assert_close(guidance(x, times[i].expand(64), COND), expected)
    mixed = times[torch.arange(64) % 20]
    inside = (torch.arange(64) % 20 >= 5) & (torch.arange(64) % 20 < 15)
    with counting() as count:
        found = guidance(x, mixed, COND)
    assert count.rows == 64 + int(inside.sum())
    expected = torch.where(inside[:, None], always(x, mixed, COND), MODEL(x, mixed, COND))
    torch.testing.assert_close(found, expected)
    off = ClassifierFree(MODEL, 0.0, interval=(low, high))
    torch.testing.assert_close(off(x, times[8].expand(64), COND), MODEL(x, times[8].expand(64)))
    torch.testing.assert_close(off(x, times[0].expand(64), COND), MODEL(x, times[0].expand(64), COND))


@pytest.mark.parametrize("interval", [(2.0, 0.5), (1e6, 1e7), (0.0, 1e-9)])
def test_an_interval_outside_the_schedule_is_refused(interval):
    with pytest.raises(ValueError, match=r"holds no noise level sigma/alpha of the VP schedule, \[") as error:
        ClassifierFree(MODEL, 2.0, interval=interval)
    assert "\n" not in str(error.value)


def test_rescale_gives_the_estimate_the_deviation_of_the_models_own():
    shape = (1, 4, 4)
    means = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    model = ConditionalOracle([Gaussian(mean, torch.full(shape, 0.1)) for mean in means], [0.5, 0.5], VP())
    x, t = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1)), torch.full((6,), 0.3)
    cond = torch.arange(6) % 2
    own, plain = model(x, t, cond), ClassifierFree(model, 5.0)(x, t, cond)
    full = ClassifierFree(model, 5.0, rescale=1.0)(x, t, cond)
    torch.testing.assert_close(full.std((1, 2, 3)), own.std((1, 2, 3)))
    ratio = full / plain
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand_as(ratio), rtol=1e-4, atol=0)
    half = ClassifierFree(model, 5.0, rescale=0.5)(x, t, cond)
    torch.testing.assert_close(half, (full + plain) / 2)
    with pytest.raises(ValueError, match=r"rescale=0\.5 takes.*shape \(16,\)"):
        ClassifierFree(MODEL, 2.0, rescale=0.5)


# --------------------------------------------------------------------------- adaptive, linear


def test_the_cosine_dips_so_that_a_rule_without_arming_would_stop_at_the_first_step():
    recorded = Recorded(MODEL, 2.0)
    guided(recorded)
    cosines = torch.stack(
        [torch.cosine_similarity(*both) for both in zip(recorded.e_c, recorded.e_null, strict=True)]
    )
    assert (cosines[0] > 0.999).all()
    assert (cosines[-1] > 0.999).all()
    assert (cosines.min(0).values < 0.999).float().mean() > 0.7


def test_adaptive_guidance_stops_after_the_dip_and_costs_what_is_counted():
    recorded = Recorded(MODEL, 2.0)
    full = guided(recorded)
    with counting() as count:
        found = guided(Adaptive(MODEL, 2.0, threshold=0.999))
    expected, e_c, e_null = 0, recorded.e_c, recorded.e_null
    for sample in range(64):
        armed = stopped = False
        for k in range(20):
            expected += 1 if stopped else 2
            cosine = torch.cosine_similarity(e_c[k][sample], e_null[k][sample], dim=0).item()
            stopped |= armed and cosine > 0.999
            armed |= cosine <= 0.999
    assert count.rows == expected
    assert found.nfe == -(-expected // 64) < full.nfe == 40
    assert apart(found.x, full.x) < 0.002
    assert apart(guided(MODEL).x, full.x) > 0.1
    one = draw(Adaptive(MODEL, 2.0, threshold=0.999), DDIM(GRID), [5], cond=COND[5:6])
    torch.testing.assert_close(one.x[0], found.x[5], rtol=1e-4, atol=1e-5)


def test_linear_ag_guesses_what_copying_the_label_branch_misses():
    guidance, recorded = LinearAG(MODEL, GRID, weight=2.0), Recorded(MODEL, 2.0)
    held_out = range(1000, 1064)
    full = guided(recorded, held_out)
    e_c, e_null = recorded.e_c, recorded.e_null
    guessed = [apart(guidance.guess(e_c[: k + 1], e_null[:k]), e_null[k]) for k in range(20)]
    copied = [apart(e_c[k], e_null[k]) for k in range(20)]
    print(f"held-out error up to {max(guessed):.2%}, copying {max(copied):.2%}")
    assert max(guessed) < 0.017
    assert max(copied) > 0.057
    found = guided(guidance, held_out)
    assert found.nfe == 20 + 5, "every second one of the first ten"
    assert apart(found.x, full.x) < 0.1 * apart(guided(MODEL, held_out).x, full.x)
    multistep = guided(guidance, held_out, DPMSolverPP(GRID))
    assert multistep.nfe == 25
    with pytest.raises(ValueError, match=r"expects time .*, not .*guidance\.grid the same grid"):
        guided(guidance, sampler=DDIM(UniformGrid(19)))
    with pytest.raises(ValueError, match="one evaluation at each time"):
        guided(guidance, sampler=Heun(GRID))


# -------------------------------------------------------------------------- memory of a trajectory

MEMORIES = {
    "adaptive": lambda model: Adaptive(model, 2.0, threshold=0.999),
    "linear": lambda model: LinearAG(model, GRID, weight=2.0),
    "residual": lambda model: ResidualCFG(model, 1.2),
}


@pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES)
def test_what_is_remembered_belongs_to_one_trajectory(make):
    guidance = make(MODEL)
    first = guided(guidance)
    before = repr(vars(guidance))
    again = guided(guidance)
    assert torch.equal(first.x, again.x)
    assert first.nfe == again.nfe < 40
    assert repr(vars(guidance)) == before
    part = guided(guidance, range(2))
    torch.testing.assert_close(part.x, first.x[:2], rtol=1e-4, atol=1e-5)

    class Same(Wrapper):
        def __call__(self, x_t, t, cond=None):
            return self.model(x_t, t, cond)

    assert guided(Same(guidance)).nfe == first.nfe, "a wrapper around it passes the trajectory on"
    x, t = torch.ones(64, 16), torch.full((64,), 0.5)
    expected = ClassifierFree(MODEL, guidance.weight)(x, t, COND)
    torch.testing.assert_close(guidance(x, t, COND), expected)


@pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES)
def test_a_restorer_begins_a_trajectory_too(make):
    guidance = make(MODEL)
    clean = MODEL.classes[0].sample(8, torch.Generator().manual_seed(0))
    observation = Observation(clean, Identity(), GaussianNoise(0.3))
    restored = DDS(GRID, gamma=0.1)(observation, guidance, streams=ImageStreams(range(8)), cond=COND[:8])
    assert restored.nfe < 40


@pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES)
def test_a_sampler_that_returns_to_earlier_times_is_refused(make):
    begun = make(MODEL).begin()
    x, times = torch.ones(64, 16), GRID(MODEL.schedule)
    begun(x, times[:1].expand(64), COND)
    for bad, state in ((times[:1].expand(64) + 0.0, x[:5]), (times[torch.arange(64) % 20], x)):
        with pytest.raises(ValueError, match="the same falling times: choose a sampler on a fixed grid"):
            begun(state, bad[: len(state)], COND[: len(state)])
    if "linear" not in type(begun).__name__.lower():
        begun(x, times[1:2].expand(64), COND)
        with pytest.raises(ValueError, match="remembers earlier times"):
            begun(x, times[:1].expand(64), COND)


def test_a_solver_with_steps_of_its_own_for_each_sample_is_refused():
    with pytest.raises(ValueError, match="remembers earlier times"):
        guided(Adaptive(MODEL, 2.0), sampler=ProbabilityFlow(GRID, RK45(1e-3, 1e-3)))


# --------------------------------------------------------------------- residual, autoguidance


def test_residual_guidance_by_hand_and_its_evaluations():
    streams = ImageStreams(range(4))
    x = streams.normal(torch.empty(4, 16, dtype=torch.float64))
    times = GRID(MODEL.schedule)
    t, s = times[0].expand(4), times[1].expand(4)
    begun = ResidualCFG(MODEL, 1.5, delta=0.9).begin()
    x_v = MODEL(x, t)
    torch.testing.assert_close(begun(x, t, COND[:4]), x_v + 1.5 * (MODEL(x, t, COND[:4]) - x_v))
    alpha, sigma = MODEL.schedule.at(times[1].item())
    e_v = (x - alpha * x_v) / sigma
    eps = 0.9 * e_v + 1.5 * (MODEL.eps(x, s, COND[:4]) - 0.9 * e_v)
    torch.testing.assert_close(begun.eps(x, s, COND[:4]), eps, rtol=1e-9, atol=1e-9)
    assert guided(ResidualCFG(MODEL, 1.2)).nfe == 21
    assert guided(ResidualCFG(MODEL, 1.2, x_v=torch.zeros(16))).nfe == 20
    flow = ConditionalOracle(MODEL.classes, [0.5, 0.5], FlowMatching())
    assert guided(ResidualCFG(flow, 1.2)).x.isfinite().all()
    with pytest.raises(ValueError, match=r"delta=0\.9: alpha reaches 0 in the FlowMatching schedule"):
        ResidualCFG(flow, 1.2, delta=0.9)


def oracle(variance, schedule=None, shape=(2,), **record):
    model = OracleDenoiser(Gaussian(torch.ones(shape), torch.full(shape, variance)), schedule or VP())
    model.record = record
    return model


def test_autoguidance_leads_from_the_weaker_model_through_the_better_one():
    model, weak = oracle(0.1), oracle(0.4)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    t = torch.full((5,), 0.4)
    expected = weak.score(x, t) + 3 * (model.score(x, t) - weak.score(x, t))
    torch.testing.assert_close(Autoguidance(model, weak, 3.0).score(x, t), expected, rtol=1e-4, atol=1e-4)
    stds = [
        draw(Autoguidance(model, weak, w), DDIM(GRID), range(200)).x.std().item() for w in (0.0, 1.0, 2.0)
    ]
    assert stds[0] > stds[1] > stds[2]
    nfes = [draw(Autoguidance(model, weak, w), DDIM(GRID), [0]).nfe for w in (0.0, 1.0, 2.0)]
    assert nfes == [20, 20, 40]


@pytest.mark.parametrize(
    ("weak", "what"),
    [
        (oracle(0.4, VP(beta_max=10.0)), "schedule"),
        (oracle(0.4, config={"network": {"width": 9}}), "network"),
        (oracle(0.4, config={"precond": {"_target_": "x"}}, num_classes=3), "number of classes and precond"),
        (oracle(0.4, shape=(3,)), "shape of samples"),
    ],
)
def test_another_architecture_or_schedule_is_no_weaker_model(weak, what):
    with pytest.raises(UserError, match=f"the weaker model has another {what}.*of the same run") as error:
        Autoguidance(oracle(0.1), weak)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("make", MEMORIES.values(), ids=MEMORIES)
def test_a_model_without_labels_or_null_label_is_refused(make):
    class Plain(DenoiserBase):
        schedule, event_shape, record = VP(), (16,), {"num_classes": 2, "config": {}}

        def __call__(self, x_t, t, cond=None):
            return x_t

    with pytest.raises(UserError, match="trained without label dropout"):
        make(Plain())
    with pytest.raises(ValueError, match="needs labels"):
        draw(make(MODEL), DDIM(GRID), [0])
