"""Likelihood-weighted, implicit, sliced and stable-target score matching against exact expectations and minimisers."""

import itertools
import math

import pytest
import torch
from hydra.utils import instantiate
from scipy import stats

from scoreexp.app.commands.train import train
from scoreexp.core.batch import Batch
from scoreexp.core.tensors import mean_per_sample
from scoreexp.denoisers.denoiser import Denoiser, DenoiserBase, OracleDenoiser
from scoreexp.denoisers.preconditioning import EpsPrediction
from scoreexp.networks import UNet
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.objectives import (
    DenoisingScoreMatching,
    EpsWeighting,
    ImplicitScoreMatching,
    LikelihoodScoreMatching,
    LogNormalNoise,
    MinSNR,
    ScoreWeighting,
    SlicedScoreMatching,
    StableTargetScoreMatching,
    UniformTime,
    X0Weighting,
)
from scoreexp.schedules import DDPM, EDM, VE, VP, ConstantNoise, SubVP

BOUND = stats.norm.ppf(1 - 1e-5)  # in standard errors: 1 in 50 000 seeds would fail an exact test

COVARIANCE = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.2, -0.05], [0.0, -0.05, 0.1]], dtype=torch.float64)
MODEL_MEAN = torch.tensor([0.2, 0.0, 0.1], dtype=torch.float64)
MODEL_COVARIANCE = torch.linalg.inv(torch.linalg.inv(COVARIANCE) + 2)
DATA = Gaussian(torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64), COVARIANCE)
MODEL = Gaussian(MODEL_MEAN, MODEL_COVARIANCE)
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-0.6, 0.3], [0.5, -0.4]]), torch.tensor([0.02, 0.05])
)


def drawn(oracle, schedule, law, n, seed=0):
    """``batch, t, noise`` of ``n`` samples in float64."""
    g = torch.Generator().manual_seed(seed)
    x, t = oracle.sample(n, g), law.sample(n, schedule, g)
    return Batch(x=x), t, torch.randn(x.shape, generator=g, dtype=torch.float64)


def standard_score(values):
    """The mean of independent values in units of its standard error."""
    return (values.mean() / (values.std() / math.sqrt(len(values)))).item()


# ------------------------------------------------------------------------------------------------ likelihood


def gaussian_kl(p, q, alpha, sigma):
    """KL of N(alpha mu, alpha^2 C + sigma^2) from the one of another oracle."""

    def moments(oracle):
        basis = torch.eye(3, dtype=torch.float64)
        covariance = -torch.linalg.inv(
            torch.stack(
                [
                    oracle.score(e[None], alpha[None], sigma[None])[0]
                    - oracle.score(0 * e[None], alpha[None], sigma[None])[0]
                    for e in basis
                ]
            )
        )
        return oracle.score(0 * basis[:1], alpha[None], sigma[None])[0] @ covariance, covariance

    (m_p, c_p), (m_q, c_q) = moments(p), moments(q)
    inverse, d = torch.linalg.inv(c_q), m_q - m_p
    return 0.5 * (torch.trace(inverse @ c_p) - 3 + d @ inverse @ d + (c_q.logdet() - c_p.logdet()))


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE()], ids=lambda s: type(s).__name__)
def test_the_likelihood_weighted_loss_is_the_divergence_of_two_processes(schedule):
    batch, t, noise = drawn(DATA, schedule, UniformTime(), 20_000)
    objective = LikelihoodScoreMatching()
    excess = objective(OracleDenoiser(MODEL, schedule), batch, t, noise)
    excess = excess - objective(OracleDenoiser(DATA, schedule), batch, t, noise)
    integral = 3 * (schedule.t_max - schedule.t_min) * excess  # per sample, not per entry
    ends = (torch.tensor(end, dtype=torch.float64) for end in (schedule.t_min, schedule.t_max))
    first, last = (gaussian_kl(DATA, MODEL, *schedule(end)) for end in ends)
    assert first > 0.1
    assert abs(standard_score(integral - (first - last))) < BOUND
    assert integral.std() / math.sqrt(len(integral)) < 0.1 * first, (
        "sharp enough for the test to mean something"
    )


def test_the_likelihood_weighting_is_that_of_the_score_by_g_squared():
    schedule = SubVP()
    batch, t, noise = drawn(DATA, schedule, LogNormalNoise(0.0, 1.0), 50)
    model = OracleDenoiser(MODEL, schedule)
    alpha, sigma = (c[:, None] for c in schedule(t))
    error = model.score(alpha * batch.x + sigma * noise, t) + noise / sigma
    expected = 0.5 * schedule.diffusion(t) ** 2 * mean_per_sample(error**2)
    torch.testing.assert_close(LikelihoodScoreMatching()(model, batch, t, noise), expected)


def test_a_schedule_without_growing_noise_has_no_likelihood():
    batch, t, noise = drawn(DATA, ConstantNoise(), UniformTime(), 2)
    with pytest.raises(ValueError, match="ConstantNoise is 0"):
        LikelihoodScoreMatching()(OracleDenoiser(DATA, ConstantNoise()), batch, t, noise)


# ------------------------------------------------------------------------------------------- auto-encoder form


def test_a_denoising_auto_encoder_is_denoising_score_matching_on_clean_data():
    # r(x) = x + sigma^2 s(x) at one noise level, alpha = 1
    schedule = ConstantNoise(0.3)
    batch, t, noise = drawn(DATA, schedule, UniformTime(), 50)
    model = OracleDenoiser(MODEL, schedule)
    noisy = batch.x + 0.3 * noise
    reconstruction = noisy + 0.3**2 * model.score(noisy, t)
    expected = mean_per_sample((reconstruction - batch.x) ** 2)
    for weighting in (X0Weighting(), ScoreWeighting(power=4.0)):
        torch.testing.assert_close(DenoisingScoreMatching(weighting)(model, batch, t, noise), expected)


# ---------------------------------------------------------------------------------------- implicit and sliced


@pytest.mark.parametrize("schedule", [VP(), SubVP(), EDM()], ids=lambda s: type(s).__name__)
def test_implicit_score_matching_of_a_gaussian_is_its_formula(schedule):
    batch, t, noise = drawn(DATA, schedule, LogNormalNoise(-0.5, 1.0), 20)
    loss = ImplicitScoreMatching(ScoreWeighting(power=0.0))(OracleDenoiser(MODEL, schedule), batch, t, noise)
    alpha, sigma = schedule(t)
    for b in range(20):
        a, s = alpha[b], sigma[b]
        precision = torch.linalg.inv(a**2 * MODEL_COVARIANCE + s**2 * torch.eye(3, dtype=torch.float64))
        x_t = a * batch.x[b] + s * noise[b]
        score = -precision @ (x_t - a * MODEL_MEAN)
        hyvarinen = score @ score - 2 * torch.trace(precision)
        torch.testing.assert_close(loss[b], (hyvarinen + 3 / s**2) / 3, rtol=1e-8, atol=1e-8)


def test_implicit_score_matching_of_a_mixture_has_the_trace_of_the_jacobian():
    schedule, weighting = VP(), MinSNR(5.0)
    batch, t, noise = drawn(MIXTURE, schedule, LogNormalNoise(-0.5, 1.0), 10)
    loss = ImplicitScoreMatching(weighting)(OracleDenoiser(MIXTURE, schedule), batch, t, noise)
    for b in range(10):
        alpha, sigma = schedule(t[b : b + 1])

        def score(x, alpha=alpha, sigma=sigma):
            return MIXTURE.score(x[None], alpha, sigma)[0]

        x_t = alpha * batch.x[b] + sigma * noise[b]
        trace = torch.autograd.functional.jacobian(score, x_t).trace()
        fisher = (score(x_t) ** 2).sum() + 2 * trace + 2 / sigma**2
        expected = weighting(alpha, sigma) * sigma**4 / alpha**2 * fisher / 2
        torch.testing.assert_close(loss[b], expected[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "objective",
    [ImplicitScoreMatching(EpsWeighting()), SlicedScoreMatching(EpsWeighting())],
    ids=["implicit", "sliced"],
)
@pytest.mark.parametrize(("oracle", "model"), [(DATA, MODEL), (MIXTURE, MIXTURE)], ids=["wrong", "right"])
def test_every_model_has_the_expected_loss_of_denoising_score_matching(objective, oracle, model):
    for schedule in (VP(), EDM()):
        batch, t, noise = drawn(oracle, schedule, LogNormalNoise(-0.5, 0.7), 20_000)
        denoiser = OracleDenoiser(model, schedule)
        denoising = DenoisingScoreMatching(EpsWeighting())(denoiser, batch, t, noise)
        difference = objective(denoiser, batch, t, noise) - denoising
        assert abs(standard_score(difference)) < BOUND
        assert difference.std() / math.sqrt(len(t)) < 0.03 * denoising.mean()


def test_sliced_score_matching_is_implicit_score_matching_on_average():
    schedule, n = VP(), 10_000
    batch, t, noise = drawn(DATA, schedule, LogNormalNoise(0.0, 0.5), n)
    model = OracleDenoiser(MODEL, schedule)
    exact = ImplicitScoreMatching(EpsWeighting())(model, batch, t, noise)
    errors = {
        k: (SlicedScoreMatching(EpsWeighting(), k)(model, batch, t, noise) - exact).detach() for k in (1, 4)
    }
    for error in errors.values():
        assert abs(standard_score(error)) < BOUND
        for i in range(3):  # also where the noise points one way
            assert abs(standard_score(error * noise[:, i].sign())) < BOUND
        assert error.std() > 0.01
    # four independent directions: a quarter of the variance; the ratio of n-sample variances is known to a few per cent
    assert errors[1].var() / errors[4].var() == pytest.approx(4, rel=0.15)


def test_directions_are_a_function_of_the_noise():
    schedule, objective = VP(), SlicedScoreMatching(EpsWeighting())
    batch, t, noise = drawn(DATA, schedule, LogNormalNoise(0.0, 0.5), 8)
    model = OracleDenoiser(MODEL, schedule)
    losses = objective(model, batch, t, noise)
    torch.manual_seed(3)
    assert torch.equal(losses, objective(model, batch, t, noise))
    noise[0, 0] += 1e-9
    assert not torch.allclose(losses[1:], objective(model, batch, t, noise)[1:])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_network_learns_from_implicit_losses(dropout):
    # gradients reach every weight, through attention and in channels_last, and those of all directions agree on average
    torch.manual_seed(0)
    network = UNet(
        event_shape=(1, 4, 4),
        channels=16,
        multipliers=(1,),
        blocks=1,
        attention_resolutions=(4,),
        dropout=dropout,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = Denoiser(network, EpsPrediction(), VP())
    batch, t, noise = drawn(Gaussian(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), VP(), UniformTime(), 4)
    batch = Batch(x=batch.x.float())
    for objective in (ImplicitScoreMatching(EpsWeighting()), SlicedScoreMatching(EpsWeighting(), 2)):
        model.zero_grad()
        objective(model, batch, t, noise.float()).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    with torch.no_grad():
        assert not objective(model, batch, t, noise.float()).requires_grad


@pytest.mark.parametrize(
    "objective",
    [ImplicitScoreMatching(EpsWeighting()), SlicedScoreMatching(EpsWeighting())],
    ids=["implicit", "sliced"],
)
def test_the_gradient_in_the_weights_is_that_of_the_whole_loss(objective):
    # also through fused attention, which has no second derivative
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64))

        def forward(self, x, c_noise, cond):
            q, k, v = (w * x[:, None, :, None] for w in self.weight)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v).reshape(x.shape)

    network = Attention()
    model = Denoiser(network, EpsPrediction(), VP())
    batch, t, noise = drawn(DATA, VP(), LogNormalNoise(0.0, 0.5), 10)
    objective(model, batch, t, noise).mean().backward()
    for i in range(3):
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                network.weight[i] += step
                losses.append(objective(model, batch, t, noise).mean().item())
                network.weight[i] -= step
        # central difference: error 1e-10 times the third derivative, rounding 1e-16 / 1e-5
        assert network.weight.grad[i].item() == pytest.approx(
            (losses[0] - losses[1]) / 2e-5, rel=1e-6, abs=1e-8
        )


def test_exact_traces_of_large_samples_are_refused():
    batch, t, noise = drawn(DATA, VP(), UniformTime(), 2)
    with pytest.raises(ValueError, match=r"3 entries .* max_dimensions=2: use objective=sliced"):
        ImplicitScoreMatching(EpsWeighting(), 2)(OracleDenoiser(DATA, VP()), batch, t, noise)


# ----------------------------------------------------------------------------------------------- minimisers


class LinearDenoiser(DenoiserBase):
    """``x0_hat = features(x_t, t) . theta``: a family with the exact denoiser of a Gaussian inside."""

    event_shape = (2,)

    def __init__(self, theta, variances, schedule):
        self.theta, self.variances, self.schedule = theta, variances, schedule

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self._scales(x_t, t)
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        one = torch.ones_like(x_t)
        return torch.stack([gain * x_t, gain * alpha * one, one, x_t, sigma * one], -1) @ self.theta


@pytest.mark.parametrize(
    "objective",
    [
        LikelihoodScoreMatching(),
        ImplicitScoreMatching(MinSNR(5.0)),
        SlicedScoreMatching(X0Weighting()),
    ],
    ids=lambda o: type(o).__name__,
)
def test_the_minimiser_on_a_gaussian_is_the_posterior_mean(objective):
    # mu + gain (x_t - alpha mu), the same mu in both entries: theta = (1, -mu, mu, 0, 0)
    mu, variances, n = 0.4, torch.tensor([0.3, 0.05], dtype=torch.float64), 8_000
    oracle = Gaussian(torch.full((2,), mu), variances)
    batch, t, noise = drawn(oracle, VP(), LogNormalNoise(-0.5, 0.8), n)

    def losses(theta):
        return objective(LinearDenoiser(theta, variances, VP()), batch, t, noise)

    # every loss here is quadratic in theta, so central differences are its exact gradients, per sample
    unit = torch.eye(5, dtype=torch.float64)

    def gradients(theta):
        return torch.stack([(losses(theta + e) - losses(theta - e)) / 2 for e in unit], 1)

    zero = gradients(0 * unit[0])
    hessian = torch.stack([(gradients(e) - zero).mean(0) for e in unit])
    theta = -torch.linalg.solve(hessian, zero.mean(0))
    # covariance of an M-estimator ("sandwich")
    half = torch.linalg.solve(hessian, gradients(theta).T)
    covariance = half @ half.T / n**2
    error = theta - torch.tensor([1.0, -mu, mu, 0.0, 0.0], dtype=torch.float64)
    wald = error @ torch.linalg.solve(covariance, error)
    assert wald < stats.chi2.ppf(0.9999, df=5)
    assert covariance[0, 0].sqrt() < 0.1, "sharp enough for the test to mean something"


@pytest.mark.parametrize(
    "objective",
    [
        LikelihoodScoreMatching(),
        ImplicitScoreMatching(EpsWeighting()),
        SlicedScoreMatching(EpsWeighting()),
    ],
    ids=lambda o: type(o).__name__,
)
def test_the_exact_denoiser_of_a_mixture_beats_its_neighbours(objective):
    schedule = VP()
    batch, t, noise = drawn(MIXTURE, schedule, LogNormalNoise(-0.5, 0.7), 10_000)
    least = objective(OracleDenoiser(MIXTURE, schedule), batch, t, noise)
    means = torch.tensor([[-0.6, 0.3], [0.5, -0.4]])
    for weight, shift, widths in ((0.5, 0, [0.02, 0.05]), (0.3, 0.1, [0.02, 0.05]), (0.3, 0, [0.05, 0.02])):
        other = GaussianMixture(torch.tensor([weight, 1 - weight]), means + shift, torch.tensor(widths))
        loss = objective(OracleDenoiser(other, schedule), batch, t, noise)
        assert standard_score(loss - least) > BOUND


# ------------------------------------------------------------------------------------------------ stable target


def training_set(n=300, seed=0, classes=None):
    """``n`` points of the mixture as a fetch function; more than one chunk of the reference."""
    x = MIXTURE.sample(n, torch.Generator().manual_seed(seed))
    labels = None if classes is None else torch.arange(n) % classes

    def fetch(elements):
        return Batch(x=x[elements], cond=None if labels is None else labels[elements], index=elements + 1000)

    return x, fetch


def batch_of(fetch, size, schedule, n=100, seed=1):
    g = torch.Generator().manual_seed(seed)
    batch = fetch(torch.randint(size, (n,), generator=g))
    t = LogNormalNoise(-1.0, 1.5).sample(n, schedule, g)
    return batch, t, torch.randn(batch.x.shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [VP(), DDPM(), EDM()], ids=lambda s: type(s).__name__)
def test_the_target_of_the_whole_training_set_is_its_posterior_mean(schedule):
    x, fetch = training_set()
    objective = StableTargetScoreMatching(X0Weighting(), reference_size=300)
    objective.prepare(300, fetch)
    batch, t, noise = batch_of(fetch, 300, schedule)
    model = OracleDenoiser(EmpiricalImages(x), schedule)
    loss = objective(model, batch, t, noise)
    # sums in another order: relative rounding 1e-16 of logits up to 1e5
    assert loss.max() < 1e-18
    # so the posterior mean is the minimiser; with one target per sample it only is on average
    assert DenoisingScoreMatching(X0Weighting())(model, batch, t, noise).mean() > 1e-3
    in_float32 = batch._replace(x=batch.x.float())
    assert objective(model, in_float32, t, noise.float()).max() < 1e-6


def test_a_reference_of_one_is_denoising_score_matching():
    _, fetch = training_set()
    batch, t, noise = batch_of(fetch, 300, VP(), n=1)
    model = OracleDenoiser(MIXTURE, VP())
    expected = DenoisingScoreMatching(EpsWeighting())(model, batch, t, noise)
    loss = StableTargetScoreMatching(EpsWeighting())(model, batch, t, noise)
    torch.testing.assert_close(loss, expected)


def test_the_batch_as_its_own_reference_gives_the_posterior_mean_of_the_batch():
    _, fetch = training_set()
    batch, t, noise = batch_of(fetch, 300, VP())
    model = OracleDenoiser(EmpiricalImages(batch.x), VP())
    assert StableTargetScoreMatching(X0Weighting())(model, batch, t, noise).max() < 1e-18


@pytest.mark.parametrize("size", [None, 300])
def test_only_samples_of_the_same_class_are_averaged(size):
    x, fetch = training_set(classes=2)
    batch, t, noise = batch_of(fetch, 300, VP())
    objective = StableTargetScoreMatching(X0Weighting(), size)
    objective.prepare(300, fetch)
    pool, labels = (x, torch.arange(300) % 2) if size else (batch.x, batch.cond)

    class PerClass(DenoiserBase):
        schedule, event_shape = VP(), (2,)

        def __call__(self, x_t, t, cond=None):
            both = [OracleDenoiser(EmpiricalImages(pool[labels == c]), VP())(x_t, t) for c in (0, 1)]
            return torch.where(cond[:, None] == 0, *both)

    assert objective(PerClass(), batch, t, noise).max() < 1e-18


def test_the_expected_target_is_the_posterior_mean_for_any_reference():
    # all batches of n = 1, 2, 3 points out of three, with their probability given x_t of the first one
    points = torch.tensor([[-1.0], [0.1], [0.8]], dtype=torch.float64)
    oracle, t, x_t = EmpiricalImages(points), torch.tensor([0.25]), torch.tensor([[0.1]], dtype=torch.float64)
    alpha, sigma = VP()(t.double())
    mean = oracle.posterior_mean(x_t, alpha, sigma)
    posterior = (-0.5 * ((x_t - alpha * points) / sigma) ** 2).flatten().softmax(0)

    class Constant(DenoiserBase):
        def __init__(self, value):
            self.schedule, self.event_shape, self.value = VP(), (1,), value

        def __call__(self, x_t, t, cond=None):
            return self.value.expand_as(x_t)

    variances = []
    for n in (1, 2, 3):
        slope = variance = 0.0
        for members in itertools.product(range(3), repeat=n):
            x = points[list(members)]
            noise = (x_t - alpha * x) / sigma
            probability = posterior[members[0]] / 3 ** (n - 1)
            at, above, below = (
                StableTargetScoreMatching(X0Weighting())(
                    Constant(mean + shift), Batch(x=x), t.expand(n), noise
                )[0]
                for shift in (0, 1, -1)
            )
            variance += probability * at
            slope += probability * (above - below) / 2  # of a quadratic: 2 (mean - target)
        assert abs(slope) < 1e-12
        variances.append(variance.item())
    assert variances[0] == pytest.approx((posterior @ (points - mean) ** 2).item(), rel=1e-10)
    assert variances[0] > 1.2 * variances[1] > 1.2**2 * variances[2]


def test_larger_references_have_targets_of_less_variance():
    x, fetch = training_set()
    model = OracleDenoiser(EmpiricalImages(x), VP())

    def squared_deviations(objective):
        g = torch.Generator().manual_seed(2)
        objective.prepare(300, fetch)
        means = []
        for _ in range(60):  # one draw of the reference each
            batch, t = fetch(torch.randint(300, (32,), generator=g)), torch.full((32,), 0.25)
            noise = torch.randn(32, 2, generator=g, dtype=torch.float64)
            means.append(objective(model, batch, t, noise).mean())
        return torch.stack(means)

    one = squared_deviations(DenoisingScoreMatching(X0Weighting()))
    for size in (3, 15, 60):
        several = squared_deviations(StableTargetScoreMatching(X0Weighting(), size))
        # about four times fewer independent targets each time
        assert standard_score(one - 2 * several) > BOUND
        one = several


def test_reference_draws_are_a_function_of_the_noise_and_their_remedies_are_named():
    _, fetch = training_set()
    objective = StableTargetScoreMatching(X0Weighting(), 20)
    batch, t, noise = batch_of(fetch, 300, VP())
    model = OracleDenoiser(MIXTURE, VP())
    with pytest.raises(ValueError, match=r"reference_size=20 .* prepare"):
        objective(model, batch, t, noise)
    objective.prepare(300, fetch)
    first = objective(model, batch, t, noise)
    torch.manual_seed(3)
    assert torch.equal(first, objective(model, batch, t, noise))
    named_otherwise = torch.cat([noise[:1] + 1e-9, noise[1:]])
    assert not torch.equal(first[1:], objective(model, batch, t, named_otherwise)[1:])
    with pytest.raises(ValueError, match="which samples it holds"):
        objective(model, Batch(x=batch.x), t, noise)


def test_training_hands_its_training_set_to_the_objective(tiny, monkeypatch):
    fetched = []

    def prepare(self, size, fetch):
        fetched.append(fetch(torch.arange(size)))
        original(self, size, fetch)

    original = StableTargetScoreMatching.prepare
    monkeypatch.setattr(StableTargetScoreMatching, "prepare", prepare)
    cfg = tiny("objective=stable_target", "objective.reference_size=3", "trainer.max_steps=1")
    assert train(cfg).status == "finished"
    data = instantiate(cfg.data)
    data.setup("fit")
    assert torch.equal(fetched[0].x, data.split("train").samples(data.train_positions))
    assert fetched[0].index.tolist() == data.train_positions.tolist()
