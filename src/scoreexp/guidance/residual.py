r"""Residual classifier-free guidance: one call without label for a whole trajectory, or none.

The noise without label is taken from an image ``x_v`` that stands for the data, instead of from the network:

.. math:: e_v = \frac{x_t - \alpha_t x_v}{\sigma_t}, \qquad
          e = \delta e_v + w\,(\hat\epsilon(x_t, c) - \delta e_v) .

``x_v`` is the estimate without label at the first time (one call more), or an image that is given, such as the one that is
being changed (no call). For ``delta = 1`` the guided estimate is ``x_v + w (D(x_t, c) - x_v)``.

Reference: A. Kodaira, C. Xu, T. Hazama, T. Yoshimoto, K. Ohno, S. Mitsuhori, S. Sugano, H. Cho, Z. Liu, M. Tomizuka,
K. Keutzer, "StreamDiffusion: A Pipeline-level Solution for Real-time Interactive Generation", 2023,
https://arxiv.org/abs/2312.12491, section 3.2.
"""

from typing import Annotated

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.denoisers import DenoiserBase
from scoreexp.denoisers.denoiser import eps_from_x0, x0_from_eps
from scoreexp.guidance.base import LabelGuidance, Trajectory


class ResidualCFG(LabelGuidance):
    """Guidance away from the first estimate without label, or from an image; outside of a trajectory classifier-free.

    >>> import torch
    >>> from scoreexp.denoisers import ConditionalOracle
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import DDIM, UniformGrid, draw
    >>> from scoreexp.schedules import VP
    >>> classes = [Gaussian(torch.full((2,), mean), torch.full((2,), 0.04)) for mean in (-0.5, 0.5)]
    >>> model = ConditionalOracle(classes, [0.5, 0.5], VP())
    >>> draw(ResidualCFG(model, weight=1.2), DDIM(UniformGrid(20)), [0], cond=torch.tensor([1])).nfe
    21

    Args:
        model: a class-conditional model whose null label was trained.
        weight: ``w``, any finite number; the paper's are 1 to 2.
        delta: strength of the virtual noise, 1 or a little less.
        x_v: the image ``[B, *]`` or ``[*]`` in the range of the model; None for the first estimate.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
        ValueError: the weight is not finite, a call comes without labels, ``delta`` is not 1 on a schedule whose alpha
            reaches 0, or a sampler visits times in another order.
    """

    @checked
    def __init__(
        self,
        model: DenoiserBase,
        weight: float = 1.2,
        delta: Annotated[PositiveFloat, "1, or a little less"] = 1.0,
        x_v: Tensor | None = None,
    ) -> None:
        super().__init__(model, weight)
        if delta != 1 and self.schedule.at(self.schedule.t_max)[0] == 0:
            raise ValueError(
                f"delta={delta}: alpha reaches 0 in the {type(self.schedule).__name__} schedule, where noise says nothing "
                "of an image: choose delta=1"
            )
        self.delta = delta
        self.x_v = x_v

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.pushed(*self.branches(x_t, t, cond))

    def begin(self) -> DenoiserBase:
        return _Residual(self)

    def without(self, x_v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """What stands for the estimate without label."""
        if self.delta == 1:
            return x_v.expand_as(x_t)
        scales = self._scales(x_t, t)
        return x0_from_eps(self.delta * eps_from_x0(x_v, x_t, *scales), x_t, *scales)


class _Residual(Trajectory):
    """The image ``x_v`` of one trajectory."""

    def __init__(self, guidance: ResidualCFG) -> None:
        super().__init__(guidance)
        self.guidance = guidance
        self.x_v = guidance.x_v

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.follow(x_t, t)
        own = self.guidance
        if self.x_v is None:
            with_label, without = own.branches(x_t, t, cond)
            self.x_v = without.detach()
        else:
            with_label = own.model(x_t, t, own.labels(cond))
            without = own.without(self.x_v.to(x_t), x_t, t)
        return own.pushed(with_label, without)
