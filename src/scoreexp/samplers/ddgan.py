"""Sampling from a denoising diffusion GAN, in two to eight evaluations."""

from typing import Any

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase, Wrapper
from scoreexp.samplers.ddpm import DDPM
from scoreexp.samplers.grids import DiscreteGrid


class _Drawing(Wrapper):
    """The model with a fresh latent for each call and sample."""

    def __init__(self, model: DenoiserBase, streams: ImageStreams) -> None:
        super().__init__(model)
        self.streams = streams

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        latent = self.streams.normal(x_t.new_empty(len(x_t), self.latent_channels))
        return self.model(x_t, t, latent)


class DDGAN(DDPM):
    r"""Ancestral sampling where the model draws :math:`x_0` instead of giving its mean, on T times.

    .. math:: x_0' = G(x_t, z, t), \quad z \sim N(0, I), \qquad x_s \sim q(x_s | x_t, x_0'), \quad t = t_{max} n / T, \quad
              s = t_{max} (n - 1) / T

    and the last :math:`x_0'` is the sample. The latents come from the streams, so a seed names a sample. For a denoiser
    without latent it is ``DDPM`` on the same T times, whose steps are Gaussian: the baseline.

    Reference: Z. Xiao, K. Kreis, A. Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs",
    2022, https://arxiv.org/abs/2112.07804.

    >>> from functools import partial
    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.Generator(network=partial(se.networks.MLP, width=16), event_shape=(2,))
    >>> model = se.denoisers.Denoiser(network, se.denoisers.X0Prediction(), se.schedules.VP())
    >>> se.samplers.draw(model, DDGAN(steps=4), seeds=[0, 1]).nfe
    4

    Args:
        steps: T, that of training; 4 in the paper.

    Raises:
        UserError: (on a call) the model was trained for other times.
        ValueError: (on a call) the schedule's noise level does not fall along the grid.
    """

    @checked
    def __init__(self, steps: PositiveInt = 4) -> None:
        super().__init__(DiscreteGrid(steps, steps))
        self.steps = steps

    def asked(self, model: DenoiserBase, streams: ImageStreams) -> DenoiserBase:
        return _Drawing(model, streams) if model.latent_channels else model

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> Any:
        trained = (model.record.get("config", {}).get("time_law") or {}).get("steps")
        if model.latent_channels and trained:
            known = DiscreteGrid(trained, trained)(model.schedule)[-len(times) :]
            if known.shape != times.shape or not torch.allclose(known, times):
                shown = ", ".join(f"{t:.3g}" for t in times[:8].tolist())
                raise UserError(
                    f"the times {shown} are not those of the {trained} steps that the generator was trained for: set "
                    f"sampler=ddgan sampler.steps={trained}, and start from noise"
                )
        return super().init_state(model, x, times)
