"""The states that samplers start from."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoreexp.core.errors import UserError
from scoreexp.core.ranges import of_255
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.schedules import Schedule


def start_from_prior(
    model: DenoiserBase,
    event_shape: Sequence[int],
    streams: ImageStreams,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``x_T ~ N(0, prior_std^2 I)``, the state at ``t_max``.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> se.samplers.start_from_prior(model, (2,), ImageStreams([0, 1, 2])).shape
    torch.Size([3, 2])

    Args:
        model: whose schedule gives ``prior_std``.
        event_shape: shape ``*`` of one sample.
        streams: one random stream per sample.
        dtype: of the result.
        device: of the result.

    Returns:
        ``[B, *]`` with ``B = len(streams)``.
    """
    like = torch.empty(len(streams), *event_shape, dtype=dtype, device=device)
    return model.schedule.prior_std * streams.normal(like)


def start_from_observation(schedule: Schedule, y: Tensor, sigma: float) -> tuple[Tensor, float]:
    r"""The state and time of an observation ``y = x_0 + sigma z``.

    At ``t*`` with ``sigma(t*) / alpha(t*) = sigma`` the marginal is ``x_t = alpha(t*) (x_0 + sigma z)``, so
    ``alpha(t*) y`` is a draw of it and a reverse chain from there draws from the posterior of ``x_0`` given
    ``y``.

    >>> import torch
    >>> import scoreexp as se
    >>> se.samplers.start_from_observation(se.schedules.EDM(), torch.ones(1, 2), sigma=0.5)
    (tensor([[1., 1.]]), 0.5)

    Args:
        schedule: the noise schedule.
        y: noisy data ``[B, *]`` in the [-1, 1] range (values beyond it are kept).
        sigma: standard deviation of its noise in units of the [-1, 1] range, twice the figure of the [0, 1]
            range.

    Returns:
        ``x_t [B, *]`` and ``t*``.

    Raises:
        UserError: ``sigma`` is outside the schedule's range of noise levels.
    """
    low, high = schedule.sigma_range
    if not (math.isfinite(sigma) and low <= sigma <= high):
        raise UserError(
            f"sigma={sigma / 2:.6g} in units of [0, 1] ({sigma:.6g} in those of the model, [-1, 1]) is outside the noise "
            f"levels of the {type(schedule).__name__} schedule: choose one in units of [0, 1] from {low / 2:.3g} to "
            f"{high / 2:.3g}{_of_255(sigma / 2, high / 2)}"
        )
    t = schedule.t_of_sigma(torch.tensor(sigma, dtype=torch.float64)).item()
    return schedule.at(t)[0] * y, t


def _of_255(level: float, highest: float) -> str:
    """What is meant by a level that looks like one of 255."""
    return f" ({of_255(level)})" if 1 < level <= 255 * highest else ""
