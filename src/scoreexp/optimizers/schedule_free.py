r"""Schedule-free Adam: an average of the iterates in place of a decaying learning rate.

The gradient is taken at y, between the iterate z and the average x of the iterates:

.. math:: y_t = (1 - \beta_1) z_t + \beta_1 x_t, \qquad z_{t+1} = z_t - \gamma_t \left( \frac{g_t}{\sqrt{v_t / (1 -
          \beta_2^t)} + \epsilon} + \lambda y_t \right), \qquad x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}, \qquad
          c_t = \frac{\gamma_t^2}{\sum_{i \le t} \gamma_i^2},

with :math:`v_t` Adam's average of :math:`g_t^2` and :math:`\gamma_t` the learning rate of the step. The model is x; the
parameters that are trained hold y.

Reference: A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled, A. Cutkosky, "The Road Less Scheduled", 2024,
https://arxiv.org/abs/2405.15682, algorithm 1.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeFloat, OpenProbability, PositiveFloat, ProbabilityBelowOne
from scoreexp.optimizers.closure import evaluated


class ScheduleFreeAdam(torch.optim.Optimizer):
    """Adam whose average of the iterates is the model, ``average(model, trained)``.

    Runs of scoreexp evaluate and store it in the place of ``model.ema``; the weights that ``weights=raw`` reads are y.
    ``model.warmup_steps`` serves as usual, a decay of the learning rate is not needed.

    >>> trained, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(trained.weight)
    >>> optimizer = ScheduleFreeAdam(trained.parameters(), lr=0.5)
    >>> for _ in range(2):  # Adam moves z by -0.5, twice; x is the mean of both
    ...     trained.weight.grad = torch.ones(1, 1)
    ...     _ = optimizer.step()
    >>> optimizer.average(model, trained)
    >>> round(model.weight.item(), 6)
    -0.75

    Args:
        params: parameters to train.
        lr: gamma, before what a scheduler makes of it.
        betas: beta_1 in (0, 1), how near the gradient is taken to the average; beta_2 of Adam.
        eps: added to the root.
        weight_decay: lambda.

    Raises:
        ValueError: if an argument is outside its domain.
    """

    @checked
    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: PositiveFloat = 2.5e-3,
        betas: tuple[OpenProbability, ProbabilityBelowOne] = (0.9, 0.999),
        eps: PositiveFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "step": 0, "squared_rates": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            group["step"] += 1
            group["squared_rates"] += lr**2
            share = lr**2 / group["squared_rates"] if lr else 0.0
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state.update(z=y.detach().clone(), square=torch.zeros_like(y))
                z = state["z"]
                square = state["square"].mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
                root = (square / (1 - beta2 ** group["step"])).sqrt_().add_(group["eps"])
                x = _average(y, z, beta1)
                if group["weight_decay"]:
                    z.add_(y, alpha=-lr * group["weight_decay"])
                z.addcdiv_(y.grad, root, value=-lr)
                y.copy_(z.lerp(x.lerp_(z, share), beta1))
        return loss

    @torch.no_grad()
    def average(self, model: nn.Module, trained: nn.Module) -> None:
        """Write x into the parameters of ``model``, a copy of the module ``trained`` whose parameters are optimised.

        Parameters that are not optimised, and buffers, are those of ``trained``.
        """
        betas = {id(p): group["betas"][0] for group in self.param_groups for p in group["params"]}
        for target, y in zip(model.parameters(), trained.parameters(), strict=True):
            z = self.state[y]["z"] if y in self.state else y
            target.copy_(_average(y, z, betas.get(id(y), 1.0)))
        for buffer, source in zip(model.buffers(), trained.buffers(), strict=True):
            buffer.copy_(source)


def _average(y: torch.Tensor, z: torch.Tensor, beta1: float) -> torch.Tensor:
    """x of y = (1 - beta1) z + beta1 x."""
    return z.lerp(y, 1 / beta1)


def keeps_average(optimizer: Callable[..., Any]) -> bool:
    """Whether a constructor, or a partial one, makes a ``ScheduleFreeAdam``."""
    made = getattr(optimizer, "func", optimizer)
    return isinstance(made, type) and issubclass(made, ScheduleFreeAdam)
