r"""Images between two: their noise is mixed at one noise level and denoised.

With the states :math:`l_k = \alpha x_k + n_k` of both images at a time t, and a share :math:`\lambda` of the second:

========================= ==================================================================================
``linear``                :math:`(1 - \lambda) l_1 + \lambda l_2`, whose noise is too weak in between
``slerp``                 :math:`(\sin((1 - \lambda) \theta)\, l_1 + \sin(\lambda \theta)\, l_2) / \sin\theta`, along the
                          great circle, with the angle :math:`\theta` between the two
``corrected``             :math:`a\, n_1 + b\, n_2 + \alpha ((1 - \lambda) x_1 + \lambda x_2) + g \sigma z`, with
                          :math:`(a, b) = \sqrt{1 - g^2}\, (\cos, \sin)(\pi \lambda / 2)`
========================= ==================================================================================

``corrected`` mixes signal and noise each by its own rule: the noise keeps variance :math:`\sigma^2` and the signals their
shares. States of images that are unlike the training data have entries that noise never has; they are clipped first,
:math:`|l| \le c \sqrt{\alpha^2 + \sigma^2}`. Without clipping and fresh noise all three are the
states themselves at the ends.

Reference: P. Zheng, Y. Zhang, Z. Fang, T. Liu, D. Lian, B. Han, "NoiseDiffusion: Correcting Noise for Image Interpolation
with Diffusion Models beyond Spherical Linear Interpolation", 2024, https://arxiv.org/abs/2403.08840, with weights of the
signal that sum to 1.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import (
    AtLeastTwo,
    FinitePositiveFloat,
    PositiveFloat,
    PositiveInt,
    ProbabilityBelowOne,
)
from scoreexp.denoisers import DenoiserBase
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.editing.base import Editor
from scoreexp.editing.image import require_editable
from scoreexp.samplers import LogSNRGrid, Sampler
from scoreexp.samplers.base import batch_of

How = Literal["linear", "slerp", "corrected"]


class Interpolation(Editor):
    """A strip of images from one to another.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), VP())
    >>> first, second = torch.tensor([[0.4, -0.2]]), torch.tensor([[-0.4, 0.1]])
    >>> between = Interpolation(DDIM(UniformGrid(200)), level=2.0)
    >>> strip = between(model, first, second, [0, 0.5, 1], streams=ImageStreams([0]))
    >>> strip.shape
    torch.Size([3, 1, 2])
    >>> bool((strip[0] - first).abs().max() < 0.02)
    True

    Args:
        sampler: from the mixed noise to the images; a deterministic one leads back to the two themselves at the ends.
        how: which formula.
        level: noise level ``sigma / alpha`` of the mixing, in units of the data: larger is freer.
        states: ``inverted``: along the probability flow, or ``noised`` afresh, which is cheaper and less faithful.
        fresh: share ``g`` of fresh noise of ``corrected``; each image of the strip has the same.
        clip: ``c`` of ``corrected``; 2 in the paper. None: no clipping.
        steps: of the inversion, one evaluation each.
        frames: images of ``strip``, both ends among them.

    Raises:
        ValueError: an argument is outside its range, or one of ``corrected`` alone is given to another formula.
    """

    inputs: ClassVar[int] = 2

    @checked
    def __init__(
        self,
        sampler: Sampler,
        how: How = "corrected",
        level: FinitePositiveFloat = 2.0,
        states: Literal["inverted", "noised"] = "inverted",
        fresh: ProbabilityBelowOne = 0.0,
        clip: Annotated[PositiveFloat, "2 in the paper"] | None = None,
        steps: PositiveInt = 100,
        frames: AtLeastTwo = 7,
    ) -> None:
        if how != "corrected" and (fresh or clip is not None):
            raise ValueError(
                f"how={how!r} takes no fresh noise and no clip: leave them out, or how='corrected'"
            )
        self.sampler, self.how, self.level, self.states = sampler, how, level, states
        self.fresh, self.clip, self.steps, self.frames = fresh, clip, steps, frames

    @torch.no_grad()
    def __call__(
        self,
        model: DenoiserBase,
        first: Tensor,
        second: Tensor,
        shares: Sequence[float],
        *,
        streams: ImageStreams,
        cond: Tensor | None = None,
    ) -> Tensor:
        """The images at the shares ``lambda`` of the second, ``[len(shares), B, *]``.

        Raises:
            ValueError: the images differ in shape or do not suit the model, a share is outside [0, 1], or the level outside
                the schedule's range.
        """
        require_editable(first, model, "the first image")
        require_editable(second, model, "the second image")
        if first.shape != second.shape:
            raise ValueError(
                f"images of shapes {tuple(first.shape)} and {tuple(second.shape)}: they must agree"
            )
        if not shares or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"shares={list(shares)}: give at least one, each in [0, 1]")
        t = model.schedule.t_of_sigma(torch.tensor(self.level, dtype=torch.float64)).item()
        alpha, sigma = model.schedule.at(t)
        if self.states == "inverted":
            l_1, l_2 = (encode(model, x, t, steps=self.steps, cond=cond) for x in (first, second))
        else:
            l_1, l_2 = (alpha * x + sigma * streams.normal(x) for x in (first, second))
        if self.clip is not None:
            edge = self.clip * math.hypot(alpha, sigma)
            l_1, l_2 = l_1.clamp(-edge, edge), l_2.clamp(-edge, edge)
        fresh = self.fresh * sigma * streams.normal(first) if self.fresh else None
        strip = []
        for share in shares:
            if self.how == "corrected":
                keep = math.sqrt(1 - self.fresh**2)
                a, b = keep * math.cos(math.pi / 2 * share), keep * math.sin(math.pi / 2 * share)
                signal = alpha * ((1 - share) * first + share * second)
                x_t = a * (l_1 - alpha * first) + b * (l_2 - alpha * second) + signal
                x_t = x_t if fresh is None else x_t + fresh
            else:
                x_t = mixed(l_1, l_2, share, self.how)
            again = ImageStreams(streams.seeds, "interpolation")  # the same noise for all of the strip
            strip.append(self.sampler(model, x_t, streams=again, t_start=t, cond=cond).x)
        return torch.stack(strip)

    def strip(
        self,
        model: DenoiserBase,
        images: Sequence[Tensor],
        *,
        streams: ImageStreams,
        cond: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """``frames`` images at even shares from the first to the second; of one class.

        Raises:
            ValueError: another label is wanted, or an image does not suit the model.
        """
        if target is not None:
            raise ValueError("interpolation keeps one label for the whole strip: leave to out")
        first, second = images
        shares = torch.linspace(0, 1, self.frames, dtype=torch.float64).tolist()
        return self(model, first, second, shares, streams=streams, cond=cond)


def mixed(l_1: Tensor, l_2: Tensor, share: float, how: Literal["linear", "slerp"]) -> Tensor:
    """Two states ``[B, *]`` as one; see the module's formulas."""
    if how == "linear":
        return (1 - share) * l_1 + share * l_2
    cosine = torch.cosine_similarity(l_1.flatten(1), l_2.flatten(1)).clamp(-1, 1)
    angle = cosine.arccos()
    straight = angle < 1e-4  # of parallel states the circle is a line
    angle = angle.where(~straight, 1.0)
    a, b = (torch.where(straight, line, (line * angle).sin() / angle.sin()) for line in (1 - share, share))
    return expand_to(a, l_1) * l_1 + expand_to(b, l_2) * l_2


@checked
@torch.no_grad()
def encode(
    model: DenoiserBase, x_0: Tensor, t: float, *, steps: PositiveInt = 100, cond: Tensor | None = None
) -> Tensor:
    """The state at time ``t`` from which the probability flow leads to ``x_0 [B, *]``: DDIM's steps, upwards.

    ``x_0`` is taken as the state at the smallest time divided by its ``alpha``; the error is of first order in the step.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> encode(model, torch.tensor([[0.5, -0.5]]), t=0.5).round(decimals=1)  # the flow of such data stands still
    tensor([[ 0.5000, -0.5000]])

    Args:
        model: the denoiser; put a network into evaluation mode first.
        x_0: clean data in the range of the model.
        t: the time, in the schedule's range.
        steps: one evaluation each.
        cond: class labels ``[B]``, or None.

    Raises:
        ValueError: the time is outside the schedule's range, or alpha is 0 there.
    """
    schedule = model.schedule
    if schedule.at(t)[0] == 0:
        raise ValueError(
            f"t={t:.6g}: alpha is 0, so no state says anything of the image: choose a smaller time"
        )
    times = LogSNRGrid(steps + 1)(schedule, t_start=t).flip(0).tolist()
    x_t = schedule.at(times[0])[0] * x_0
    for lower, higher in pairwise(times):
        x0_hat = model(x_t, batch_of(lower, x_t), cond)
        eps_hat = eps_from_x0(x0_hat, x_t, *schedule.at(lower))
        alpha, sigma = schedule.at(higher)
        x_t = alpha * x0_hat + sigma * eps_hat
    return x_t
