"""DDIM after one more step, which gives the first state the mean of the data."""

from typing import Any

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import batch_of
from scoreexp.samplers.ddim import DDIM


class OneMoreStep(DDIM):
    r"""One more step before the first of DDIM, for schedules that leave something of the data at ``t_max``.

    The states of training at ``T = t_max`` have the mean :math:`\alpha_T E[x_0]`; samples start from noise without it, and
    keep the missing mean as a shift. From :math:`x = \sigma_T z`,

    .. math:: x_T = \alpha_T D(x, T) + \sigma_T z'

    with fresh noise z'. The paper trains a network for :math:`\hat x_0` at pure noise, whose best answer is the mean of the
    data (of the class); the model itself gives it up to a relative error of :math:`\alpha_T^2 \operatorname{Var}(x_0)`.
    The mean alone is repaired: the covariance of the start lacks :math:`\alpha_T^2 \operatorname{Cov}(x_0)` as before. For
    DDPM's betas, :math:`\alpha_T = 0.006`, nothing is to be seen; for the scaled-linear ones of Stable Diffusion, 0.068, and
    variance-exploding schedules of a small last level it is. One evaluation more; none and no change where :math:`\alpha_T`
    is 0, and from an earlier time than T.

    Reference: M. Hu, J. Zheng, C. Zheng, C. Wang, D. Tao, T.-J. Cham, "One More Step: A Versatile Plug-and-Play Module for
    Rectifying Diffusion Schedule Flaws and Enhancing Low-Frequency Controls", 2024, https://arxiv.org/abs/2311.15744.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import UniformGrid, draw
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.ones(2), torch.ones(2)), VP(beta_max=5.0))
    >>> draw(model, OneMoreStep(UniformGrid(20)), [0]).nfe
    21

    Args:
        grid: the times visited.
        eta: share of fresh noise of DDIM's steps, in [0, 1].
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.
    """

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        if state is None and t == model.schedule.t_max:
            alpha, sigma = model.schedule.at(t)
            if alpha > 0:
                x_t = alpha * model(x_t, batch_of(t, x_t)) + sigma * streams.normal(x_t)
        return super().step(model, x_t, t, s, "begun", streams)
