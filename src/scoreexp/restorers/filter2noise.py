r"""Filter2Noise: a bilateral filter whose widths a small attention network reads from the one noisy image.

.. math:: f(y)_i = \frac{\sum_j w_{ij} y_j}{\sum_j w_{ij}}, \qquad
          w_{ij} = \exp\!\Big(-\frac{\Delta_x^2}{2 s_x^2} - \frac{\Delta_y^2}{2 s_y^2} - \frac{|y_i - y_j|^2}{2 s_r^2}\Big),

over the pixels ``j`` of the image at most ``reach`` rows and columns away. The widths ``(s_x, s_y, s_r)`` are constant on
squares of 8 x 8 pixels, and come from two layers of attention between these squares. With the halves ``D_k`` of Zero-Shot
Noise2Noise, their shuffled copies ``e_k = E(D_k y)``, in each 2 x 2 block of which the two most similar pixels have changed
places, and the difference ``G`` of two wide Gaussian averages over 7 x 7 pixels, the loss is

.. math:: \tfrac13 \Big[ |f(e_1) - f(e_2)| + \sum_k |f(e_k) - D_k f(y)| + |D_1 f(y) - D_2 f(y)| \Big]
          + \mathtt{edges} \, \big| |G y| - |G f(y)| \big| ,

means over the pixels. Filters are applied ``stages`` times, each with widths of its own.

Reference: Y. Sun et al., "Filter2Noise: Interpretable Self-Supervised Single-Image Denoising for Low-Dose CT with
Attention-Guided Bilateral Filtering", 2025, https://arxiv.org/abs/2504.13519. There the width in value is in units of the
image; here it is in units of the noise, so that one start serves all noise levels.
"""

import itertools
import math
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.streams import generator
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.data.image_io import write_image
from scoreexp.denoisers import DenoiserBase
from scoreexp.networks.layers import start_as_usual
from scoreexp.observations import Observation
from scoreexp.restorers.per_image import Followed, PerImage
from scoreexp.restorers.tiling import mirror_to_multiple
from scoreexp.restorers.zs_n2n import diagonal_means
from scoreexp.system.atomic import atomic_write

PATCH = 8  # pixels a side of the squares in which the widths are constant
FEATURES = 8
NAMES = ("columns", "rows", "values")  # s_x, s_y, s_r
STRENGTH = 2.8  # standard deviations of the noise to which a width in value of 1 corresponds


def bilateral(y: Tensor, widths: Tensor, reach: int) -> Tensor:
    """The bilateral filter of the module's formula with widths for each pixel.

    >>> step = torch.tensor([[[[0.0, 0.0, 5.0, 5.0]]]])
    >>> bilateral(step, torch.ones(1, 3, 1, 4), reach=2).round(decimals=3)
    tensor([[[[0., 0., 5., 5.]]]])

    Args:
        y: images ``[B, C, H, W]``.
        widths: ``(s_x, s_y, s_r) [B, 3, H, W]``, the first two in pixels, the last in units of ``y``, all > 0.
        reach: rows and columns to which the weights reach.
    """
    (height, width), side = y.shape[-2:], 2 * reach + 1
    others = F.unfold(F.pad(y, [reach] * 4), side).unflatten(2, (height, width)).unflatten(1, (-1, side**2))
    inside = F.unfold(F.pad(torch.ones_like(y[:1, :1]), [reach] * 4), side).unflatten(2, (height, width))
    away = torch.arange(-reach, reach + 1, dtype=y.dtype, device=y.device).square()
    along, down = away.repeat(side)[:, None, None], away.repeat_interleave(side)[:, None, None]
    falls = 0.5 / widths.square()[:, :, None]
    logits = (
        -along * falls[:, 0] - down * falls[:, 1] - (others - y[:, :, None]).square().sum(1) * falls[:, 2]
    )
    weights = logits.masked_fill(inside == 0, -math.inf).softmax(1)
    return (weights[:, None] * others).sum(2)


def shuffled(x: Tensor) -> Tensor:
    """``x[B, C, H, W]``, H and W even, in each 2 x 2 block of which the two most similar pixels have changed places.

    >>> shuffled(torch.tensor([[[[1.0, 5.0], [9.0, 6.0]]]]))
    tensor([[[[1., 6.],
              [9., 5.]]]])
    """
    blocks = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4))  # [B, C, 4, H/2, W/2]
    pairs = list(itertools.combinations(range(4), 2))
    distances = torch.stack([(blocks[:, :, i] - blocks[:, :, j]).square().sum(1) for i, j in pairs], 1)
    swapped = torch.tensor(
        [[{i: j, j: i}.get(k, k) for k in range(4)] for i, j in pairs], device=x.device
    )  # [pair, place]
    places = swapped[distances.argmin(1)].movedim(-1, 1)  # [B, 4, H/2, W/2]
    return F.pixel_shuffle(blocks.gather(2, places[:, None].expand_as(blocks)).flatten(1, 2), 2)


class Widths(nn.Module):
    """``(s_x, s_y, s_r) [B, 3, H, W]`` of images with sides divisible by 8, from attention between their squares."""

    def __init__(self, channels: int, seed: int, stage: int) -> None:
        super().__init__()
        size = channels * PATCH**2
        self.features = nn.ModuleList(nn.Linear(size, FEATURES) for _ in range(3))
        self.widths = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(FEATURES), nn.Linear(FEATURES, 3)
        random = generator(seed, "filter2noise", stage)
        for layer in (*self.features, *self.widths, self.out):
            start_as_usual(layer, random)

    def forward(self, x: Tensor, sigma: float, reach: int) -> Tensor:
        rows, columns = (n // PATCH for n in x.shape[-2:])
        squares = F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)
        for layers in (self.features, self.widths):
            squares = F.scaled_dot_product_attention(*(layer(squares) for layer in layers))
        widths = F.softplus(self.out(self.norm(squares))).clamp(max=reach) + 1e-6
        widths = widths * widths.new_tensor([1, 1, STRENGTH * sigma * x.shape[1] ** 0.5])
        maps = widths.transpose(1, 2).unflatten(2, (rows, columns))
        return maps.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)


class Fitted(NamedTuple):
    """What ``Filter2Noise.fitted`` returns.

    Attributes:
        x: the filtered image ``[1, C, H, W]``.
        widths: ``(s_x, s_y, s_r)`` of each stage, ``[stages, 3, H, W]``, in pixels and in units of the image.
    """

    x: Tensor
    widths: Tensor


class Filter2Noise(PerImage):
    """See the module's formulas; about 2000 weights for each stage, no prior and no training set.

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> observation = Observation(torch.zeros(1, 1, 16, 16), Identity(), GaussianNoise(0.2))
    >>> Filter2Noise(steps=2)(observation, streams=ImageStreams([0])).x.shape
    torch.Size([1, 1, 16, 16])
    >>> Filter2Noise(steps=2).fitted(observation).widths.shape
    torch.Size([2, 3, 16, 16])

    Args:
        steps: of the optimiser at most (500 in the authors' program, at a tenth of the learning rate).
        stages: filters one after the other.
        reach: rows and columns to which the weights reach, and the largest width.
        edges: weight of the last term.
        lr: largest learning rate of AdamW, which rises to it in a third of the steps and falls again.
        tolerance: the fit is over when the estimate moves by less than this share of the noise's standard deviation within
            25 steps; 0 takes all steps.
        maps: folder into which the widths of each image are written, as pictures and as numbers; None writes none.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image under the identity.
        UserError: on a call, ``maps`` is a file.
        FloatingPointError: on a call, the loss is not finite.
    """

    method: ClassVar[str] = "Filter2Noise"

    @checked
    def __init__(
        self,
        steps: PositiveInt = 150,
        stages: PositiveInt = 2,
        reach: PositiveInt = 2,
        edges: NonNegativeFloat = 350.0,
        lr: PositiveFloat = 1e-2,
        tolerance: NonNegativeFloat = 0.01,
        maps: str | None = None,
    ) -> None:
        self.steps, self.stages, self.reach, self.edges = steps, stages, reach, edges
        self.lr, self.tolerance, self.maps = lr, tolerance, maps

    def fit(
        self, observation: Observation, model: DenoiserBase | None, seed: int, followed: Followed
    ) -> Tensor:
        folder = None if self.maps is None else Path(self.maps).expanduser()
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UserError(f"restorer.maps={self.maps} is a file: give a folder for the maps of the widths")
        x, widths = self._fit(observation, seed, followed)
        if folder is not None:
            write_maps(folder, widths)
        return x

    def fitted(self, observation: Observation, seed: int = 0) -> Fitted:
        """The filtered image and the widths of a single observed image, for looking at them."""
        with torch.enable_grad():
            return self._fit(observation, seed, lambda step, estimate: False)

    def _fit(self, observation: Observation, seed: int, followed: Followed) -> Fitted:
        y = observation.y
        sigma = float(observation.noise.variance(y.clamp(min=-1)).mean().sqrt())
        if sigma == 0:
            return Fitted(y.clone(), y.new_zeros(self.stages, 3, *y.shape[-2:]))
        height, width = y.shape[-2:]
        stages = nn.ModuleList(Widths(y.shape[1], seed, stage) for stage in range(self.stages)).to(y)
        optimizer = torch.optim.AdamW(stages.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=max(self.steps, 2))
        whole = mirror_to_multiple(y, 2 * PATCH)
        halves = [shuffled(half) for half in diagonal_means(whole)]
        difference = _DifferenceOfGaussians(y)

        def filtered(x: Tensor, scale: float = 1.0) -> Tensor:
            for stage in stages:
                x = bilateral(x, stage(x, scale * sigma, self.reach), self.reach)
            return x

        for step in range(1, self.steps + 1):
            first, second = (filtered(half, 0.5**0.5) for half in halves)
            estimate = filtered(whole)
            upper, lower = diagonal_means(estimate)
            loss = (
                F.l1_loss(first, second)
                + F.l1_loss(first, upper)
                + F.l1_loss(second, lower)
                + F.l1_loss(upper, lower)
            ) / 3 + self.edges * F.l1_loss(difference(whole).abs(), difference(estimate).abs())
            self.descend(optimizer, loss, step)
            schedule.step()
            if followed(step, estimate.detach()[..., :height, :width]):
                break
        with torch.no_grad():
            x, widths = whole, []
            for stage in stages:
                widths.append(stage(x, sigma, self.reach))
                x = bilateral(x, widths[-1], self.reach)
        return Fitted(x[..., :height, :width], torch.cat(widths)[..., :height, :width])


class _DifferenceOfGaussians:
    """``G``: the difference of the averages with Gaussian weights of standard deviations 9 and 10 over 7 x 7 pixels."""

    def __init__(self, like: Tensor) -> None:
        away = torch.arange(-3.0, 4.0).square()
        squares = away[:, None] + away
        narrow, wide = (torch.exp(-squares / (2 * s**2)) for s in (9.0, 10.0))
        self.kernel = (narrow / narrow.sum() - wide / wide.sum()).to(like).expand(like.shape[1], 1, 7, 7)

    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=3, groups=x.shape[1])


def write_maps(folder: Path, widths: Tensor) -> list[Path]:
    """Write the widths ``[stages, 3, H, W]`` of one image, under the first free number.

    ``000_widths.npy`` holds the numbers, ``000_stage1_rows_max2.5.png`` a picture in which white is the width in the name.
    """
    number = next(n for n in itertools.count() if not list(folder.glob(f"{n:03d}_*")))
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{number:03d}_widths.npy"]
    with atomic_write(made[0]) as temporary, open(temporary, "wb") as file:
        np.save(file, widths.cpu().numpy())
    for stage, maps in enumerate(widths, start=1):
        for name, values in zip(NAMES, maps, strict=True):
            largest = float(values.max())
            made.append(folder / f"{number:03d}_stage{stage}_{name}_max{largest:.3g}.png")
            write_image(made[-1], (values / max(largest, 1e-12))[..., None].float().cpu().numpy())
    return made
