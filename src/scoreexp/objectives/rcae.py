r"""The reconstruction contractive auto-encoder: the noise of a denoising auto-encoder, in expectation.

With :math:`r(x) = D(\alpha x, t)` the reconstruction of clean data at the noise level :math:`s = \sigma / \alpha`,

.. math:: E\, |r(x) - x|^2 + s^2 \left\| \frac{\partial r}{\partial x} \right\|_F^2 .

Expanding :math:`E_z |r(x + s z) - x|^2`, the loss of the denoising auto-encoder, gives the same and
:math:`s^2 (r(x) - x) \cdot \Delta r(x)` and derivatives of higher order. For the best ``r``, for which :math:`r(x) - x` is
:math:`s^2` times a smooth function, the two losses differ by :math:`O(s^6)`, and for linear ``r`` not at all. So
:math:`(r(x) - x) / s^2` is the score of the data up to :math:`O(s^2)` by both.

Reference: G. Alain, Y. Bengio, "What Regularized Auto-Encoders Learn from the Data-Generating Distribution", 2014,
https://arxiv.org/abs/1211.4246, equation (2) and theorem 1.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective, noise_name, perturb


class ReconstructionContractive(Objective):
    """``loss = mean |r(x_0) - x_0|^2 + (s^2 / D) |dr / dx|_F^2``, see the module's formulas; for small noise levels.

    The squared norm is that of ``J^T v`` over random directions v with independent entries +1 or -1, which has its
    expectation, or exact. A step takes a backward pass through the model for each direction, and training its derivative,
    which a compiled network (``model.compile``) does not have.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.ones(2)), se.schedules.EDM())
    >>> x, t = torch.tensor([[1.0, -1.0]]), torch.tensor([0.5])
    >>> ReconstructionContractive(None)(model, Batch(x=x), t, torch.zeros(1, 2)).detach()  # 0.2^2 + 0.5^2 0.8^2
    tensor([0.2000])

    Args:
        projections: number of directions for each sample; None for the exact norm, D of them for samples of D entries.

    Raises:
        ValueError: if ``projections`` is not positive; when called, for a batch without clean data or other noise.
    """

    @checked
    def __init__(self, projections: PositiveInt | None = 1) -> None:
        self.projections = projections

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        x_0, _, t, alpha, sigma = perturb(model.schedule, batch, t, noise)
        x_t = (expand_to(alpha, x_0) * x_0).detach().requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            r = model(x_t, t, batch.cond)
            squared_norm = torch.zeros_like(mean_per_sample(r))
            for v in self._directions(noise):
                (gradient,) = torch.autograd.grad(r, x_t, v, create_graph=True)
                squared_norm = squared_norm + mean_per_sample(gradient**2)
            # s^2 |dr/dx|^2 = sigma^2 |dD/dx_t|^2
            return mean_per_sample((r - x_0) ** 2) + expand_to(sigma**2, squared_norm) * squared_norm

    def _directions(self, noise: Tensor) -> Tensor:
        """``v [K, B, *]`` whose ``sum_k v_k v_k^T`` is the identity, in expectation."""
        if self.projections is None:
            size = noise[0].numel()
            axes = torch.eye(size, device=noise.device, dtype=noise.dtype)
            return axes.reshape(size, 1, *noise.shape[1:]).expand(-1, len(noise), *noise.shape[1:])
        stream = generator(noise_name(noise), "projections of contraction", device=noise.device)
        signs = torch.empty(self.projections, *noise.shape, device=noise.device, dtype=noise.dtype)
        return (2 * signs.bernoulli_(0.5, generator=stream) - 1) / self.projections**0.5
