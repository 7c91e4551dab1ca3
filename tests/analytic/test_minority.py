"""Minority scores against their closed form and by quadrature, and guidance towards low density."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import OracleDenoiser
from scoreexp.guidance import Minority, fit_quantile_classifier, load_classifier, save_classifier
from scoreexp.metrics.minority import MinorityScore, minority_scores
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.samplers import DDIM, UniformGrid, draw
from scoreexp.schedules import VP, FlowMatching

LEVEL = 0.7


def scales(model):
    t = model.schedule.t_of_sigma(torch.tensor(LEVEL, dtype=torch.float64)).item()
    return model.schedule.at(t)


def test_the_score_of_a_gaussian_has_its_closed_form_and_ranks_as_the_density():
    variance, mean = 0.2, torch.full((8,), 0.3, dtype=torch.float64)
    oracle = Gaussian(mean, torch.full((8,), variance))
    model = OracleDenoiser(oracle, VP())
    x_0 = oracle.sample(200, torch.Generator().manual_seed(0))
    alpha, sigma = scales(model)
    k = alpha * variance / (alpha**2 * variance + sigma**2)
    square = (x_0 - mean).square().sum(1)
    expected = (1 - alpha * k) ** 2 * square + 8 * (k * sigma) ** 2
    log_p = oracle.log_prob(x_0, torch.ones(200), torch.zeros(200))
    ranks = []
    for draws in (1, 5, 64):
        found = minority_scores(model, x_0, streams=ImageStreams(range(200)), level=LEVEL, draws=draws)
        ranks.append(spearmanr(found, -log_p).statistic)
    torch.testing.assert_close(found, expected, rtol=0.15, atol=0)
    assert (found / expected).mean().item() == pytest.approx(1, abs=0.01)
    assert ranks[0] < ranks[1] < ranks[2]
    assert ranks[2] > 0.98


def test_the_metric_is_the_mean_score_and_states_that_of_real_samples():
    oracle = Gaussian(torch.zeros(8), torch.full((8,), 0.2))
    model = OracleDenoiser(oracle, VP())
    samples, real = (
        s * oracle.sample(150, torch.Generator().manual_seed(i)).float() for i, s in ((0, 2.0), (1, 1.0))
    )
    alpha, sigma = scales(model)
    k = alpha * 0.2 / (alpha**2 * 0.2 + sigma**2)
    expected = [
        (1 - alpha * k) ** 2 * x.square().sum(1).mean() + 8 * (k * sigma) ** 2 for x in (samples, real)
    ]
    (found,) = MinorityScore()(model, samples, real, seed=0)
    assert found.name == "minority_score"
    assert found.value == pytest.approx(expected[0].item(), rel=0.05)
    assert float(found.caveat.removeprefix("150 real samples have ")) == pytest.approx(
        expected[1].item(), rel=0.05
    )
    assert (found,) == MinorityScore()(model, samples, real, seed=0)


def test_the_score_of_a_mixture_by_quadrature():
    oracle = GaussianMixture(
        torch.tensor([0.2, 0.5, 0.3]), torch.tensor([[-1.0], [0.0], [0.6]]), torch.tensor([0.01, 0.02, 0.04])
    )
    model = OracleDenoiser(oracle, VP())
    x_0 = torch.linspace(-1.2, 1.0, 12, dtype=torch.float64)[:, None]
    alpha, sigma = scales(model)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    expected = torch.zeros(12, dtype=torch.float64)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        x_t = alpha * x_0 + sigma * node
        x0_hat = oracle.posterior_mean(x_t, torch.full((12,), alpha), torch.full((12,), sigma))
        expected += weight * (x_0 - x0_hat).square().sum(1)
    found = minority_scores(model, x_0, streams=ImageStreams(range(12)), level=LEVEL, draws=4000)
    torch.testing.assert_close(found, expected, rtol=0.08, atol=0.002)


@pytest.fixture(scope="module")
def fitted():
    oracle = Gaussian(torch.zeros(2), torch.tensor([0.25, 0.04]))
    model = OracleDenoiser(oracle, VP())
    x_0 = oracle.sample(2000, torch.Generator().manual_seed(0)).float()
    return oracle, model, fit_quantile_classifier(model, x_0, quantiles=5, steps=1000, width=64)


def test_the_mean_of_minus_log_p_rises_with_the_weight(fitted):
    oracle, model, classifier = fitted

    def surprise(guidance):
        result = draw(guidance, DDIM(UniformGrid(25)), range(400))
        assert result.nfe == 25, "the classifier is no evaluation of the network"
        return -oracle.log_prob(result.x, torch.ones(400), torch.zeros(400)).mean().item()

    values = [surprise(Minority(model, classifier, weight)) for weight in (0.0, 0.5, 1.0, 2.0)]
    print("mean -log p", [round(value, 3) for value in values])
    assert values[0] < values[1] < values[2] < values[3]
    assert values[3] > values[0] + 1
    assert surprise(Minority(model, classifier, 1.0, target=0)) < values[0]


def test_the_guided_noise_is_that_of_the_paper(fitted):
    _, model, classifier = fitted
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    t = torch.full((5,), 0.4, dtype=torch.float64)
    alpha, sigma = model.schedule.at(0.4)
    state = x.clone().requires_grad_()
    c_noise = torch.full((5,), float(np.log(sigma / alpha) / 4))
    classifier(state / (alpha**2 + sigma**2) ** 0.5, c_noise).log_softmax(1)[:, 3].sum().backward()
    expected = model.eps(x, t) - 1.5 * sigma * state.grad
    torch.testing.assert_close(Minority(model, classifier, 1.5, target=3).eps(x, t), expected)
    flow = OracleDenoiser(model.oracle, FlowMatching())
    end = torch.ones(5, dtype=torch.float64)
    assert torch.equal(Minority(flow, classifier)(x, end), flow(x, end))


def test_a_classifier_is_read_as_it_was_written_and_nothing_else_is(fitted, tmp_path):
    _, model, classifier = fitted
    save_classifier(classifier, tmp_path / "minority.pt")
    again = load_classifier(tmp_path / "minority.pt")
    x, c_noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3)
    assert torch.equal(again(x, c_noise), classifier(x, c_noise))
    (tmp_path / "text.pt").write_text("none")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    for name in ("missing.pt", "text.pt", "other.pt"):
        with pytest.raises(
            UserError, match=r"is no classifier of minority guidance .*save_classifier"
        ) as error:
            load_classifier(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="target=5: allowed is 0 to 4"):
        Minority(model, classifier, target=5)
    other = OracleDenoiser(Gaussian(torch.zeros(3), torch.ones(3)), VP())
    with pytest.raises(UserError, match=r"classifier is for samples \(2,\), the model has \(3,\)"):
        Minority(other, classifier)
    with pytest.raises(ValueError, match="3 samples for quantiles=5"):
        fit_quantile_classifier(model, torch.zeros(3, 2), quantiles=5)
