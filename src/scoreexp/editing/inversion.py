r"""DDPM inversion: the noise maps with which ancestral sampling gives a chosen image.

1. Each state is drawn from the forward process by itself, :math:`x_t = \alpha_t x_0 + \sigma_t z'_t` with independent
   :math:`z'_t`, not along one path;
2. the noise map of each step is what the chain would have had to draw,
   :math:`z_t = (x_s - \mu_t(x_t)) / \sqrt{v_t}`, with mean and variance of DDPM's step;
3. after the last time, :math:`z_0 = x_0 - D(x_{t_N})` is what the final denoising leaves.

The same chain with these maps ends at :math:`x_0`. Because neighbouring states have independent noise, the maps have a
standard deviation above 1 and neighbours are negatively correlated: they hold the structure of the image. With another
label, guidance or altered maps the chain ends at an edited image.

Reference: I. Huberman-Spiegelglas, V. Kulikov, T. Michaeli, "An Edit Friendly DDPM Noise Space: Inversion and
Manipulations", 2024, https://arxiv.org/abs/2304.06140.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.editing.base import Editor
from scoreexp.editing.image import require_editable
from scoreexp.samplers import TimeGrid
from scoreexp.samplers.base import batch_of, falling_noise_levels
from scoreexp.samplers.ddpm import posterior_coefficients


class Inversion(NamedTuple):
    """The state and the noise maps that give an image again.

    Attributes:
        x_t: the first state ``[B, *]``.
        maps: ``z`` of each step ``[N - 1, B, *]``, first to last.
        rest: what the final denoising leaves ``[B, *]``.
        times: those visited ``[N]``, float64.
    """

    x_t: Tensor
    maps: Tensor
    rest: Tensor
    times: Tensor


class DDPMInversion(Editor):
    """Inversion of an image and the replay of the chain.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), VP())
    >>> editing, x_0 = DDPMInversion(UniformGrid(20)), torch.tensor([[0.4, -0.2]], dtype=torch.float64)
    >>> inversion = editing.invert(model, x_0, streams=ImageStreams([0]))
    >>> bool((editing.replay(model, inversion) - x_0).abs().max() < 1e-12)
    True

    Args:
        grid: the times visited, one evaluation each, in ``invert`` and again in ``replay``.
        t_start: the first time; the schedule's ``t_max`` by default. From an earlier one less of the image may change.
    """

    inputs: ClassVar[int] = 1

    @checked
    def __init__(self, grid: TimeGrid, t_start: float | None = None) -> None:
        self.grid = grid
        self.t_start = t_start

    @torch.no_grad()
    def invert(
        self, model: DenoiserBase, x_0: Tensor, *, streams: ImageStreams, cond: Tensor | None = None
    ) -> Inversion:
        """The noise maps of ``x_0 [B, *]``, in its dtype; float64 gives it back to 1e-12, float32 to about 1e-5.

        Raises:
            ValueError: the image has another shape than the model's samples or is outside [-1, 1], or the schedule's noise
                level does not fall along the grid.
        """
        require_editable(x_0, model)
        begun, schedule = model.begin(), model.schedule
        times = self.grid(schedule, t_start=self.t_start)
        falling_noise_levels(schedule, times)
        states = [
            alpha * x_0 + sigma * streams.normal(x_0) for alpha, sigma in map(schedule.at, times.tolist())
        ]
        maps = [
            (x_s - mean) / std
            for (x_t, x_s), (t, s) in zip(pairwise(states), pairwise(times.tolist()), strict=True)
            for mean, std in [_step(begun, x_t, t, s, cond)]
        ]
        last = begun(states[-1], batch_of(times[-1].item(), x_0), cond)
        stacked = torch.stack(maps) if maps else x_0.new_empty(0, *x_0.shape)
        return Inversion(states[0], stacked, x_0 - last, times)

    @torch.no_grad()
    def replay(self, model: DenoiserBase, inversion: Inversion, *, cond: Tensor | None = None) -> Tensor:
        """The image to which the chain leads with these maps, ``[B, *]``: the inverted one if nothing else was changed."""
        begun, x_t = model.begin(), inversion.x_t
        times = inversion.times.tolist()
        for (t, s), z in zip(pairwise(times), inversion.maps, strict=True):
            mean, std = _step(begun, x_t, t, s, cond)
            x_t = mean + std * z
        return begun(x_t, batch_of(times[-1], x_t), cond) + inversion.rest

    def strip(
        self,
        model: DenoiserBase,
        images: Sequence[Tensor],
        *,
        streams: ImageStreams,
        cond: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """The image as it comes back with its own label, and with the one that is wanted, ``[2, B, *]``."""
        (x_0,) = images
        inversion = self.invert(model, x_0, streams=streams, cond=cond)
        wanted = cond if target is None else target
        return torch.stack([self.replay(model, inversion, cond=label) for label in (cond, wanted)])


def _step(model: DenoiserBase, x_t: Tensor, t: float, s: float, cond: Tensor | None) -> tuple[Tensor, float]:
    """Mean and standard deviation of DDPM's step from t to s, with the variance of the posterior."""
    of_x_t, of_x0, beta = posterior_coefficients(model.schedule, t, s)
    std = math.sqrt(beta) * model.schedule.at(s)[1] / model.schedule.at(t)[1]
    return of_x_t * x_t + of_x0 * model(x_t, batch_of(t, x_t), cond), std
