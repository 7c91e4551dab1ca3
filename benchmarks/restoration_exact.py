"""The error of every restorer to the exact posterior, in parts: ``python -m benchmarks.restoration_exact``

Priors that are known exactly (8 x 8 pixels, one channel, VP schedule): a Gaussian of smooth images, and a mixture of four
Gaussians. Tasks: half of the pixels missing, a blur, a reduction by two, each with Gaussian noise of 0.05 (of the [0, 1]
range). The posterior of both priors is known in closed form: its mean ``m`` and its covariance ``C``. Every restorer has
the settings of its file in conf/restorer and STEPS steps; it restores OBSERVATIONS observations SEEDS times. With
``m_N`` its mean over the seeds:

    bias           |m_N - m|       at N = STEPS
    discretisation |m_N - m_10N|   what ten times the steps change
    likelihood     |m_10N - m|     what remains: the approximation that the method makes, as the score is exact
    spread         tr C_N / tr C   of the covariance over the seeds: 1 for a draw of the posterior, 0 for a point

All distances are root mean squares over observations, in units of the posterior's own standard deviation
``sqrt(tr C)``, so at 1 the error is as large as what the data leave open. The mean over the seeds is itself random; its
known variance is subtracted, and what is not three standard errors from 0 is shown as smaller than that.

The control is the same ancestral sampler with the exact denoiser of the posterior: its likelihood part is 0 by construction,
and shows how small a number of this page means anything.

Writes the tables of docs/restoration.md. All draws are named by seeds, so another run on the same machine and version of
torch gives the same numbers; a minute on one core.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.pages import DOCS, write_table
from benchmarks.restoration import dense, smooth
from scoreexp.app.commands.restore_comparison import configured, restorers_with_model
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.observations import (
    GaussianBlur,
    GaussianNoise,
    LinearOperator,
    Observation,
    RandomMask,
    SuperResolution,
)
from scoreexp.samplers import DDIM, UniformGrid, start_from_prior
from scoreexp.schedules import VP

SIDE, STEPS, FINER = 8, 25, 10
OBSERVATIONS, SEEDS = 4, 64
SIGMA = 0.1  # of the noise, in [-1, 1]: 0.05 of [0, 1]
SHAPE = (1, SIDE, SIDE)
EYE = torch.eye(SIDE**2, dtype=torch.float64)
OPERATORS: dict[str, LinearOperator] = {
    "mask": RandomMask(SIDE, hole=0.5),
    "blur": GaussianBlur(0.7, size=SIDE),
    "reduction": SuperResolution(2, size=SIDE),
}
CONTROL = "control"


@dataclass(frozen=True)
class Mixture:
    """``sum_k w_k N(mu_k, C_k)`` and its exact posterior.

    Attributes:
        weights: ``[K]``.
        means: ``[K, D]``.
        covariances: ``[K, D, D]``.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def posterior(self, a: Tensor, y: Tensor, variances: Tensor) -> "Mixture":
        """Given ``y[m] = a x + noise`` of the given variances ``[m]``."""
        total = a @ self.covariances @ a.T + torch.diag(variances)
        residual = y - self.means @ a.T
        solved = torch.linalg.solve(total, residual[..., None])[..., 0]
        evidence = -0.5 * ((residual * solved).sum(1) + torch.logdet(total))
        gain = torch.linalg.solve(total, a @ self.covariances).transpose(1, 2)
        return Mixture(
            (self.weights.log() + evidence).softmax(0),
            self.means + (gain @ residual[..., None])[..., 0],
            self.covariances - gain @ a @ self.covariances,
        )

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def trace(self) -> float:
        """``tr C``: within the components and between them."""
        between = (self.means - self.mean).square().sum(1)
        return float(self.weights @ (self.covariances.diagonal(dim1=1, dim2=2).sum(1) + between))


class Prior(NamedTuple):
    """A prior twice: as what a restorer asks, and as what the exact answer is computed from."""

    model: OracleDenoiser
    exact: Mixture


def gaussian() -> Prior:
    """Smooth images round a ramp."""
    covariance, mean = smooth(SIDE, 0.25), torch.linspace(-0.3, 0.3, SIDE**2, dtype=torch.float64)
    return Prior(
        OracleDenoiser(Gaussian(mean.reshape(SHAPE), covariance), VP()),
        Mixture(torch.ones(1, dtype=torch.float64), mean[None], covariance[None]),
    )


def mixture() -> Prior:
    """A ramp, up or down, with a checkerboard, one or the other: what the blur and the reduction hide has two values."""
    ramp = torch.linspace(-0.4, 0.4, SIDE**2, dtype=torch.float64)
    checkerboard = (
        0.3 * (-1.0) ** torch.arange(SIDE, dtype=torch.float64).add(torch.arange(SIDE)[:, None]).flatten()
    )
    means = torch.stack([i * ramp + j * checkerboard for i in (1, -1) for j in (1, -1)])
    weights, variances = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.full((4,), 0.15**2, dtype=torch.float64)
    return Prior(
        OracleDenoiser(GaussianMixture(weights, means.reshape(4, *SHAPE), variances), VP()),
        Mixture(weights.double(), means, variances[:, None, None] * EYE),
    )


PRIORS: dict[str, Callable[[], Prior]] = {"Gaussian": gaussian, "mixture": mixture}


class Posterior(DenoiserBase):
    """The exact denoiser ``E[x_0 | x_t, y]`` of the posteriors of several observations, SEEDS samples of each."""

    event_shape, schedule = SHAPE, VP()

    def __init__(self, posteriors: list[Mixture]) -> None:
        self.posteriors = posteriors

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        (alpha,), (sigma,) = (scale[:1] for scale in self.schedule(t))
        groups = x_t.flatten(1).split(SEEDS)
        means = [self._mean(p, x, alpha, sigma) for p, x in zip(self.posteriors, groups, strict=True)]
        return torch.cat(means).reshape(x_t.shape)

    def _mean(self, prior: Mixture, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        total = alpha**2 * prior.covariances + sigma**2 * EYE
        residual = x_t - alpha * prior.means[:, None]  # [K, B, D]
        solved = torch.linalg.solve(total, residual.transpose(1, 2)).transpose(1, 2)
        evidence = -0.5 * ((residual * solved).sum(2) + torch.logdet(total)[:, None])
        weights = (prior.weights.log()[:, None] + evidence).softmax(0)
        means = prior.means[:, None] + alpha * solved @ prior.covariances
        return (weights[..., None] * means).sum(0)


class OneStream(ImageStreams):
    """One generator for the whole batch: a seed names the table and no image, at a fraction of the time."""

    def __init__(self, seed: int, count: int) -> None:
        self.seeds, self._one = tuple(range(count)), generator(seed, "restoration")

    def _drawn(self, like: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        return draw(like, self._one)


class Parts(NamedTuple):
    """What a restorer's error consists of, as in the module's description; a pair is a value and its resolution."""

    bias: tuple[float, float]
    discretisation: tuple[float, float]
    likelihood: tuple[float, float]
    spread: float
    finer_spread: float


class Draws(NamedTuple):
    """Moments over the seeds: means ``[observations, D]`` and covariances ``[observations, D, D]``."""

    mean: Tensor
    covariance: Tensor

    @property
    def trace(self) -> Tensor:
        return self.covariance.diagonal(dim1=1, dim2=2).sum(1)


def restored(name: str, model: DenoiserBase, observation: Observation, steps: int, seed: int) -> Draws:
    """The moments of what a restorer, or the control, makes of OBSERVATIONS x SEEDS observations."""
    streams = OneStream(seed, len(observation.y))
    if name == CONTROL:
        start = start_from_prior(model, SHAPE, streams, dtype=torch.float64)
        x = DDIM(UniformGrid(steps), eta=1.0)(model, start, streams=streams).x
    else:
        x = configured(name, steps)(observation, model, streams=streams).x
    x = x.reshape(OBSERVATIONS, SEEDS, -1)
    return Draws(x.mean(1), torch.stack([one.T.cov() for one in x]))


def distance(a: Draws, b: Draws, unit: Tensor) -> tuple[float, float]:
    """Root mean square of ``a.mean - b.mean`` in units of ``sqrt(unit)``, and what can be told from 0.

    The difference of two means over K seeds has the covariance ``S = (C_a + C_b) / K``: its square exceeds that of the
    expected difference by ``tr S``, with the variance ``2 tr S^2`` where that is 0.

    Args:
        a: moments over the seeds.
        b: as ``a``, or an exact mean, with the covariance 0.
        unit: ``tr C`` of the posterior, ``[observations]``.
    """
    s = (a.covariance + b.covariance) / SEEDS
    noise = s.diagonal(dim1=1, dim2=2).sum(1) / unit
    square = ((a.mean - b.mean).square().sum(1) / unit - noise).mean()
    deviation = (2 * s.square().sum((1, 2)) / unit**2).sum().sqrt() / OBSERVATIONS
    return float(square.clamp(min=0).sqrt()), float((3 * deviation).sqrt())


def parts(name: str, prior: Prior, operator: LinearOperator) -> Parts:
    """The parts of the error of a restorer on a task."""
    x = prior.model.oracle.sample(OBSERVATIONS, generator(0, "true images"))
    y = Observation.simulate(
        x, operator, GaussianNoise(SIGMA), ImageStreams(range(OBSERVATIONS), "observation")
    ).y
    a = dense(operator, SHAPE)
    noise = torch.full((len(a),), SIGMA**2, dtype=torch.float64)
    exact = [prior.exact.posterior(a, one.flatten(), noise) for one in y]
    mean = torch.stack([one.mean for one in exact])
    unit = torch.tensor([one.trace for one in exact], dtype=torch.float64)
    repeated = Observation(y.repeat_interleave(SEEDS, 0), operator, GaussianNoise(SIGMA))
    model = Posterior(exact) if name == CONTROL else prior.model
    coarse, fine = (restored(name, model, repeated, n, seed) for seed, n in enumerate((STEPS, FINER * STEPS)))
    truth = Draws(mean, torch.zeros_like(fine.covariance))
    return Parts(
        distance(coarse, truth, unit),
        distance(coarse, fine, unit),
        distance(fine, truth, unit),
        float((coarse.trace / unit).mean()),
        float((fine.trace / unit).mean()),
    )


def table(rows: dict[str, list[Parts]]) -> str:
    """Markdown: a row for each restorer, its parts for each prior side by side."""
    head = "".join(f" {p}: bias | discr. | likelihood | spread, finer |" for p in PRIORS)
    lines = [f"| restorer |{head}", f"| --- |{' ---: |' * 4 * len(PRIORS)}"]
    for name, found in rows.items():
        cells = [
            f"{_shown(*p.bias)} | {_shown(*p.discretisation)} | {_shown(*p.likelihood)} | "
            f"{p.spread:.2f}, {p.finer_spread:.2f}"
            for p in found
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float, resolution: float) -> str:
    return f"{value:.2f}" if value > resolution else f"< {max(resolution, 0.005):.2f}"


def main() -> None:
    """All tasks, into the page."""
    made = {prior: build() for prior, build in PRIORS.items()}
    for task, operator in OPERATORS.items():
        rows = {}
        for name in [CONTROL, *restorers_with_model()]:
            try:
                rows[name] = [parts(name, made[p], operator) for p in PRIORS]
            except ValueError as error:  # such as one for denoising alone
                print(f"left out: {name}: {error}")
        print(f"\n{task}\n{table(rows)}")
        write_table(DOCS / "restoration.md", f"restoration_exact {task}", table(rows))


if __name__ == "__main__":
    main()
