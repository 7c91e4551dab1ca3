r"""Muon: momentum whose update of every matrix is orthogonalised.

For a hidden weight :math:`W \in R^{m \times n}` (a convolution as :math:`m \times n k^2`) with gradient ``G``,

.. math:: M \leftarrow \mu M + (1 - \mu) G, \quad U = (1 - \mu) G + \mu M, \quad
          W \leftarrow W - \eta \sqrt{\max(1, m / n)}\; \mathrm{orth}(U),

where ``orth`` sets all singular values to about 1. All other parameters (first and last layers, biases, gains,
embeddings) are Adam's.

References:
    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, ProbabilityBelowOne
from scoreexp.optimizers.closure import evaluated

_NEGLIGIBLE = 1e-7
_QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0, so that five iterations bring singular values near 1


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    r"""The nearest semi-orthogonal matrix of ``matrix[m, n]``, roughly: singular values in about [0.7, 1.2].

    Newton-Schulz iteration :math:`X \leftarrow P X, P = a I + b A + c A^2, A = X X^T` from
    :math:`X = G / (|G|_F + 10^{-7})`, so that the faded gradient of a layer that takes no part is not blown up to a full
    step. The iteration runs on A alone, :math:`A \leftarrow P A P`, and the product of all P is applied to X at the end:
    kernels are several times as wide as high, so A is small.

    >>> u = orthogonalised(torch.diag(torch.tensor([1.0, 2.0, 4.0])))
    >>> bool(((u.diagonal() - 1).abs() < 0.35).all()), bool((u - u.diagonal().diag()).abs().max() < 1e-6)
    (True, True)
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + _NEGLIGIBLE)
    a, b, c = _QUINTIC
    gram = x @ x.T
    product = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for hidden weights, Adam for the other parameters.

    Hidden are weights of two or more dimensions of which the first two, outputs and inputs, are both at least
    ``hidden_width``: a network whose hidden layers are narrower is trained by Adam alone.

    >>> layers = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    >>> optimizer = Muon(layers.parameters())
    >>> layers(torch.ones(4, 2)).square().mean().backward()
    >>> _ = optimizer.step()
    >>> [len(group["params"]) for group in optimizer.param_groups]  # the middle weight; the others
    [1, 5]

    Args:
        params: parameters to train.
        lr: learning rate of the hidden weights: how far a step moves them, in the spectral norm.
        momentum: mu.
        adam_lr: learning rate of the others.
        betas: of Adam.
        weight_decay: share of the learning rate that pulls hidden weights towards 0.
        hidden_width: least number of outputs and inputs of a hidden weight.
    """

    @checked
    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: PositiveFloat = 0.02,
        momentum: ProbabilityBelowOne = 0.95,
        adam_lr: PositiveFloat = 1e-3,
        betas: tuple[ProbabilityBelowOne, ProbabilityBelowOne] = (0.9, 0.999),
        weight_decay: NonNegativeFloat = 0.0,
        hidden_width: PositiveInt = 16,
    ) -> None:
        parameters = list(params)
        hidden = [p for p in parameters if p.ndim >= 2 and min(p.shape[:2]) >= hidden_width]
        chosen = {id(p) for p in hidden}
        others = [p for p in parameters if id(p) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": hidden, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "kind": "muon"},
            {"params": others, "lr": adam_lr, "betas": tuple(betas), "kind": "adam"},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["kind"] == "muon" else self._adam)(group, trained)
        return loss

    def _muon(self, group: dict[str, Any], trained: list[nn.Parameter]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for p in trained:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            mean = state["momentum"].lerp_(p.grad, 1 - momentum)
            update = orthogonalised(p.grad.lerp(mean, momentum).flatten(1))
            scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            if group["weight_decay"]:
                p.mul_(1 - lr * group["weight_decay"])
            p.add_(update.view(p.shape), alpha=-lr * scale)

    def _adam(self, group: dict[str, Any], trained: list[nn.Parameter]) -> None:
        beta, beta2 = group["betas"]
        for p in trained:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            mean = state["mean"].lerp_(p.grad, 1 - beta)
            square = state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(1e-8)
            p.addcdiv_(mean, root, value=-group["lr"] / (1 - beta ** state["step"]))
