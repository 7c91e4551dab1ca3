r"""Denoising score matching on stable targets: clean data averaged over what could have given the same ``x_t``.

At intermediate noise several clean samples explain ``x_t`` about equally well, and the target ``x_0`` of denoising
score matching is a random one of them. Averaging the target over a reference batch ``x_1, ..., x_n`` with the
posterior weights of its members removes most of that variance,

.. math:: \bar x_0(x_t) = \sum_i w_i x_i, \qquad
          w = \mathrm{softmax}_i\left( -\frac{|x_t - \alpha x_i|^2}{2 \sigma^2} \right).

The reference holds the ``x_0`` that made ``x_t``, and the others are drawn like it. Then ``w_i`` is the probability,
given ``x_t`` and the whole reference, that member i is the one that made it, so the average is the conditional
expectation of the random target (Rao and Blackwell): for every n the minimiser is that of denoising score matching and
the variance is not larger; with n = 1 both are the same loss. A reference of the whole training set leaves no variance:
the target is the posterior mean ``E[x_0 | x_t]`` of the training set itself.

Reference: Y. Xu, S. Tong, T. Jaakkola, "Stable Target Field for Reduced Variance Score Estimation in Diffusion
Models", 2023, https://arxiv.org/abs/2302.00670.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import NoisyData, Objective, noise_name, perturb
from scoreexp.objectives.weightings import Weighting

_CHUNK = 256  # reference samples whose float64 copy is held at a time


class StableTargetScoreMatching(Objective):
    """``loss = w(alpha, sigma) mean |x0_hat - target|^2``, the target averaged over a reference batch.

    The reference of a sample is the sample itself and either the rest of its batch, or samples drawn anew from the
    training set at each step, without replacement and without that sample; their draw is named by the noise. A
    reference of all the training set is fetched once and kept on the device. Only samples of the same class count
    where there are classes. Samples drawn from the training set are not augmented: with augmentation take the batch.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> data = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    >>> model = se.denoisers.OracleDenoiser(se.oracles.EmpiricalImages(data), se.schedules.VP())
    >>> objective = se.objectives.StableTargetScoreMatching(se.objectives.X0Weighting(), reference_size=2)
    >>> objective.prepare(len(data), lambda index: Batch(x=data[index], index=index))
    >>> batch = Batch(x=data, index=torch.arange(2))
    >>> objective(model, batch, torch.full((2,), 0.5), torch.randn(2, 2)).round(decimals=6)
    tensor([0., 0.])

    Args:
        weighting: ``w``.
        reference_size: samples drawn from the training set at each step, at most all of it (4096 in the paper for
            CIFAR-10); None takes the batch as its own reference.

    Raises:
        ValueError: if ``reference_size`` is not positive; when called, if it is given and ``prepare`` was not called or
            the batch does not say which samples it holds, or for a batch without clean data or noise of another
            shape.
    """

    @checked
    def __init__(self, weighting: Weighting, reference_size: PositiveInt | None = None) -> None:
        self.weighting = weighting
        self.reference_size = reference_size
        self._training_set: tuple[int, Callable[[Tensor], Batch]] | None = None
        self._all: Batch | None = None

    def prepare(self, size: int, fetch: Callable[[Tensor], Batch]) -> None:
        self._training_set = (size, fetch)
        self._all = None

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        noisy = perturb(model.schedule, batch, t, noise)
        if self.reference_size is None:
            # members are told apart by their place: a sample drawn twice counts twice
            own = torch.arange(len(noisy.x_0))
            batch = reference = Batch(x=noisy.x_0, cond=batch.cond, index=own)
        else:
            reference = self._draw(self.reference_size, noise)
        target = _posterior_mean(noisy, batch, reference)
        squared_error = mean_per_sample((model(noisy.x_t, noisy.t, batch.cond) - target) ** 2)
        return expand_to(self.weighting(noisy.alpha, noisy.sigma), squared_error) * squared_error

    def _draw(self, n: int, noise: Tensor) -> Batch:
        if self._training_set is None:
            raise ValueError(
                f"reference_size={n} takes samples of the training set, but prepare() was not called with it: "
                "call it, or set objective.reference_size=null to take the batch"
            )
        size, fetch = self._training_set
        if n < size:
            order = torch.randperm(size, generator=generator(noise_name(noise), "reference batch"))
            return _to(fetch(order[:n]), noise.device)
        if self._all is None:
            self._all = _to(fetch(torch.arange(size)), noise.device)
        return self._all


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(None if value is None else value.to(device, non_blocking=True) for value in batch))


@torch.no_grad()
def _posterior_mean(noisy: NoisyData, batch: Batch, reference: Batch) -> Tensor:
    """The average of each ``x_0`` and the reference, without that sample's own entry, given ``x_t``.

    Logits are those of ``x = alpha x_i + sigma z`` less a part that i does not change; they run to 1e8 and cancel, hence
    float64. The sums go over the reference in chunks with a running maximum, and begin with ``x_0`` itself.
    """
    if reference.x is None or reference.index is None or batch.index is None:
        raise ValueError(
            "the batch or the reference does not say which samples it holds (index): use a data set that does, or "
            "set objective.reference_size=null"
        )
    x_0, x_t = noisy.x_0.flatten(1).double(), noisy.x_t.flatten(1).double()
    alpha, sigma = (expand_to(c, x_t) for c in (noisy.alpha, noisy.sigma))
    own = batch.index.to(x_t.device)[:, None]
    peak = alpha * ((x_t * x_0).sum(1, keepdim=True) - 0.5 * alpha * (x_0**2).sum(1, keepdim=True)) / sigma**2
    total, average = torch.ones_like(peak), x_0
    for start in range(0, len(reference.x), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        images = reference.x[chunk].flatten(1).double()
        logits = alpha * (x_t @ images.T - 0.5 * alpha * (images**2).sum(1)) / sigma**2
        excluded = own == reference.index[chunk].to(x_t.device)
        if batch.cond is not None and reference.cond is not None:
            excluded = excluded | (batch.cond[:, None] != reference.cond[chunk])
        logits = logits.masked_fill(excluded, -math.inf)
        new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
        rescale, weights = (peak - new_peak).exp(), (logits - new_peak).exp()
        total = rescale * total + weights.sum(1, keepdim=True)
        average = rescale * average + weights @ images
        peak = new_peak
    return (average / total).reshape(noisy.x_0.shape).to(noisy.x_0.dtype)
