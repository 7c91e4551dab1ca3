"""Muon: steps of momentum whose singular values are all made one."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, ProbabilityBelowOne

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that brings singular values in (0, 1] near 1 in few rounds; it does not converge to 1 but to 0.7..1.2."""


def orthogonalised(matrix: Tensor, rounds: int = 5) -> Tensor:
    r"""The matrix with its singular values moved near 1: Newton-Schulz iteration by an odd quintic.

    With :math:`X_0 = M / \lVert M \rVert_F = U S V^T` each round is :math:`X \leftarrow a X + (b A + c A^2) X`,
    :math:`A = X X^T`, hence :math:`U\,p(p(\dots p(S)))\,V^T` with :math:`p(s) = a s + b s^3 + c s^5`.

    >>> q, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    >>> near = orthogonalised(3 * q)
    >>> float((near @ near.T - torch.eye(4)).abs().max()) < 0.5
    True

    Args:
        matrix: ``[..., n, m]``.
        rounds: of the iteration.
    """
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(Optimizer):
    """Orthogonalised Nesterov momentum for matrices, Adam for all else, one learning rate for both.

    A convolution's kernel ``[out, in, *]`` is the matrix ``[out, in * ...]``. Its step is ``lr 0.2 sqrt(max(n, m))`` times
    the orthogonalised momentum, whose entries then have the root mean square that Adam's have. Vectors, and matrices with
    fewer than ``smallest`` rows or columns such as a network's last convolution, take Adam's steps.

    References: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon; J. Liu et al., "Muon is Scalable for LLM Training", 2025,
    https://arxiv.org/abs/2502.16982, equation (4).

    >>> weight = torch.nn.Parameter(torch.zeros(16, 32))
    >>> optimizer = Muon([weight], lr=0.1)
    >>> weight.grad = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    >>> _ = optimizer.step()
    >>> round(weight.square().mean().sqrt().item(), 2)  # near 0.2 lr, as sqrt(16 / (16 x 32)) sqrt(32) = 1
    0.02

    Args:
        params: the parameters, as for any optimiser of torch.
        lr: learning rate.
        momentum: of the gradient, for matrices.
        betas: Adam's decay rates of the gradient and its square.
        eps: Adam's.
        weight_decay: share of a weight that a step takes away, in units of the learning rate.
        smallest: rows and columns that a matrix has at least.

    Raises:
        ValueError: an argument is outside its range.
    """

    @checked
    def __init__(
        self,
        params: Iterable[Any],
        lr: Annotated[PositiveFloat, "as for Adam"] = 1e-3,
        momentum: ProbabilityBelowOne = 0.95,
        betas: tuple[ProbabilityBelowOne, ProbabilityBelowOne] = (0.9, 0.999),
        eps: PositiveFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.0,
        smallest: PositiveInt = 16,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "smallest": smallest,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; ``closure`` is evaluated first, as torch's optimisers do."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"]:
                torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
            matrices = [p for p in trained if _smaller_side(p) >= group["smallest"]]
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in matrices:
                by_shape.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for same in by_shape.values():
                self._muon(same, group)
            others = [p for p in trained if _smaller_side(p) < group["smallest"]]
            if others:
                self._adam(others, group)
        return loss

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """A step of matrices of one shape, orthogonalised together."""
        moved = []
        for p in parameters:
            assert p.grad is not None
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            moved.append(torch.lerp(p.grad, momentum, group["momentum"]).flatten(1))
        steps = orthogonalised(torch.stack(moved))
        size = 0.2 * max(steps.shape[1:]) ** 0.5
        for p, step in zip(parameters, steps):
            p.add_(step.view(p.shape), alpha=-group["lr"] * size)

    def _adam(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for p in parameters:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - first)
            state["square"].lerp_(p.grad.square(), 1 - second)
            root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
            p.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first ** state["step"]))


def _smaller_side(parameter: Tensor) -> int:
    return min(parameter.shape[0], parameter[0].numel()) if parameter.dim() > 1 else 0
