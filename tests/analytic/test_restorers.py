"""Restorers against the exact posterior of Gaussian data, their documented fixed points, and their steps by hand."""

import pytest
import torch
from torch.autograd.functional import jacobian

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase, OracleDenoiser, Product
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import (
    Blur,
    ChannelMix,
    Compose,
    Function,
    GaussianBlur,
    GaussianNoise,
    Identity,
    NoiseModel,
    Observation,
    Radon,
    RandomMask,
    SuperResolution,
)
from scoreexp.restorers import DDNM, DDRM, DDS, DPS, MMPS, STSL, DiffPIR, HIRDiff, PiGDM, PnPADMM, REDDiff
from scoreexp.restorers.chain import Problem
from scoreexp.restorers.gradient import total_variation
from scoreexp.restorers.start import image_share
from scoreexp.samplers import DDIM, DDPM, UniformGrid, start_from_prior
from scoreexp.schedules import EDM, VP, FlowMatching

N, COUNT = 6, 8
GRID = UniformGrid(2)
SHAPE = (1, N, N)
EYE = torch.eye(N * N, dtype=torch.float64)
PLACES = torch.cartesian_prod(torch.arange(N), torch.arange(N)).double()
COVARIANCE = 0.25 * torch.exp(-(torch.cdist(PLACES, PLACES) ** 2) / 8) + 1e-4 * EYE
MEAN = torch.linspace(-0.3, 0.3, N * N, dtype=torch.float64)
PRIOR = Gaussian(MEAN.reshape(SHAPE), COVARIANCE)
MODEL = OracleDenoiser(PRIOR, VP())
WHITE = OracleDenoiser(
    Gaussian(torch.zeros(SHAPE, dtype=torch.float64), torch.full(SHAPE, 0.25, dtype=torch.float64)), VP()
)
X = PRIOR.sample(COUNT, torch.Generator().manual_seed(0))
LINE = torch.exp(-(torch.arange(-2, 3.0) ** 2) / 2)
WIDE = LINE[:, None] * LINE
POINTS = OracleDenoiser(Gaussian(torch.zeros(N), torch.ones(N)), VP())
OPERATORS = {
    "mask": RandomMask(size=N, hole=0.5),
    "blur": Blur(torch.tensor([[0.05, 0.1, 0.05], [0.1, 0.4, 0.1], [0.05, 0.1, 0.05]]), size=N),
    "reduced": SuperResolution(2, size=N),
}


def dense(operator, shape=SHAPE):
    size = torch.Size(shape).numel()
    return operator(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).T


def posterior(operator, y, sigma, mean=MEAN, covariance=COVARIANCE, shape=SHAPE):
    """Mean ``[B, *]`` and covariance ``[D, D]`` of x given y."""
    a = dense(operator, shape)
    gain = torch.linalg.solve(
        a @ covariance @ a.T + sigma**2 * torch.eye(len(a), dtype=torch.float64), a @ covariance
    ).T
    centred = y.flatten(1) - mean @ a.T
    return (mean + centred @ gain.T).reshape(len(y), *shape), covariance - gain @ a @ covariance


def observed(operator, sigma, x=X):
    return Observation.simulate(x, operator, GaussianNoise(sigma), ImageStreams(range(len(x)), "observed"))


def problem(operator, y, sigma, model=MODEL, seeds=range(COUNT)):
    def denoise(x, t):
        return model(x, torch.full((len(x),), t, dtype=torch.float64))

    return Problem(denoise, model.schedule, y, operator, sigma, ImageStreams(seeds))


# ------------------------------------------------------------------------------- guidance by the likelihood


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_moment_matching_has_the_exact_posterior_mean_at_every_time(operator, t):
    """Given x_t and y, both Gaussian in x_0: the normal equations in one dense solve."""
    sigma_y = 0.1
    observation = observed(operator, sigma_y)
    alpha, sigma = MODEL.schedule.at(t)
    x_t = alpha * X + sigma * ImageStreams(range(COUNT), "state").normal(X)
    a = dense(operator)
    precision = torch.linalg.inv(COVARIANCE) + (alpha / sigma) ** 2 * EYE + a.T @ a / sigma_y**2
    right = (
        torch.linalg.solve(COVARIANCE, MEAN)
        + alpha / sigma**2 * x_t.flatten(1)
        + observation.y.flatten(1) @ a / sigma_y**2
    )
    expected = torch.linalg.solve(precision, right.T).T.reshape(X.shape)
    denoiser = MMPS(DDIM(UniformGrid(1)), cg_steps=200).posterior(MODEL, observation)
    found = denoiser(x_t, torch.full((COUNT,), t, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", [DDPM(UniformGrid(20)), DDIM(UniformGrid(20))], ids=["ddpm", "ddim"])
def test_moment_matching_samples_as_the_exact_denoiser_of_the_posterior_does(sampler):
    """The posterior is Gaussian again, so its denoiser is known: same sampler and seeds, same draws."""
    sigma_y, operator = 0.2, OPERATORS["reduced"]
    one = observed(operator, sigma_y, X[:1])
    observation = Observation(one.y.expand(COUNT, -1, -1, -1), operator, one.noise)
    made = MMPS(sampler, cg_steps=50)(observation, MODEL, streams=ImageStreams(range(COUNT)))
    mean, covariance = posterior(operator, one.y, sigma_y)
    exact = OracleDenoiser(Gaussian(mean[0], (covariance + covariance.T) / 2), MODEL.schedule)
    streams = ImageStreams(range(COUNT))
    start = start_from_prior(exact, SHAPE, streams, dtype=torch.float64)
    torch.testing.assert_close(made.x, sampler(exact, start, streams=streams).x, rtol=1e-4, atol=1e-4)
    assert made.nfe == 20


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_pseudo_inverse_guidance_is_exact_for_white_data(operator, sigma_y):
    observation, t = observed(operator, sigma_y), 0.4
    alpha, sigma = WHITE.schedule.at(t)
    x_t = alpha * X + sigma * ImageStreams(range(COUNT), "state").normal(X)
    variance = 0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2)
    prior_mean = WHITE(x_t, torch.full((COUNT,), t, dtype=torch.float64))
    a = dense(operator)
    gain = (
        variance
        * a.T
        @ torch.linalg.pinv(variance * a @ a.T + sigma_y**2 * torch.eye(len(a)), hermitian=True)
    )
    residual = (observation.y - operator(prior_mean)).flatten(1)
    expected = prior_mean + (residual @ gain.T).reshape(X.shape)
    denoiser = PiGDM(DDIM(UniformGrid(1)), sigma_data=0.5).posterior(WHITE, observation)
    found = denoiser(x_t, torch.full((COUNT,), t, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_without_a_decomposition_pseudo_inverse_guidance_solves_the_same_system():
    observation = observed(OPERATORS["mask"], 0.1)
    composed = Observation(observation.y, Compose(OPERATORS["mask"], Identity()), observation.noise)
    x_t, t = ImageStreams(range(COUNT)).normal(X), torch.full((COUNT,), 0.5, dtype=torch.float64)
    restorer = PiGDM(DDIM(UniformGrid(1)), cg_steps=50)
    with pytest.raises(ValueError, match="no singular value"):
        composed.operator.svd(x_t)
    torch.testing.assert_close(
        restorer.posterior(MODEL, composed)(x_t, t),
        restorer.posterior(MODEL, observation)(x_t, t),
        rtol=1e-5,
        atol=1e-6,
    )


# --------------------------------------------------------------------------------- chains without a gradient


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_null_space_model_meets_data_without_noise_exactly(operator):
    observation = observed(operator, 0.0)
    restored = DDNM(UniformGrid(50))(observation, MODEL, streams=ImageStreams(range(COUNT)))
    torch.testing.assert_close(operator(restored.x), observation.y, rtol=1e-8, atol=1e-8)
    mean, _ = posterior(operator, observation.y, 1e-6)
    assert (restored.x - mean).norm() < (operator.pinv(observation.y) - mean).norm() + 1e-6


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("sigma_y", [0.05, 0.5])
def test_the_null_space_model_keeps_the_noise_level_of_its_states(operator, sigma_y):
    """Data that are known exactly to the model: all that is random in x_s is noise, whose variance must be sigma_s^2."""
    n, t, s, eta = 4000, 0.6, 0.4, 0.6
    known = OracleDenoiser(Gaussian(X[0], torch.zeros(SHAPE, dtype=torch.float64)), VP())
    y = Observation.simulate(
        X[:1].expand(n, *SHAPE), operator, GaussianNoise(sigma_y), ImageStreams(range(n))
    ).y
    chain, task = DDNM(UniformGrid(2), eta=eta), problem(operator, y, sigma_y, known, seeds=range(n, 2 * n))
    alpha, sigma = known.schedule.at(t)
    x_t = alpha * X[0] + sigma * ImageStreams(range(n), "state").normal(y.new_zeros(n, *SHAPE))
    _, x_s = chain.step(task, x_t, t, s, chain.prepare(task))
    alpha, sigma = known.schedule.at(s)
    deviation = x_s - alpha * X[0]
    assert deviation.mean(0).abs().max() < 5 * sigma / n**0.5
    torch.testing.assert_close(
        deviation.flatten(1).T.cov(),
        sigma**2 * EYE,
        rtol=0,
        atol=6 * sigma**2 * (2 / n) ** 0.5,
    )


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_with_noise_a_step_of_the_null_space_model_is_one_of_restoration_in_singular_directions(operator):
    """Algorithm 2 is DDRM with ``eta_b = 1``, where no singular value is cut off."""
    y, x_t = observed(operator, 0.2).y, ImageStreams(range(COUNT), "state").normal(X)
    for t, s in ((0.6, 0.4), (0.2, 0.05)):
        a, b = (
            chain.step(task, x_t, t, s, chain.prepare(task))[1]
            for chain in (DDNM(GRID, 0.6, cutoff=0.0), DDRM(GRID, 0.6))
            for task in [problem(operator, y, 0.2)]
        )
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma_y", [0.0, 0.05])
def test_the_null_space_model_leaves_directions_of_small_singular_values_to_the_prior(sigma_y):
    """A prior of one image: what the data replace of it is what is above the cut-off, whatever the noise below."""
    operator, cutoff = GaussianBlur(sigma=0.5, size=N), 0.5
    known = OracleDenoiser(Gaussian(torch.zeros(SHAPE).double(), torch.zeros(SHAPE).double()), VP())
    y, svd = observed(operator, sigma_y).y, operator.svd(X)
    restorer = DDNM(UniformGrid(20), cutoff=cutoff)
    made = svd.vt(
        restorer(
            Observation(y, operator, GaussianNoise(sigma_y)), known, streams=ImageStreams(range(COUNT))
        ).x
    )
    kept = (svd.singular >= cutoff * svd.singular.max()).expand(made.shape)
    assert kept.any()
    assert not kept.all()
    assert made[~kept].abs().max() < 1e-9
    if sigma_y == 0:
        torch.testing.assert_close(made[kept], (svd.ut(y) / svd.singular)[kept], rtol=1e-8, atol=1e-8)
    else:
        assert made[kept].abs().max() > 1e-3


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_restoration_in_singular_directions_meets_data_without_noise(operator):
    observation = observed(operator, 0.0)
    restored = DDRM(UniformGrid(50))(observation, MODEL, streams=ImageStreams(range(COUNT)))
    torch.testing.assert_close(operator(restored.x), observation.y, rtol=1e-8, atol=1e-8)


def test_a_step_in_singular_directions_by_hand():
    """Against a loop over the directions of a dense decomposition."""
    operator, sigma_y, t, s, eta, eta_b = OPERATORS["mask"], 0.4, 0.3, 0.1, 0.85, 0.9
    y = observed(operator, sigma_y).y
    task = problem(operator, y, sigma_y)
    chain = DDRM(UniformGrid(2), eta, eta_b)
    x_t = ImageStreams(range(COUNT), "state").normal(X)
    _, x_s = chain.step(task, x_t, t, s, chain.prepare(task))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = MODEL.schedule.at(t), MODEL.schedule.at(s)
    d = task.denoise(x_t, t).flatten(1)
    z = ImageStreams(range(COUNT)).normal(X).flatten(1)
    r_t, r_s, x = sigma_t / alpha_t, sigma_s / alpha_s, x_t.flatten(1) / alpha_t
    data, seen = operator.adjoint(y).flatten(1), operator.seen.flatten()
    expected = torch.empty_like(d)
    assert r_s < sigma_y  # so the second case is met, below the third
    for i in range(N * N):
        if not seen[i]:
            mean, spread = d[:, i] + (1 - eta**2) ** 0.5 * r_s * (x[:, i] - d[:, i]) / r_t, eta * r_s
        else:
            mean, spread = d[:, i] + (1 - eta**2) ** 0.5 * r_s * (data[:, i] - d[:, i]) / sigma_y, eta * r_s
        expected[:, i] = mean + spread * z[:, i]
    torch.testing.assert_close(x_s.flatten(1), alpha_s * expected, rtol=1e-10, atol=1e-10)
    higher = 0.9
    task = problem(operator, y, sigma_y)
    _, x_s = chain.step(task, x_t, 0.95, higher, chain.prepare(task))
    alpha_s, sigma_s = MODEL.schedule.at(higher)
    d, r_s = task.denoise(x_t, 0.95).flatten(1), sigma_s / alpha_s
    expected = (1 - eta_b) * d + eta_b * data + (r_s**2 - (eta_b * sigma_y) ** 2) ** 0.5 * z
    torch.testing.assert_close(x_s.flatten(1)[:, seen], alpha_s * expected[:, seen], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "operator", [*OPERATORS.values(), Compose(OPERATORS["mask"], Identity())], ids=lambda a: type(a).__name__
)
def test_two_steps_of_splitting_by_hand(operator):
    sigma_y, grid, weight, zeta = 0.2, UniformGrid(2), 5.0, 0.4
    y, a = observed(operator, sigma_y).y, dense(operator)
    streams, schedule, times = ImageStreams(range(COUNT)), MODEL.schedule, grid(MODEL.schedule).tolist()
    x_t = schedule.prior_std * streams.normal(X)
    for i, t in enumerate(times):
        alpha, sigma = schedule.at(t)
        rho = weight * sigma_y**2 / (sigma / alpha) ** 2
        x0_hat = MODEL(x_t, torch.full((COUNT,), t, dtype=torch.float64)).flatten(1)
        right = y.flatten(1) @ a + rho * x0_hat
        x_0 = torch.linalg.solve(a.T @ a + rho * EYE, right.T).T.reshape(X.shape)
        if i == 0:
            alpha_s, sigma_s = schedule.at(times[1])
            eps = (x_t - alpha * x_0) / sigma
            x_t = alpha_s * x_0 + sigma_s * ((1 - zeta) ** 0.5 * eps + zeta**0.5 * streams.normal(X))
    made = DiffPIR(grid, weight, zeta)(
        Observation(y, operator, GaussianNoise(sigma_y)), MODEL, streams=ImageStreams(range(COUNT))
    )
    torch.testing.assert_close(made.x, x_0, rtol=1e-5, atol=1e-5)


def test_the_last_step_of_the_null_space_model_weighs_data_and_estimate_by_their_errors():
    operator, sigma_y, t = OPERATORS["mask"], 0.3, 0.2
    y, x_t = observed(operator, sigma_y).y, ImageStreams(range(COUNT), "state").normal(X)
    chain, task = DDNM(GRID), problem(operator, y, sigma_y)
    x_0, _ = chain.step(task, x_t, t, None, chain.prepare(task))
    alpha, sigma = MODEL.schedule.at(t)
    r2, x0_hat = sigma**2 / (alpha**2 + sigma**2), task.denoise(x_t, t)
    seen = (r2 * y + sigma_y**2 * operator(x0_hat)) / (r2 + sigma_y**2)
    expected = torch.where(operator.seen, operator.adjoint(seen), x0_hat)
    torch.testing.assert_close(x_0, expected, rtol=1e-10, atol=1e-10)


def test_restoration_in_singular_directions_begins_at_the_data_with_noise_of_the_level():
    operator, sigma_y, t, schedule = OPERATORS["mask"], 0.4, 0.6, MODEL.schedule
    y, z = observed(operator, sigma_y).y, ImageStreams(range(COUNT), "state").normal(X)
    chain, task = DDRM(GRID), problem(operator, y, sigma_y)
    alpha, sigma = schedule.at(t)
    assert sigma > alpha * sigma_y
    start = chain.start(task, torch.zeros_like(z), schedule.prior_std * z, t, chain.prepare(task))
    known = alpha * operator.adjoint(y) + (sigma**2 - (alpha * sigma_y) ** 2) ** 0.5 * z
    torch.testing.assert_close(start, torch.where(operator.seen, known, sigma * z), rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------ chains with a gradient


def ddim(schedule, x_t, x0_hat, t, s, eta, z):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
    beta = sigma_s**2 / sigma_t**2 * (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2)
    eps = (x_t - alpha_t * x0_hat) / sigma_t
    return alpha_s * x0_hat + (sigma_s**2 - eta**2 * beta) ** 0.5 * eps + eta * beta**0.5 * z


@pytest.mark.parametrize(
    "restorer", [DPS(UniformGrid(2), zeta=0.7), HIRDiff(UniformGrid(2), 0.3, 0.0, eta=0.5)]
)
def test_a_gradient_step_by_hand(restorer):
    """The Jacobian of the Gaussian's denoiser is a matrix, so the gradients of the residual are products."""
    operator, t, s = OPERATORS["blur"], 0.5, 0.3
    y, a = observed(operator, 0.1).y, dense(operator)
    task, x_t = problem(operator, y, 0.1), ImageStreams(range(COUNT), "state").normal(X)
    x0_hat, x_s = restorer.step(task, x_t, t, s, None)
    alpha, sigma = MODEL.schedule.at(t)
    slope = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
    residual = (y - operator(x0_hat)).flatten(1)
    pulled = residual @ a @ slope  # J is symmetric
    squared = torch.linalg.matrix_norm(a, 2) ** 2
    weights = 0.7 / residual.norm(dim=1, keepdim=True) if isinstance(restorer, DPS) else 2 * 0.3 / squared
    gradient = -weights * pulled
    unguided = ddim(MODEL.schedule, x_t, x0_hat, t, s, restorer.eta, ImageStreams(range(COUNT)).normal(X))
    torch.testing.assert_close(x_s, unguided - gradient.reshape(X.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("restorer", [STSL(UniformGrid(4), zeta=0.5), HIRDiff(UniformGrid(4), 0.5, 0.01)])
@pytest.mark.parametrize("operator", [OPERATORS["blur"], Radon(N, 8)], ids=lambda a: type(a).__name__)
def test_the_unit_of_the_data_does_not_lengthen_a_step(restorer, operator):
    """``1000 y = (1000 A) x`` says what ``y = A x`` says, by the decomposition or by power iteration."""
    plain = observed(operator, 0.1)
    unit = Compose(ChannelMix(torch.full((1, 1), 1000.0)), operator)
    scaled = Observation(1000 * plain.y, unit, GaussianNoise(100.0))
    found = [restorer(o, MODEL, streams=ImageStreams(range(COUNT))).x for o in (plain, scaled)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    a = dense(operator)
    norm = problem(operator, plain.y, 0.1).squared_norm
    assert norm == pytest.approx(float(torch.linalg.matrix_norm(a, 2)) ** 2, rel=0.02)


def test_the_trace_is_that_of_the_hessian_for_short_probes_and_not_for_long_ones():
    t = 0.5
    alpha, sigma = MODEL.schedule.at(t)
    exact = -float(torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE).trace())
    x_t = ImageStreams(range(COUNT), "state").normal(X)
    task = problem(OPERATORS["mask"], observed(OPERATORS["mask"], 0.1).y, 0.1)
    found = STSL(UniformGrid(2), probes=200).trace(task, x_t, task.denoise(x_t, t), t)
    assert float(found.mean()) == pytest.approx(exact, rel=0.02)
    bent = Problem(
        lambda x, t: x.tanh(), MODEL.schedule, task.y, task.operator, 0.1, ImageStreams(range(COUNT))
    )
    slope = (alpha * (1 - x_t.tanh() ** 2) - 1) / sigma**2
    expected = float(slope.flatten(1).sum(1).mean())
    short, long = (
        float(STSL(UniformGrid(2), probes=300, probe=d).trace(bent, x_t, x_t.tanh(), t).mean())
        for d in (0.05, 3.0)
    )
    assert short == pytest.approx(expected, rel=0.03)
    assert abs(long - expected) > 3 * abs(short - expected)


def test_total_variation_is_the_length_of_the_edges_and_pulls_towards_flat_images():
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[..., 1:4, 1:4] = 0.5
    smooth = float(total_variation(x))
    assert smooth == pytest.approx(
        0.5 * 12 - (2 - 2**0.5) * 0.5, rel=0.02
    )  # one corner has both differences in a pixel
    slope = jacobian(lambda v: total_variation(v).sum(), x)
    assert float((slope * x).sum()) > 0.9 * smooth


def test_the_losses_add_the_trace_and_the_variation():
    operator, t = OPERATORS["blur"], 0.5
    x_t = ImageStreams(range(COUNT), "state").normal(X)

    def parts():
        task = problem(operator, observed(operator, 0.1).y, 0.1)
        x0_hat = task.denoise(x_t, t)
        return task, x0_hat, (task.y - operator(x0_hat)).square().flatten(1).sum(1)

    restorer = STSL(GRID, zeta=0.3, c=0.02)
    task, x0_hat, square = parts()
    expected = 0.3 * square + 0.02 * restorer.trace(task, x_t, x0_hat, t)
    torch.testing.assert_close(restorer.loss(parts()[0], x_t, x0_hat, t), expected)
    expected = 0.3 * square + 0.02 * total_variation(x0_hat)
    torch.testing.assert_close(HIRDiff(GRID, 0.3, 0.02).loss(task, x_t, x0_hat, t), expected)


def test_data_that_are_met_already_give_no_gradient():
    operator = Identity()
    task = problem(operator, X, 0.0, OracleDenoiser(Gaussian(X[0], torch.zeros(SHAPE)), VP()))
    task = Problem(task.denoise, task.schedule, X[:1].expand(COUNT, *SHAPE), operator, 0.0, task.streams)
    _, x_s = DPS(UniformGrid(2)).step(task, X, 0.5, 0.3, None)
    assert x_s.isfinite().all()


# ---------------------------------------------------------------------------------------------- fixed points


def red_fixed_point(operator, y, times, weight):
    a = dense(operator)
    total = torch.zeros(N * N, N * N, dtype=torch.float64)
    for t in times:
        alpha, sigma = MODEL.schedule.at(t)
        total += (
            weight * sigma / alpha * alpha * sigma * torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * EYE)
        )
    total /= len(times)
    right = y.flatten(1) @ a + total @ MEAN
    return torch.linalg.solve(a.T @ a + total, right.T).T.reshape(y.shape[0], *SHAPE)


def test_the_mean_gradient_of_red_diff_vanishes_at_its_fixed_point_which_is_not_the_posterior_mode():
    operator = OPERATORS["mask"]
    y = observed(operator, 0.1).y[:1]
    restorer, times = REDDiff(UniformGrid(40)), UniformGrid(40)(MODEL.schedule).tolist()
    fixed = red_fixed_point(operator, y, times, restorer.weight)
    n = 500
    task = problem(operator, y.expand(n, -1, -1), 0.1, seeds=range(n))
    data = restorer.gradient(task, fixed.expand(n, *SHAPE)).mean(0)
    prior = torch.zeros(SHAPE, dtype=torch.float64)
    for t in times:
        alpha, sigma = MODEL.schedule.at(t)
        eps = task.streams.normal(fixed.expand(n, *SHAPE))
        x_t = alpha * fixed + sigma * eps
        eps_hat = (x_t - alpha * task.denoise(x_t, t)) / sigma
        prior += restorer.weight * sigma / alpha * (eps_hat - eps).mean(0) / len(times)
    assert (data + prior).norm() < 0.05 * data.norm()
    mode, _ = posterior(operator, y, 0.1)
    assert (fixed - mode).norm() > 0.01 * mode.norm()


def test_two_steps_of_red_diff_are_those_of_torchs_adam_on_the_loss_of_the_paper():
    operator, weight, lr = OPERATORS["mask"], 0.4, 0.05
    task, restorer = problem(operator, observed(operator, 0.1).y, 0.1), REDDiff(GRID, weight, 2.0, lr)
    state = restorer.start(task, torch.zeros_like(X), X, 1.0, None)
    mu = state.mu.clone().requires_grad_()
    adam, streams = torch.optim.Adam([mu], lr=lr, betas=(0.9, 0.99)), ImageStreams(range(COUNT))
    for t in (0.7, 0.3):
        _, state = restorer.step(task, state, t, None, None)
        (alpha, sigma), eps = MODEL.schedule.at(t), streams.normal(X)
        x_t = (alpha * mu + sigma * eps).detach()
        eps_hat = (x_t - alpha * task.denoise(x_t, t)) / sigma
        data = (task.y - operator(mu)).square().sum()  # w / 2 = 1
        adam.zero_grad()
        (data + weight * sigma / alpha * ((eps_hat - eps) * mu).sum()).backward()
        adam.step()
    torch.testing.assert_close(state.mu, mu.detach(), rtol=1e-6, atol=1e-7)


def test_red_diff_settles_between_the_data_and_the_prior():
    operator = OPERATORS["mask"]
    observation = observed(operator, 0.1)
    grid = UniformGrid(1000)
    restored = REDDiff(grid, lr=5e-3)(observation, MODEL, streams=ImageStreams(range(COUNT)))
    again = REDDiff(grid, lr=5e-3)(observation, MODEL, streams=ImageStreams(range(COUNT, 2 * COUNT)))
    assert restored.nfe == 1000
    baseline = (operator.pinv(observation.y) - X).norm()
    assert (restored.x - X).norm() < 0.7 * baseline
    assert (restored.x - again.x).norm() < 0.2 * (restored.x - operator.pinv(observation.y)).norm()


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        (Blur(WIDE / WIDE.sum(), size=N), torch.float64),
        (Blur(WIDE / WIDE.sum(), size=N), torch.float32),
        (Radon(N, 40), torch.float64),
    ],
    ids=["blur", "blur32", "radon"],
)
def test_red_diff_starts_near_the_data_of_every_operator(operator, dtype):
    """A blur whose inverse raises the noise two thousand times, and an operator of norm 15."""
    x = X.to(dtype)
    task = problem(operator, GaussianNoise(0.05).sample(operator(x), ImageStreams(range(COUNT))), 0.05)
    start = REDDiff(GRID).start(task, torch.zeros_like(x), x, 1.0, None).mu
    assert start.dtype == dtype
    assert (start - x).norm() < 0.8 * x.norm()
    mask = OPERATORS["mask"]
    y = mask(x)
    assert torch.equal(
        REDDiff(GRID).start(problem(mask, y, 0.05), torch.zeros_like(x), x, 1.0, None).mu, mask.pinv(y)
    )


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_admm_with_a_linear_shrinkage_ends_at_ridge_regression(operator):
    sigma, rho = 0.4, 0.7
    y, a = observed(operator, 0.1).y, dense(operator)
    ridge = rho * sigma**2 / 0.25
    expected = torch.linalg.solve(a.T @ a + ridge * EYE, (y.flatten(1) @ a).T).T.reshape(X.shape)
    restored = PnPADMM(sigma, rho, steps=400)(
        Observation(y, operator, GaussianNoise(0.1)), WHITE, streams=ImageStreams(range(COUNT))
    )
    torch.testing.assert_close(restored.x, expected, rtol=1e-6, atol=1e-6)


class SoftThreshold(DenoiserBase, wraps=True):
    """Shrinks magnitudes by a tenth, whatever the time."""

    schedule, event_shape = VP(), (1, 4, 4)

    def __call__(self, x_t, t, cond=None):
        alpha = float(self.schedule.at(float(t[0]))[0])
        return (x_t / alpha - 0.1).clamp(min=0)


def test_the_denoiser_of_the_magnitude_is_the_complex_soft_threshold():
    """ADMM for |y - x|^2 + 2 (rho / 2) 0.1 |x|_1 ends at the soft threshold of y by 0.1 rho, phases kept."""
    z = torch.view_as_complex(
        torch.randn(1, 4, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    y, rho = torch.view_as_real(z).permute(0, 3, 1, 2), 0.8
    restored = PnPADMM(0.1, rho, steps=300, magnitude=True)(
        Observation(y, Identity(), GaussianNoise(0.1)), SoftThreshold(), streams=ImageStreams([0])
    )
    shrunk = (z.abs() - 0.1 * rho).clamp(min=0) * z / z.abs()
    torch.testing.assert_close(
        restored.x, torch.view_as_real(shrunk).permute(0, 3, 1, 2), rtol=1e-6, atol=1e-6
    )


# ------------------------------------------------------------------------------------------- two unknowns


def test_two_priors_have_the_joint_posterior():
    """Signal and structured disturbance of different covariance: y = x + h + noise."""
    slow = 0.2 * torch.exp(-(torch.cdist(PLACES, PLACES) ** 2) / 60) + 1e-4 * EYE
    haze = OracleDenoiser(Gaussian(torch.zeros(SHAPE, dtype=torch.float64), slow), VP())
    both, operator, sigma_y = Product([MODEL, haze]), ChannelMix(torch.ones(1, 2)), 0.1
    h = haze.oracle.sample(COUNT, torch.Generator().manual_seed(1))
    observation = observed(operator, sigma_y, torch.cat([X, h], 1))
    restorer = MMPS(DDIM(UniformGrid(150)), cg_steps=60)
    restored = restorer(observation, both, streams=ImageStreams(range(COUNT)))
    covariance = torch.block_diag(COVARIANCE, slow)
    mean = torch.cat([MEAN, torch.zeros(N * N, dtype=torch.float64)])
    exact, spread = posterior(operator, observation.y, sigma_y, mean, covariance, (2, N, N))
    z = (restored.x - exact).flatten(1)
    expected = float(spread.diagonal().sum())  # of a draw's squared distance from the mean
    assert float(z.square().sum(1).mean()) == pytest.approx(expected, rel=0.35)
    assert restored.nfe == 2 * 150
    single = MMPS(DDIM(UniformGrid(150)), cg_steps=60)(
        Observation(observation.y, Identity(), GaussianNoise(sigma_y)),
        MODEL,
        streams=ImageStreams(range(COUNT)),
    )
    assert (restored.x[:, :1] - X).norm() < 0.9 * (single.x - X).norm()
    pair = OracleDenoiser(Gaussian(torch.zeros(2, N, N), torch.ones(2, N, N)), VP())
    x_t, t = ImageStreams(range(COUNT)).normal(torch.cat([X, X, X], 1)), torch.full((COUNT,), 0.5)
    expected = torch.cat([MODEL(x_t[:, :1], t), pair(x_t[:, 1:], t)], 1)
    torch.testing.assert_close(Product([MODEL, pair])(x_t, t), expected)
    halving = type("Halving", (OracleDenoiser,), {"device": torch.device("meta"), "downsampling_factor": 4})(
        PRIOR, VP()
    )
    assert Product([halving, MODEL]).device == torch.device("meta")
    assert Product([halving, MODEL]).downsampling_factor == 4
    with pytest.raises(ValueError, match="must share one"):
        Product([MODEL, OracleDenoiser(PRIOR, VP(beta_max=10.0))])
    with pytest.raises(ValueError, match="differ in the channels alone"):
        Product([MODEL, OracleDenoiser(Gaussian(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), VP())])


# ------------------------------------------------------------------------------------------------ bad input


class OtherNoise(NoiseModel):
    def sample(self, x, streams):
        return x

    def variance(self, x):
        return x

    def log_likelihood(self, y, x):
        return x.sum()


@pytest.mark.parametrize(
    ("restorer", "observation", "said"),
    [
        (DiffPIR(GRID), Observation(X, Identity(), GaussianNoise(0.0)), "DiffPIR divides by the noise level"),
        (
            DDNM(GRID),
            Observation(X, Function(torch.abs), GaussianNoise(0.1)),
            "Function is no LinearOperator",
        ),
        (
            MMPS(DDIM(GRID)),
            Observation(X, Function(torch.abs), GaussianNoise(0.1)),
            "Function is no LinearOperator",
        ),
        (DDRM(GRID), Observation(X, Identity(), OtherNoise()), "not OtherNoise: give GaussianNoise"),
        (PiGDM(DDIM(GRID)), Observation(X, Identity(), OtherNoise()), "not OtherNoise: give GaussianNoise"),
        (DDNM(GRID), Observation(X[..., 1:], Identity(), GaussianNoise(0.0)), r"shape \(1, 6, 5\)"),
        (HIRDiff(GRID), Observation(X[:, 0, 0], Identity(), GaussianNoise(0.1)), r"images \[B, C, H, W\]"),
        (
            DPS(GRID),
            Observation(X * float("nan"), Identity(), GaussianNoise(0.1)),
            "not finite: find their origin",
        ),
        (
            DDRM(GRID),
            Observation(
                X[..., 1:-1, 1:-1], Blur(torch.ones(3, 3), size=N, border="valid"), GaussianNoise(0.1)
            ),
            "no singular value decomposition",
        ),
        (PnPADMM(magnitude=True), Observation(X, Identity(), GaussianNoise(0.1)), r"\(2, 6, 6\)"),
        (PnPADMM(sigma=1e-5), Observation(X, Identity(), GaussianNoise(0.1)), "noise level"),
    ],
)
def test_what_a_restorer_cannot_serve_is_refused_in_a_line(restorer, observation, said):
    model = MODEL if observation.y.ndim > 2 else POINTS
    with pytest.raises(ValueError, match=said) as caught:
        restorer(observation, model, streams=ImageStreams(range(COUNT)))
    assert "\n" not in str(caught.value)


def test_a_chain_that_diverges_names_the_step_and_the_parameter():
    observation = observed(OPERATORS["mask"], 0.1)
    with pytest.raises(
        FloatingPointError, match=r"HIRDiff: .* step \d+ of 30, t = .*smaller eta_1 than 1e\+50"
    ):
        HIRDiff(UniformGrid(30), eta_1=1e50)(observation, MODEL, streams=ImageStreams(range(COUNT)))
    for restorer, said in (
        (
            DPS(UniformGrid(30), zeta=1e30),
            r"DPS: the estimate has reached .*, so it diverges: .*zeta than 1e\+30",
        ),
        (
            DDS(UniformGrid(30), gamma=1e200),
            r"DDS: conjugate gradients failed at step 1 of 30, .*gamma than 1e\+200",
        ),
    ):
        with pytest.raises(FloatingPointError, match=said):
            restorer(observation, MODEL, streams=ImageStreams(range(COUNT)))

    class Broken(DenoiserBase):
        schedule, event_shape = MODEL.schedule, SHAPE

        def __call__(self, x_t, t, cond=None):
            return x_t / 0

    with pytest.raises(FloatingPointError, match=r"PiGDM: .* after step 1 of 3, .*sigma_data than 0\.5"):
        PiGDM(DDIM(UniformGrid(3)))(observation, Broken(), streams=ImageStreams(range(COUNT)))


@pytest.mark.parametrize(
    "restorer",
    [DDNM(GRID), DDRM(GRID), DiffPIR(GRID), REDDiff(GRID), PnPADMM(steps=2)],
    ids=lambda r: type(r).__name__,
)
def test_these_need_no_gradient_through_the_network(restorer):
    recorded = []

    class Followed(DenoiserBase, wraps=True):
        schedule, event_shape = MODEL.schedule, SHAPE

        def __call__(self, x_t, t, cond=None):
            recorded.append(torch.is_grad_enabled())
            return MODEL(x_t, t)

    restorer(observed(OPERATORS["mask"], 0.1), Followed(), streams=ImageStreams(range(COUNT)))
    assert recorded == [False, False]


# -------------------------------------------------------------------- beginning at a noise level near the data's spread


def membrane(c=0.1):
    """``D^T D / c^2`` of the differences of neighbours on the grid: the precision of the start's Gaussian."""
    near = (torch.cdist(PLACES, PLACES, p=1) == 1).double()
    return (torch.diag(near.sum(1)) - near) / c**2


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_share_of_the_image_is_the_posterior_mean_of_a_smooth_gaussian(operator):
    """Where the noise of y is not below the least that conjugate gradients are given."""
    sigma_y, schedule = 0.1, EDM(sigma_max=1.0)
    y = observed(operator, sigma_y).y
    a = dense(operator)
    expected = torch.linalg.solve(a.T @ a / sigma_y**2 + membrane(), a.T @ y.flatten(1).T / sigma_y**2).T
    found = image_share(schedule, operator, y, sigma_y, SHAPE)
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("schedule", [VP(), EDM(sigma_max=10.0), FlowMatching()], ids=["vp", "edm", "flow"])
def test_a_chain_that_begins_far_above_the_data_begins_at_noise(schedule):
    y = observed(OPERATORS["mask"], 0.1).y
    assert not image_share(schedule, OPERATORS["mask"], y, 0.1, SHAPE).any()


class Silent(ImageStreams):
    """No noise at all: what is linear in it gives its mean over the seeds."""

    def _drawn(self, like, draw):
        return torch.zeros_like(like)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_prior_of_low_noise_levels_restores_the_posterior_mean(operator):
    """Gaussian data of spread 0.5 below a largest noise level of 1: beginning at noise alone, half of the error or more is
    that the image's share is missing."""
    model = OracleDenoiser(PRIOR, EDM(sigma_max=1.0))
    observation = observed(operator, 0.1)
    mean, covariance = posterior(operator, observation.y, 0.1)
    sampler, streams = DDIM(UniformGrid(25), eta=1.0), Silent(range(COUNT))
    restorer = MMPS(sampler, cg_steps=50)

    def error(x):
        return float(((x - mean).flatten(1).square().sum(1).mean() / covariance.trace()).sqrt())

    without = sampler(restorer.posterior(model, observation), torch.zeros_like(X), streams=streams)
    found = restorer(observation, model, streams=streams)
    assert error(found.x) < min(0.12, 0.6 * error(without.x))
