"""A learned law of noise levels: its gradient, its bandit, its weights and its state."""

import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.core.streams import generator
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import DenoisingScoreMatching, EDMWeighting, LearnedNoise, LogNormalNoise
from scoreexp.objectives.learned_noise import policy_gradient
from scoreexp.schedules import EDM, VP, ConstantNoise

SCHEDULE = EDM()


@pytest.mark.parametrize("arms", [2, 5])  # 2: a Bernoulli variable
def test_the_score_function_gradient_is_unbiased(arms):
    logits, reward = torch.randn(2, arms, generator=generator(arms, "bandit"), dtype=torch.float64)
    logits.requires_grad_()
    p = 0.7 * logits.softmax(0) + 0.3 / arms
    (exact,) = torch.autograd.grad((p * reward).sum(), logits)
    logits = logits.detach()
    for baseline in (0.0, 2.0):
        each = [
            policy_gradient(logits, torch.tensor([k]), (reward[k] - baseline)[None], explore=0.3)
            for k in range(arms)
        ]
        torch.testing.assert_close(p.detach() @ torch.stack(each), exact)


def played(law, best, steps=200):
    """``law`` after noisy losses that fall in one of four arms with each of its samples; the others stay."""
    level = torch.ones(4, dtype=torch.float64)
    for step in range(steps):
        t = law.sample(64, SCHEDULE, generator(0, "time", step))
        arms = law._arms(t, SCHEDULE)
        noise = 0.1 * torch.randn(64, generator=generator(0, "noise", step), dtype=torch.float64)
        law.observe(t, level[arms] + noise, SCHEDULE)
        level[best] -= 1e-4 * (arms == best).sum()
    return law


def test_the_arm_whose_loss_falls_is_drawn_most():
    best = 2
    found = played(LearnedNoise(arms=4, explore=0.1, rate=0.3), best).probabilities
    assert found.argmax() == best
    assert found[best] > 0.6
    assert found.min() >= 0.1 / 4
    assert torch.equal(played(LearnedNoise(arms=4, rate=0.0), best, 5).probabilities, torch.full((4,), 0.25))


@pytest.mark.parametrize("schedule", [EDM(), VP(), EDM(sigma_min=0.05, sigma_max=0.5)])
def test_importance_keeps_the_expectation_and_its_absence_does_not(schedule):
    start, law = LearnedNoise(arms=8), LearnedNoise(arms=8)
    law.logits = torch.linspace(-2, 2, 8, dtype=torch.float64)
    n = 100_000
    t, drawn = (one.sample(n, schedule, generator(1, "t")) for one in (start, law))
    weights = law.weights(drawn, schedule)
    share = torch.stack([weights[law._arms(drawn, schedule) == k].sum() / n for k in range(8)])
    torch.testing.assert_close(share, torch.full((8,), 1 / 8, dtype=torch.float64), atol=6e-3, rtol=0)
    logs, plain = schedule.noise_level(drawn).log(), schedule.noise_level(t).log()
    assert (weights * logs).mean() == pytest.approx(plain.mean().item(), abs=0.03)
    assert logs.mean() > plain.mean() + 0.1
    assert 8 * law.probabilities.min() * weights.max() == pytest.approx(1)
    law.importance = False
    assert torch.equal(law.weights(drawn, schedule), torch.ones(n, dtype=torch.float64))


def test_it_begins_as_the_log_normal_law_and_one_level_leaves_nothing_to_learn():
    t = [law.sample(20_000, SCHEDULE, generator(0, "t")) for law in (LearnedNoise(), LogNormalNoise())]
    for one in t:
        logs = SCHEDULE.noise_level(one).log()
        assert logs.mean().item() == pytest.approx(-1.2, abs=0.03)
        assert logs.std().item() == pytest.approx(1.2, abs=0.03)
    law, one = LearnedNoise(), ConstantNoise(0.5)
    t = law.sample(4, one, generator(0, "t"))
    law.observe(t, torch.ones(4), one)
    assert torch.equal(law.weights(t, one), torch.ones(4, dtype=torch.float64))
    assert law.level.isnan().all()


def test_its_state_is_restored_and_a_converted_network_leaves_it():
    law = played(LearnedNoise(arms=4), 1, steps=20)
    other = LearnedNoise(arms=4)
    other.load_state_dict(law.bfloat16().state_dict())
    for one in (law, other):
        assert one.logits.dtype == torch.float64
        t = one.sample(8, SCHEDULE, generator(3, "t"))
        one.observe(t, t, SCHEDULE)
    assert torch.equal(law.logits, other.logits)
    assert torch.equal(law.level, other.level)
    assert torch.equal(law.moments, other.moments)
    assert not torch.equal(law.logits, torch.zeros(4, dtype=torch.float64))


def test_a_loss_without_decrease_leaves_the_policy_near_its_start():
    oracle = Gaussian(torch.zeros(2), torch.zeros(2))
    model, objective, law = (
        OracleDenoiser(oracle, SCHEDULE),
        DenoisingScoreMatching(EDMWeighting()),
        LearnedNoise(),
    )
    for step in range(50):
        t = law.sample(64, SCHEDULE, generator(0, "time", step))
        noise = torch.randn(64, 2, generator=generator(0, "noise", step))
        law.observe(t, objective(model, Batch(x=torch.full((64, 2), 0.1)), t, noise), SCHEDULE)
    assert (law.probabilities - 1 / 16).abs().max() < 0.02
