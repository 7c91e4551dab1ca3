r"""Objectives of blind-spot networks, for noise that is correlated between neighbouring pixels.

``f_b`` is the function of a network that is blind to the pixel itself, ``f`` that of the denoiser
(``networks.BlindSpot``).

**SDAP.** Each cell of ``p x p`` pixels is dealt out at random among ``p^2`` sub-images ``s_j``, and the loss is

.. math:: \frac{1}{p^2} \sum_j | f_b(s_j) - s_{j + 1} | ,

cyclic in ``j``: neighbours in ``s_j`` are ``p`` pixels apart on average, and the target is another pixel of the cell.

**Downsampled invariance.** With lattices of every ``p``-th pixel (``PD_p``), a random pixel of each ``q x q`` cell
(``sub``) and ``r`` rising from 0 to 1,

.. math:: | PD_p^{-1} f_b(PD_p y) - y |
          + r \Big[ |f(y) - y| + \mathtt{weight}\, |\mathrm{sub} f(y) - f_b(\mathrm{sub}\, y)| \Big] ,

where ``f_b`` of the last term is taken as it is. ``f`` sees the pixel itself and is held to what the blind function says of
the sub-sampled image, whose noise is independent.

Both are means over the pixels. Sub-sampling helps only where the signal is smoother than the stride times the length of the
noise's correlation; otherwise it takes away the neighbours that tell of a pixel.

References:
    Y. Pan, X. Liu, X. Liao, Y. Cao, C. Ren, "Random Sub-Samples Generation for Self-Supervised Real Image Denoising", 2023,
    https://arxiv.org/abs/2307.16825;
    Y. Jang, K. Lee, G. Park, S. Kim, N. I. Cho, "Self-supervised Image Denoising with Downsampled Invariance Loss and
    Conditional Blind-Spot Network", 2023, https://arxiv.org/abs/2304.09507.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.tensors import mean_per_sample
from scoreexp.core.types import AtLeastTwo, FiniteNonNegativeFloat, PositiveInt
from scoreexp.denoisers.denoiser import Denoiser, DenoiserBase
from scoreexp.networks.blind_spot import from_lattices, to_lattices
from scoreexp.objectives.noisy_images import OfNoisyImages, noisy_images

Blind = Callable[[Tensor, Tensor], Tensor]


class _BlindFunction(nn.Module):
    """The blind function of a network, in the place of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        blind: Tensor = self.network.blind(x, c_noise, cond)  # type: ignore[operator]
        return blind


def blind_function(model: DenoiserBase, name: str) -> Denoiser:
    """The denoiser whose network is the blind function of that of ``model``.

    Raises:
        ValueError: the network has none, or the model shows the pixel to itself all the same.
    """
    if not isinstance(model, Denoiser) or not hasattr(model.network, "blind"):
        network = type(getattr(model, "network", model)).__name__
        raise ValueError(
            f"{name} needs a blind-spot network, and {network} sees the pixel itself: set network=blind_spot"
        )
    skip = model.preconditioning(
        *model.schedule(torch.tensor([model.schedule.t_max], dtype=torch.float64))
    ).c_skip
    if float(skip) != 0:
        raise ValueError(
            f"{name}: {type(model.preconditioning).__name__} adds the pixel itself to what the blind-spot network says: set "
            "precond=x0"
        )
    return Denoiser(_BlindFunction(model.network), model.preconditioning, model.schedule)


def sub_images(y: Tensor, noise: Tensor, stride: int) -> Tensor:
    """The pixels of each ``stride x stride`` cell dealt out at random: ``[stride^2, B, C, H/stride, W/stride]``.

    The order in a cell is that of the first channel of ``noise``, of independent draws, so that all orders are equally
    likely. Rows and columns beyond the last cell are left out.

    >>> y = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> sub_images(y, torch.tensor([[[[0.3, 0.1], [0.4, 0.2]]]]), 2).flatten()
    tensor([2., 4., 1., 3.])
    """
    height, width = (n // stride * stride for n in y.shape[-2:])
    cells = pixel_unshuffle(y[..., :height, :width], stride).unflatten(1, (-1, stride**2))
    order = pixel_unshuffle(noise[:, :1, :height, :width], stride).argsort(1)[:, None]
    return cells.gather(2, order.expand_as(cells)).movedim(2, 0)


def _require_cells(y: Tensor, stride: int, window: int | None) -> None:
    """Refuse images with fewer than two cells a side.

    Raises:
        ValueError: names the stride and the remedy.
    """
    side = min(*y.shape[-2:], window or y.shape[-1])
    if side < 2 * stride:
        raise ValueError(
            f"{side} pixels hold no two cells of stride={stride} a side: give objective.stride={max(side // 2, 1)}, "
            "or larger images and windows"
        )


class SDAP(OfNoisyImages):
    """The loss of the sub-images, see the module's formula.

    >>> import scoreexp as se
    >>> network = se.networks.BlindSpot(event_shape=(1, 12, 12), channels=8, blocks=1)
    >>> model = Denoiser(network, se.denoisers.X0Prediction(), se.schedules.ConstantNoise(0.2))
    >>> x = torch.zeros(4, 1, 12, 12)
    >>> SDAP(stride=3)(model, Batch(x=x), torch.full((4,), 0.5), torch.randn_like(x)).shape
    torch.Size([4])

    Args:
        stride: ``p``, 5 for photographs of some megapixels.
        window: side in pixels of the random square of each batch that is used; None is the whole image.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the model is not blind, or the images are too small.
    """

    @checked
    def __init__(self, stride: AtLeastTwo = 5, window: PositiveInt | None = 160) -> None:
        super().__init__(window=window)
        self.stride = stride

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        blind = blind_function(model, "SDAP")
        y = noisy_images(batch)
        _require_cells(y, self.stride, self.window)
        y, order = self.in_window(y, noise, self.stride)
        parts = sub_images(y, order, self.stride)
        guess = blind(parts.flatten(0, 1), t.repeat(len(parts))).unflatten(0, parts.shape[:2])
        return (guess - parts.roll(-1, 0)).abs().transpose(0, 1).flatten(1).mean(1)


class DownsampledInvariance(OfNoisyImages):
    """C-BSN's loss, see the module's formula.

    >>> import scoreexp as se
    >>> network = se.networks.BlindSpot(event_shape=(1, 12, 12), channels=8, blocks=1, stride=1, centre=True)
    >>> model = Denoiser(network, se.denoisers.X0Prediction(), se.schedules.ConstantNoise(0.2))
    >>> x = torch.zeros(4, 1, 12, 12)
    >>> DownsampledInvariance(stride=3)(model, Batch(x=x), torch.full((4,), 0.5), torch.randn_like(x)).shape
    torch.Size([4])

    Args:
        stride: ``p`` of the blind loss.
        cell: ``q`` of the random pixels.
        weight: of the invariance, 2 in the paper.
        ramp: calls in training, which are steps, until ``r`` is 1.
        window: side in pixels of the random square of each batch that is used; None is the whole image.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the model has no blind function or its denoiser is blind
            too, or the images are too small.
    """

    @checked
    def __init__(
        self,
        stride: PositiveInt = 5,
        cell: AtLeastTwo = 2,
        weight: FiniteNonNegativeFloat = 2.0,
        ramp: PositiveInt = 1000,
        window: PositiveInt | None = 160,
    ) -> None:
        super().__init__(ramp, window)
        self.stride, self.cell, self.weight = stride, cell, weight

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        blind = blind_function(model, "DownsampledInvariance")
        if not getattr(model.network, "centre", False):  # type: ignore[attr-defined]
            raise ValueError(
                "DownsampledInvariance trains a denoiser that sees the pixel itself, and this network is blind to it: set "
                "network.centre=true network.stride=1"
            )
        y = noisy_images(batch)
        _require_cells(y, max(self.stride, self.cell), self.window)
        y, order = self.in_window(y, noise, self.stride)
        lattices = to_lattices(y, self.stride)
        guess = blind(lattices, t.repeat_interleave(self.stride**2))
        loss = mean_per_sample((from_lattices(guess, self.stride) - y).abs())
        if share := self.progress():
            whole = model(y, t)
            held = sub_images(torch.cat([y, whole], 1), order, self.cell)[0]
            with torch.no_grad():
                said = blind(held[:, : y.shape[1]], t)
            invariance = mean_per_sample((held[:, y.shape[1] :] - said).abs())
            loss = loss + share * (mean_per_sample((whole - y).abs()) + self.weight * invariance)
        return loss
