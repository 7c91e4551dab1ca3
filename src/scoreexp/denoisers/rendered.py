"""A denoiser of signals, seen as one of what an operator makes of them."""

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.denoisers.denoiser import DenoiserBase, Wrapper
from scoreexp.observations import LinearOperator


class Rendered(Wrapper):
    r"""``E[o | o_t] = A S`` with ``S = model(A^T o_t, t, cond)``: a forward model inside the denoiser.

    The diffusion runs on observations ``o = A S`` while the network states the signal S, which was never seen. Samplers
    draw ``o``; the signal of the last step is ``model(A^T o_t, t, cond)``.

    Reference: A. Tewari, T. Yin, G. Cazenavette, S. Rezchikov, J. Tenenbaum, F. Durand, W. Freeman, V. Sitzmann, "Diffusion
    with Forward Models: Solving Stochastic Inverse Problems Without Direct Supervision", 2023,
    https://arxiv.org/abs/2306.11719.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import Grayscale
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)), VP())
    >>> Rendered(model, Grayscale()).event_shape
    (1, 8, 8)

    Args:
        model: of signals.
        operator: ``A``.

    Raises:
        ValueError: the operator does not take the model's samples.
    """

    @checked
    def __init__(self, model: DenoiserBase, operator: LinearOperator) -> None:
        super().__init__(model)
        self.operator = operator
        if model.event_shape is not None:
            self.event_shape = operator.output_shape(model.event_shape)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.operator(self.model(self.operator.adjoint(x_t), t, cond))
