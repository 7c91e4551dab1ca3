"""Classifier-free guidance against class-conditional Gaussians whose guided score is known."""

import pytest
import torch

from scoreexp.core.errors import UserError
from scoreexp.denoisers import DenoiserBase
from scoreexp.guidance import ClassifierFree
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.samplers import DDIM, Heun, KarrasGrid, UniformGrid, draw
from scoreexp.schedules import VP

MEANS = torch.tensor([[-0.5, 0.0], [0.5, 0.2]], dtype=torch.float64)
VARIANCE = 0.04
KNOWS = {"num_classes": 2, "config": {"model": {"label_dropout": 0.1}}}


class TwoClasses(DenoiserBase):
    """The exact denoiser of two Gaussian classes, and of their mixture for the null label."""

    def __init__(self, record=KNOWS):
        covariance = torch.full((2,), VARIANCE, dtype=torch.float64)
        self.classes = [Gaussian(mean, covariance) for mean in MEANS]
        self.all = GaussianMixture(torch.tensor([0.5, 0.5]), MEANS, covariance)
        self.schedule, self.event_shape, self.record, self.calls = VP(), (2,), record, 0

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        scales = self.schedule(t)
        by_label = torch.stack(
            [*(g.posterior_mean(x_t, *scales) for g in self.classes), self.all.posterior_mean(x_t, *scales)]
        )
        null = torch.full((len(x_t),), 2) if cond is None else cond
        return by_label[null, torch.arange(len(x_t))]


X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.full((40,), 0.3, dtype=torch.float64)
COND = torch.arange(40) % 2


@pytest.mark.parametrize("weight", [0.5, 2.0, 7.5])
def test_the_guided_score_is_the_combination_of_the_two(weight):
    model = TwoClasses()
    guided = ClassifierFree(model, weight)
    plain = model.score(X, T)
    expected = plain + weight * (model.score(X, T, COND) - plain)
    torch.testing.assert_close(guided.score(X, T, COND), expected, rtol=1e-9, atol=1e-9)
    eps = model.eps(X, T) + weight * (model.eps(X, T, COND) - model.eps(X, T))
    torch.testing.assert_close(guided.eps(X, T, COND), eps, rtol=1e-9, atol=1e-9)


def test_weights_0_and_1_are_the_model_itself_at_the_cost_of_one_evaluation():
    model = TwoClasses()
    for weight, cond in ((1.0, COND), (0.0, None)):
        expected = draw(model, DDIM(UniformGrid(10)), range(40), cond=cond)
        found = draw(ClassifierFree(model, weight), DDIM(UniformGrid(10)), range(40), cond=COND)
        assert torch.equal(found.x, expected.x)
        assert found.nfe == expected.nfe == 10


@pytest.mark.parametrize(("sampler", "nfe"), [(DDIM(UniformGrid(20)), 40), (Heun(KarrasGrid(10)), 38)])
def test_the_network_ran_twice_per_evaluation(sampler, nfe):
    assert draw(ClassifierFree(TwoClasses(), 3.0), sampler, range(6), cond=COND[:6]).nfe == nfe


def test_more_weight_leads_further_from_the_other_class():
    def mean(weight):
        cond = torch.ones(200, dtype=torch.long)
        return (
            draw(ClassifierFree(TwoClasses(), weight), DDIM(UniformGrid(40)), range(200), cond=cond)
            .x[:, 0]
            .mean()
            .item()
        )

    means = [mean(weight) for weight in (1.0, 2.0, 4.0)]
    assert means[0] == pytest.approx(0.5, abs=0.05)
    assert means[0] < means[1] < means[2]


def test_a_model_without_a_null_label_is_refused():
    with pytest.raises(UserError, match=r"trained without label dropout.*model\.label_dropout=0\.1"):
        ClassifierFree(TwoClasses({"num_classes": 2, "config": {}}))
    with pytest.raises(UserError, match="has no classes"):
        ClassifierFree(TwoClasses({}))
    with pytest.raises(ValueError, match="needs labels"):
        ClassifierFree(TwoClasses())(X, T)
