r"""How far the score of a model is from that of the exact distribution.

At noise levels :math:`\sigma / \alpha`, with :math:`x_t` drawn from the exact marginal,

.. math:: e(\sigma / \alpha) = \frac{E |s_\theta(x_t, t) - \nabla \log p_t(x_t)|^2}{E |\nabla \log p_t(x_t)|^2} .

0 is exact, 1 is no better than predicting 0. Points are ``u = x_t / alpha``, whose law depends on the noise level alone, so
one set of them serves every schedule.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.metrics.spec import Measurement, MetricSpec
from scoreexp.numerics.oracles import Oracle

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # noise levels sigma / alpha, data units
_CHUNK = 128  # points whose exact density is computed at once

ExactScores = Mapping[float, tuple[Tensor, Tensor]]  # noise level to noisy points u and the exact score there


class OracleMetric(ABC):
    """Compares a model with the exact distribution of the data.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.metrics.spec import Measurement
    >>> class MeanAtPrior(OracleMetric):
    ...     spec = se.metrics.MetricSpec("mean_at_prior", "lower", needs="oracle", kinds=("points",))
    ...     def __call__(self, model, oracle, *, n, seed, device):
    ...         x_t = torch.randn(n, *oracle.event_shape, generator=torch.Generator().manual_seed(seed))
    ...         t = torch.full((n,), model.schedule.t_max, dtype=torch.float64)
    ...         error = model(x_t, t) - oracle.posterior_mean(x_t, *model.schedule(t))
    ...         return (Measurement("mean_at_prior", float(error.square().mean())),)
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> MeanAtPrior()(model, oracle, n=10, seed=0, device="cpu")[0].value
    0.0
    """

    spec: ClassVar[MetricSpec]

    @abstractmethod
    def __call__(
        self, model: DenoiserBase, oracle: Oracle, *, n: int, seed: int, device: torch.device | str
    ) -> tuple[Measurement, ...]:
        """Its values, in the order of ``spec.value_names``.

        Args:
            model: the denoiser, on ``device``.
            oracle: the exact distribution.
            n: number of samples, at least 2.
            seed: names the noise.
            device: of the model.

        Raises:
            ValueError: the model's schedule does not allow it.
        """


class ScoreError(OracleMetric):
    """The relative squared error of the score, its mean over those of ``LEVELS`` that the schedule has.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> oracle = Gaussian(torch.zeros(2), torch.ones(2))
    >>> (found,) = ScoreError()(OracleDenoiser(oracle, VP()), oracle, n=20, seed=0, device="cpu")
    >>> found.value < 1e-8
    True
    """

    spec = MetricSpec(
        "score_error", "lower", needs="oracle", kinds=("points",), title="score error", usual=True
    )

    def __call__(
        self, model: DenoiserBase, oracle: Oracle, *, n: int, seed: int, device: torch.device | str
    ) -> tuple[Measurement, ...]:
        low, high = model.schedule.sigma_range
        levels = [level for level in LEVELS if low <= level <= high]
        if not levels:
            raise ValueError(
                f"score_error compares scores at the noise levels {LEVELS}, but the schedule has {low:.3g} to {high:.3g}: "
                "give a model of a wider schedule"
            )
        errors = score_errors(model, exact_scores(oracle, levels, n, seed), device)
        settings = {"n": n, "levels": levels, "noise_seed": seed}
        caveat = "0 is exact, 1 no better than predicting 0"
        return (Measurement(self.spec.name, sum(errors.values()) / len(errors), settings, caveat),)


def exact_scores(
    oracle: Oracle, levels: Sequence[float], n: int, seed: int
) -> dict[float, tuple[Tensor, Tensor]]:
    """Noisy points ``u`` ``[n, *]`` and the exact score at them, for each noise level; a function of the arguments."""
    found = {}
    for level in levels:
        stream = generator(seed, "noisy points", f"{level:g}")
        clean = oracle.sample(n, stream)
        u = clean + level * torch.randn(clean.shape, generator=stream, dtype=clean.dtype)
        found[level] = u, in_chunks(oracle.score, u, level)
    return found


def score_errors(model: DenoiserBase, scores: ExactScores, device: torch.device | str) -> dict[float, float]:
    """The relative squared error of the model's score at each noise level."""
    return {
        level: float((score_at(model, u, level, device) - score).square().sum() / score.square().sum())
        for level, (u, score) in scores.items()
    }


@torch.no_grad()
def score_at(model: DenoiserBase, u: Tensor, level: float, device: torch.device | str) -> Tensor:
    """The model's score of ``u = x_t / alpha`` at a noise level: ``alpha`` times that of ``x_t``; float64 on the CPU."""
    t = model.schedule.t_of_sigma(torch.full((len(u),), level, dtype=torch.float64))
    alpha = expand_to(model.schedule.alpha(t), u)
    return alpha * model.score((alpha * u).float().to(device), t).double().cpu()


def in_chunks(function: Callable[[Tensor, Tensor, Tensor], Tensor], u: Tensor, level: float) -> Tensor:
    """An oracle's ``function(u, 1, level)`` for many points."""
    one = torch.ones((), dtype=u.dtype)
    return torch.cat([function(c, one.expand(len(c)), level * one.expand(len(c))) for c in u.split(_CHUNK)])
