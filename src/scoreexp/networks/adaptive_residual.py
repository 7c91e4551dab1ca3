"""A network around another that predicts the clean image in two ways and chooses between them at each pixel."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.types import PositiveInt


class AdaptiveResidual(nn.Module):
    r"""ExposureDiffusion's adaptive residual layer: the clean image itself, or what is missing in the state.

    .. math:: \hat x_0 = m \odot a + (1 - m) \odot (x_t / \alpha + r), \qquad m = \mathrm{sigmoid}(l),

    where the inner network gives the image ``a``, the residual ``r`` and one channel of logits ``l``. A state that is well
    exposed already is best kept, with a small residual; a dark one is best replaced. The mask is learned for each pixel and,
    since the network knows the noise level, for each step. At its start, with outputs of 0, ``x0_hat`` is half the state.

    This is the output of ``precond=x0``, whose scaled input ``x`` has the state as
    :math:`x_t / \alpha = x \sqrt{1 + (\sigma / \alpha)^2}`; other preconditionings would not give the layer its meaning.
    The authors' program clips both predictions to the range of images, which stops their gradients there and is left out.

    Reference: Y. Wang, Y. Yu, W. Yang, L. Guo, L.-P. Chau, A. Kot, B. Wen, "ExposureDiffusion: Learning to Expose for
    Low-light Image Enhancement", 2023, https://arxiv.org/abs/2307.07710.

    >>> from functools import partial
    >>> from scoreexp.networks import UNet
    >>> network = AdaptiveResidual(network=partial(UNet, channels=16), event_shape=(3, 8, 8))
    >>> network(torch.ones(2, 3, 8, 8), torch.full((2,), -2.0)).unique().round(decimals=3)
    tensor([0.5000], grad_fn=<RoundBackward1>)

    Args:
        network: makes the inner network from the keywords ``event_shape`` and ``num_classes`` (a Hydra ``_partial_``); it is
            made for 2 C + 1 channels, and its input beyond C of them is 0.
        event_shape: shape (C, H, W) of one image.
        num_classes: passed on.

    Raises:
        ValueError: ``event_shape`` is not that of an image.
    """

    @checked
    def __init__(
        self,
        *,
        network: Callable[..., nn.Module],
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(kind_of(tuple(event_shape)), Images):
            raise ValueError(f"event_shape={tuple(event_shape)}: AdaptiveResidual is for images (C, H, W)")
        channels, *sides = event_shape
        self.network = network(event_shape=(2 * channels + 1, *sides), num_classes=num_classes)
        self.downsampling_factor: Any = getattr(self.network, "downsampling_factor", 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]``, ``c_noise[B]``, labels ``[B]`` or None -> ``[B, C, H, W]``."""
        channels = x.shape[1]
        out = self.network(F.pad(x, (0, 0, 0, 0, 0, channels + 1)), c_noise, cond)
        image, residual, logits = out.split((channels, channels, 1), dim=1)
        level = (4 * c_noise).exp()[:, None, None, None]  # sigma / alpha
        state = x * torch.hypot(level, torch.ones_like(level)).to(x.dtype)
        mask = logits.sigmoid()
        return mask * image + (1 - mask) * (state + residual)
