r"""The minority score: how badly a model gives back a sample that it sees through noise.

.. math:: \ell(x_0) = E_z\, |x_0 - D(\alpha x_0 + \sigma z)|^2

at one noise level :math:`\sigma / \alpha`. For Gaussian data :math:`N(m, v I)` it is
:math:`(1 - \alpha k)^2 |x_0 - m|^2 + D k^2 \sigma^2` with :math:`k = \alpha v / (\alpha^2 v + \sigma^2)`, so it ranks
samples as their density does. With several modes it does not in general: it says what is unlike the average of what could
lie under the noise.

Reference: S. Um, S. Lee, J. C. Ye, "Don't Play Favorites: Minority Guidance for Diffusion Models", 2024,
https://arxiv.org/abs/2301.12334, with a perceptual distance in place of the squared one.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.metrics.spec import Measurement, MetricSpec

LEVEL, DRAWS = 0.7, 5
_BATCH = 64  # samples scored at once; does not change the scores


@checked
@torch.no_grad()
def minority_scores(
    model: DenoiserBase,
    x_0: Tensor,
    *,
    streams: ImageStreams,
    level: FinitePositiveFloat = LEVEL,
    draws: PositiveInt = DRAWS,
    cond: Tensor | None = None,
) -> Tensor:
    """The score of each sample, ``[B]``; large for samples that the model finds unlikely.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), VP())
    >>> usual, rare = minority_scores(model, torch.tensor([[0.1, 0.0], [1.0, 1.0]]), streams=ImageStreams([0, 1]))
    >>> bool(usual < rare)
    True

    Args:
        model: the denoiser.
        x_0: clean data ``[B, *]`` in the range of the model.
        streams: one random stream per sample, of the noise.
        level: ``sigma / alpha``, in units of the data.
        draws: of the noise, one evaluation each; 5 in the paper.
        cond: class labels ``[B]``, or None.

    Raises:
        ValueError: an argument is outside its range, or the level outside the schedule's.
    """
    t = model.schedule.t_of_sigma(torch.full((len(x_0),), level, dtype=torch.float64))
    alpha, sigma = model.schedule.at(float(t[0]))
    total = x_0.new_zeros(len(x_0))
    for _ in range(draws):
        x0_hat = model(alpha * x_0 + sigma * streams.normal(x_0), t, cond)
        total = total + (x_0 - x0_hat).flatten(1).square().sum(1)
    return total / draws


class ModelMetric(ABC):
    """What a model says of generated samples, beside what it says of real ones.

    >>> import scoreexp as se
    >>> class Correction(ModelMetric):  # at the last time
    ...     spec = se.metrics.MetricSpec("correction", "lower", needs="model", kinds=("points",))
    ...     def __call__(self, model, samples, real, *, seed):
    ...         t = torch.full((len(samples),), model.schedule.t_min, dtype=torch.float64)
    ...         distance = (model(samples, t) - samples).flatten(1).norm(dim=1)
    ...         return (Measurement("correction", float(distance.mean())),)
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> Correction()(model, torch.zeros(3, 2), torch.zeros(3, 2), seed=0)[0].value
    0.0
    """

    spec: ClassVar[MetricSpec]

    @abstractmethod
    def __call__(
        self, model: DenoiserBase, samples: Tensor, real: Tensor, *, seed: int
    ) -> tuple[Measurement, ...]:
        """Its values, in the order of ``spec.value_names``.

        Args:
            model: the denoiser, without guidance; its null label stands for all classes.
            samples: generated, ``[n, *]`` in the range of the model.
            real: data of the same range, ``[N, *]``.
            seed: names the noise.

        Raises:
            ValueError: the model does not allow it.
        """


class MinorityScore(ModelMetric):
    """The mean of ``minority_scores`` of generated samples at the noise level 0.7, 5 draws each.

    Larger for rarer samples; minority guidance raises it. It is no quality: what it is to be compared with is the mean of
    real samples, which the caveat has.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), VP())
    >>> usual, rare = (MinorityScore()(model, x * torch.ones(9, 2), torch.zeros(9, 2), seed=0) for x in (0.1, 1.0))
    >>> usual[0].value < rare[0].value
    True
    """

    spec = MetricSpec(
        "minority_score", "neither", needs="model", kinds=("pictures", "points"), title="minority score"
    )

    def __call__(
        self, model: DenoiserBase, samples: Tensor, real: Tensor, *, seed: int
    ) -> tuple[Measurement, ...]:
        of_samples, of_real = (
            _mean_score(model, x, seed, whose) for x, whose in ((samples, "generated"), (real, "real"))
        )
        settings = {"level": LEVEL, "draws": DRAWS, "noise_seed": seed}
        return (
            Measurement(self.spec.name, of_samples, settings, f"{len(real)} real samples have {of_real:.4g}"),
        )


def _mean_score(model: DenoiserBase, x_0: Tensor, seed: int, whose: str) -> float:
    total = 0.0
    for start in range(0, len(x_0), _BATCH):
        part = x_0[start : start + _BATCH].to(model.device)
        seeds = [stream_seed(seed, "minority score", whose, start + i) for i in range(len(part))]
        total += float(minority_scores(model, part, streams=ImageStreams(seeds)).double().sum())
    return total / len(x_0)
