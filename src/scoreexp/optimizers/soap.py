r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

For a weight :math:`W \in R^{m \times n}` with gradient G and orthogonal bases Q of each side,

.. math:: L \leftarrow \beta_2 L + (1 - \beta_2) G G^T, \quad R \leftarrow \beta_2 R + (1 - \beta_2) G^T G, \quad
          M \leftarrow \beta_1 M + (1 - \beta_1) G,

.. math:: V \leftarrow \beta_2 V + (1 - \beta_2) (Q_L^T G Q_R)^2, \qquad
          W \leftarrow W - \eta\, Q_L \frac{\hat M'}{\sqrt{\hat V} + \epsilon} Q_R^T, \qquad M' = Q_L^T M Q_R,

with Adam's bias corrections (hats). Every few steps the bases follow L and R by one step of the power iteration,
:math:`Q \leftarrow \mathrm{qr}(L Q)`, its columns in descending order of :math:`q^T L q`. A kernel has a basis for each of
its sides (outputs, inputs, rows, columns); vectors and sides longer than a limit have none, and a weight without any basis
is Adam's.

Reference: N. Vyas, D. Morwani, R. Zhao, I. Shapira, D. Brandfonbrener, L. Janson, S. Kakade, "SOAP: Improving and
Stabilizing Shampoo using Adam", 2024, https://arxiv.org/abs/2409.11321, algorithm 3.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, ProbabilityBelowOne
from scoreexp.optimizers.closure import evaluated


class SOAP(torch.optim.Optimizer):
    """Adam in a slowly turning eigenbasis.

    The first gradient of a weight with a basis only gives that basis, and does not move it: in the eigenbasis of
    its own gradient all that is not rounding lies on the diagonal, and Adam would step by the signs of the rounding.

    >>> layer = nn.Linear(3, 2)
    >>> optimizer = SOAP(layer.parameters(), lr=0.1)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     layer(torch.eye(3)).square().sum().backward()
    ...     _ = optimizer.step()
    >>> [tuple(q.shape) for q in optimizer.state[layer.weight]["bases"]]
    [(2, 2), (3, 3)]

    Args:
        params: parameters to train.
        lr: eta.
        betas: of the means of the gradient and of its squares.
        eps: added to the root.
        weight_decay: share of the learning rate that pulls weights towards 0.
        frequency: steps between two updates of the bases; one costs about the cube of each side.
        longest_side: longer sides have no basis.

    Raises:
        ValueError: if an argument is outside its domain.
    """

    @checked
    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: PositiveFloat = 3e-3,
        betas: tuple[ProbabilityBelowOne, ProbabilityBelowOne] = (0.95, 0.95),
        eps: PositiveFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.0,
        frequency: PositiveInt = 10,
        longest_side: PositiveInt = 1024,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "frequency": frequency, "longest_side": longest_side})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)
        return loss

    def _move(self, p: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            has_basis = [1 < side <= group["longest_side"] and p.ndim > 1 for side in p.shape]
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["covariances"] = [
                (1 - beta2) * _outer(gradient, i) if yes else None for i, yes in enumerate(has_basis)
            ]
            state["bases"] = [
                None if c is None else torch.linalg.eigh(c)[1].flip(1) for c in state["covariances"]
            ]
            if any(has_basis):
                return
        state["step"] += 1
        covariances, bases = state["covariances"], state["bases"]
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        turned = rotated(gradient, bases)
        square = state["square"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
        root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        update = rotated(rotated(mean, bases) / root, bases, back=True)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] / (1 - beta1 ** state["step"]))
        for i, covariance in enumerate(covariances):
            if covariance is not None:
                covariance.lerp_(_outer(gradient, i), 1 - beta2)
                if state["step"] % group["frequency"] == 0:
                    # the largest first: a column of an empty direction is rounding, which the others must not follow
                    image = covariance @ bases[i]
                    order = (bases[i] * image).sum(0).argsort(descending=True)
                    bases[i] = torch.linalg.qr(image[:, order])[0]
                    square.copy_(square.index_select(i, order))


def rotated(weight: Tensor, bases: Sequence[Tensor | None], back: bool = False) -> Tensor:
    """Each side of ``weight`` in the basis of it, or ``back`` from there; None leaves a side as it is.

    >>> turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> rotated(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), [turn, None])
    tensor([[ 4.,  5.,  6.],
            [-1., -2., -3.]])
    """
    for basis in bases:  # each product takes the first side off and puts its image last
        last = weight.movedim(0, -1)
        weight = last if basis is None else last @ (basis.T if back else basis)
    return weight


def _outer(gradient: Tensor, side: int) -> Tensor:
    """``G G^T`` with ``side`` for rows and all others for columns."""
    matrix = gradient.movedim(side, 0).flatten(1)
    return matrix @ matrix.T
