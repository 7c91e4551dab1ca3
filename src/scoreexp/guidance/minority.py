r"""Minority guidance: towards samples of low density, by a classifier of noisy data.

1. ``minority_scores`` rank the training data, and their quantiles are classes, the last one the rarest;
2. a classifier :math:`p_\psi(\text{class} | x_t)` learns them from noisy data, ``fit_quantile_classifier``;
3. the noise is guided, :math:`\hat\epsilon' = \hat\epsilon - w \sigma_t \nabla \log p_\psi(\text{class} | x_t)`, which is

.. math:: \hat x_0' = \hat x_0 + w\, \frac{\sigma_t^2}{\alpha_t} \nabla_{x_t} \log p_\psi(\text{class} | x_t) .

Reference: S. Um, S. Lee, J. C. Ye, "Don't Play Favorites: Minority Guidance for Diffusion Models", 2024,
https://arxiv.org/abs/2301.12334.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams, generator, stream_seed
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import AtLeastTwo, FinitePositiveFloat, NonNegativeInt, PositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.guidance.base import finite
from scoreexp.metrics.minority import minority_scores
from scoreexp.networks.classifier import draw_weights
from scoreexp.networks.layers import NoiseFeatures
from scoreexp.schedules import Schedule
from scoreexp.system.network_files import read_network, write_network

_NOISIEST = 1e4  # levels beyond are one, as for a denoiser's network
_FEATURES = 32


class QuantileClassifier(nn.Module):
    """Logits of the quantiles of the minority score, a perceptron of three layers over the flattened sample.

    Enough for points and small images; for larger ones ``Minority`` takes any module that is called alike.

    >>> classifier = QuantileClassifier((1, 4, 4), quantiles=10)
    >>> classifier(torch.zeros(3, 1, 4, 4), torch.zeros(3)).shape
    torch.Size([3, 10])

    Args:
        event_shape: shape ``*`` of one sample.
        quantiles: how many classes; 100 in the paper.
        width: of the hidden layers.

    Raises:
        ValueError: an argument is outside its range.
    """

    @checked
    def __init__(
        self, event_shape: Sequence[int], quantiles: AtLeastTwo = 10, width: PositiveInt = 256
    ) -> None:
        super().__init__()
        self.event_shape, self.quantiles, self.width = tuple(event_shape), quantiles, width
        self.features = NoiseFeatures(_FEATURES)
        self.layers = nn.Sequential(
            nn.Linear(math.prod(self.event_shape) + _FEATURES, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, quantiles),
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """``x[B, *]`` scaled to unit noise and data, ``c_noise[B] = log(sigma / alpha) / 4`` -> ``[B, quantiles]``."""
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"samples of shape {tuple(x.shape[1:])} for a classifier of {self.event_shape}: this one takes no other, "
                "leave minority guidance out, or give a convolutional classifier in Python"
            )
        return self.layers(torch.cat([x.flatten(1), self.features(c_noise).to(x)], 1))


@checked
def fit_quantile_classifier(
    model: DenoiserBase,
    x_0: Tensor,
    *,
    quantiles: AtLeastTwo = 10,
    level: FinitePositiveFloat = 0.7,
    draws: PositiveInt = 5,
    steps: PositiveInt = 2000,
    batch_size: PositiveInt = 256,
    lr: PositiveFloat = 3e-3,
    width: PositiveInt = 256,
    seed: int = 0,
) -> QuantileClassifier:
    """A classifier of the quantiles of the minority scores of ``x_0``, at all noise levels of the model.

    Levels are drawn uniformly in time. A function of its arguments: the seed names weights, batches and noise.

    Args:
        model: the denoiser, whose scores they are; cheap beside the fit.
        x_0: clean data ``[N, *]`` in the range of the model, N at least ``quantiles``.
        quantiles: how many classes.
        level: noise level of the scores.
        draws: of noise for each score.
        steps: of Adam.
        batch_size: samples in a step.
        lr: learning rate.
        width: of the classifier.
        seed: of everything that is drawn.

    Raises:
        ValueError: there are fewer samples than quantiles.
    """
    if len(x_0) < quantiles:
        raise ValueError(f"{len(x_0)} samples for quantiles={quantiles}: give at least one for each")
    x_0, schedule = x_0.to(model.device), model.schedule
    scores = [
        minority_scores(
            model, part, streams=ImageStreams(_seeds(seed, i, len(part))), level=level, draws=draws
        )
        for i, part in enumerate(x_0.split(batch_size))
    ]
    rank = torch.cat(scores).argsort().argsort()
    labels = rank * quantiles // len(x_0)
    random = generator(seed, "quantile classifier")
    with torch.inference_mode(False), torch.enable_grad():
        classifier = QuantileClassifier(tuple(x_0.shape[1:]), quantiles, width).to(x_0)
        draw_weights(classifier, random)
        classifier = classifier.to(x_0)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
        for _ in range(steps):
            rows = torch.randint(len(x_0), (batch_size,), generator=random)
            t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(
                batch_size, generator=random, dtype=torch.float64
            )
            alpha, sigma = (expand_to(scale, x_0) for scale in schedule(t))
            noise = torch.randn((batch_size, *x_0.shape[1:]), generator=random).to(x_0)
            logits = _logits(classifier, schedule, alpha * x_0[rows] + sigma * noise, t)
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier.eval().requires_grad_(False)


def save_classifier(classifier: QuantileClassifier, path: str | Path) -> None:
    """Write a classifier, whole or not at all."""
    sizes = {
        "event_shape": list(classifier.event_shape),
        "quantiles": classifier.quantiles,
        "width": classifier.width,
    }
    write_network(path, "quantile_classifier", classifier, sizes)


def load_classifier(path: str | Path) -> QuantileClassifier:
    """Read a classifier that ``save_classifier`` wrote; tensors and plain data only are read.

    Raises:
        UserError: the file is missing, or no such classifier.
    """
    remedy = "write one with scoreexp.guidance.save_classifier"
    return read_network(
        path, "quantile_classifier", QuantileClassifier, "classifier of minority guidance", remedy
    )


class Minority(Wrapper):
    """The model led towards a quantile of the minority score; one evaluation per call, and a pass through the classifier.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> data = Gaussian(torch.zeros(2), torch.full((2,), 0.1))
    >>> model = OracleDenoiser(data, VP())
    >>> x_0 = data.sample(100, torch.Generator().manual_seed(0)).float()
    >>> classifier = fit_quantile_classifier(model, x_0, quantiles=4, steps=10)
    >>> Minority(model, classifier, weight=2.0)(torch.zeros(1, 2), torch.tensor([0.5])).shape
    torch.Size([1, 2])

    Args:
        model: the model.
        classifier: logits ``[B, K]`` of ``(c_in x_t, c_noise)``, such as those of ``fit_quantile_classifier``; moved to the
            device of the model.
        weight: ``w``, any finite number; 0 is the model itself.
        target: the quantile, 0 to K - 1; None for the last, the rarest.

    Raises:
        ValueError: the weight is not finite, or there is no such quantile.
        UserError: the classifier is for samples of another shape.
    """

    @checked
    def __init__(
        self,
        model: DenoiserBase,
        classifier: nn.Module,
        weight: float = 1.0,
        target: NonNegativeInt | None = None,
    ) -> None:
        super().__init__(model)
        self.weight = finite(weight)
        shape, quantiles = (getattr(classifier, name, None) for name in ("event_shape", "quantiles"))
        if shape is not None and model.event_shape is not None and tuple(shape) != tuple(model.event_shape):
            raise UserError(
                f"minority guidance: the classifier is for samples {tuple(shape)}, the model has {model.event_shape}: fit "
                "one to this model"
            )
        if target is not None and quantiles is not None and target >= quantiles:
            raise ValueError(f"target={target}: allowed is 0 to {quantiles - 1}, or none for the rarest")
        self.classifier = classifier.to(model.device)
        self.target = -1 if target is None else target

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x0_hat = self.model(x_t, t, cond)
        if self.weight == 0:
            return x0_hat
        with torch.inference_mode(False), torch.enable_grad():
            state = x_t.detach().clone().requires_grad_()
            log_p = _logits(self.classifier, self.schedule, state, t).log_softmax(1)[:, self.target]
            (gradient,) = torch.autograd.grad(log_p.sum(), state)
        alpha, sigma = self._scales(x_t, t)
        # at alpha = 0 the state says nothing of the class
        gain = torch.where(alpha > 0, sigma**2 / alpha.clamp(min=1e-12), 0.0)
        return x0_hat + self.weight * gain * gradient


def _logits(classifier: nn.Module, schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    """The classifier's answer to ``x_t``, scaled by ``c_in = (alpha^2 + sigma^2)^(-1/2)``."""
    alpha, sigma = schedule(t.to(device="cpu", dtype=torch.float64))
    c_noise = (sigma / alpha).clamp(max=_NOISIEST).log() / 4
    c_in = expand_to((alpha**2 + sigma**2).rsqrt(), x_t)
    logits: Tensor = classifier(c_in * x_t, c_noise.to(x_t))
    return logits


def _seeds(seed: int, part: int, n: int) -> list[int]:
    return [stream_seed(seed, "minority", part, i) for i in range(n)]
