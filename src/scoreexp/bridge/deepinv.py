"""Between deepinv's denoisers ``D(x, sigma)`` of images in [0, 1] and ours."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_model, to_model, to_unit
from scoreexp.core.types import FinitePositiveFloat
from scoreexp.denoisers import DenoiserBase
from scoreexp.schedules import EDM


class _ForDeepinv(nn.Module):
    """``D(x, sigma)`` of one of our models."""

    def __init__(self, model: DenoiserBase, label: int | None) -> None:
        super().__init__()
        if isinstance(model, nn.Module):
            self.model = model  # its weights move with this module
        else:
            self.__dict__["model"] = model
        self.label = label

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: object) -> Tensor:
        schedule = self.model.schedule
        level = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").flatten()
        if level.numel() not in (1, len(x)):
            raise ValueError(
                f"sigma has {level.numel()} values for {len(x)} images: give one, or one for each"
            )
        t = schedule.t_of_sigma(sigma_to_model(1.0) * level.expand(len(x)))
        alpha = schedule.alpha(t).to(x)[(...,) + (None,) * (x.ndim - 1)]
        cond = None if self.label is None else torch.full((len(x),), self.label, device=x.device)
        return to_unit(self.model(alpha * to_model(x), t, cond))


class _FromDeepinv(DenoiserBase):
    """E[x_0 | x_t] by a denoiser of deepinv."""

    def __init__(
        self, denoiser: Callable[..., Tensor], schedule: EDM, event_shape: tuple[int, ...] | None
    ) -> None:
        self.denoiser, self.schedule, self.event_shape = denoiser, schedule, event_shape

    @property
    def device(self) -> torch.device:
        parameters = self.denoiser.parameters() if isinstance(self.denoiser, nn.Module) else iter(())
        return next((parameter.device for parameter in parameters), torch.device("cpu"))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is not None:
            raise ValueError(
                "cond was given, but a denoiser of deepinv has no classes: call it with cond=None"
            )
        sigma = (t / sigma_to_model(1.0)).to(x_t).expand(len(x_t))
        return to_model(self.denoiser(to_unit(x_t), sigma))


@checked
def as_deepinv(model: DenoiserBase, label: int | None = None) -> nn.Module:
    """A module ``D(x, sigma)`` for deepinv's priors, such as ``deepinv.optim.PnP`` and ``ScorePrior``.

    x is in [0, 1] apart from noise of standard deviation sigma in the same units, a number or one for each image; so is the
    result, the posterior mean. deepinv itself is not needed to make it.

    Reference: J. Tachella et al., "DeepInverse: A Python package for solving imaging inverse problems with deep learning",
    2025, https://arxiv.org/abs/2505.20160.

    >>> import scoreexp as se
    >>> prior = se.oracles.Gaussian(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    >>> denoise = as_deepinv(se.denoisers.OracleDenoiser(prior, se.schedules.VP()))
    >>> denoise(torch.full((1, 1, 8, 8), 1.0), 0.5).mean()  # 1 + 1 / (1 + (2 sigma)^2) of 2
    tensor(0.7500)

    Args:
        model: a denoiser of images in [-1, 1].
        label: class of all images, for a model with classes.

    Raises:
        ValueError: on a call, a noise level that the model does not know.
    """
    return _ForDeepinv(model, label)


@checked
def from_deepinv(
    denoiser: Callable[..., Tensor],
    sigma_min: FinitePositiveFloat = 0.002,
    sigma_max: FinitePositiveFloat = 1.0,
    event_shape: tuple[int, ...] | None = None,
) -> DenoiserBase:
    """A denoiser of deepinv, or any ``D(x, sigma)`` of images in [0, 1], as one of ours.

    >>> model = from_deepinv(lambda x, sigma: x - sigma[:, None])
    >>> model(torch.zeros(1, 1), torch.tensor([0.5]))  # (0 + 1) / 2 - 0.25, in [-1, 1]
    tensor([[-0.5000]])

    Args:
        denoiser: ``D(x[B, C, H, W], sigma[B])``.
        sigma_min: smallest noise level that it knows, in units of [0, 1].
        sigma_max: largest one.
        event_shape: (C, H, W), needed to draw samples.
    """
    schedule = EDM(sigma_to_model(sigma_min), sigma_to_model(sigma_max))
    return _FromDeepinv(denoiser, schedule, event_shape)
