r"""Easy consistency tuning: a pretrained diffusion model becomes a consistency model.

With ``r = 0`` the consistency loss is that of a denoiser, so a diffusion model is a consistency model of one interval, and
tuning begins where its training has ended. For a noise level ``t`` the level ``r`` below it approaches ``t`` in stages,

.. math:: \frac{r}{t} = \max\left(1 - \frac{n(t)}{q^{a}}, 0\right), \qquad n(t) = 1 + \frac{k}{1 + e^{b t}}, \qquad
          a = 1, 2, \ldots,

and the loss is ``d(f(x_0 + t z), f^-(x_0 + r z)) / (t - r)``, as in consistency training.

References: Z. Geng, A. Pokle, W. Luo, J. Lin, J. Z. Kolter, "Consistency Models Made Easy", 2024,
https://arxiv.org/abs/2406.14548, section 3 and appendix A.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective
from scoreexp.objectives.consistency import finite_levels, pair_loss

_LEAST = 1.01  # of t in units of the smallest level, which has no pair below it


class EasyConsistencyTuning(nn.Module, Objective):
    """The loss above. The last noise level of a schedule is not 0 but ``t_min``, and ``r`` ends there.

    Begin with the weights of a model trained by ``recipe=edm``: ``recipe=consistency_tuning init_from=CKPT``. Its
    preconditioning differs from ``precond=consistency`` by the order of ``t_min`` only. What is said of
    ``ConsistencyTraining`` about sampling holds here.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.zeros(2)), se.schedules.EDM())
    >>> objective = EasyConsistencyTuning(training_steps=100)
    >>> objective(model, Batch(x=torch.zeros(3, 2)), torch.full((3,), 0.5), torch.randn(3, 2))  # both map to 0
    tensor([0., 0., 0.])

    Args:
        training_steps: calls, one for each batch, over which the stages are spread evenly.
        stages: how many values ``a`` takes.
        q: > 1; each stage divides ``1 - r / t`` by it.
        k: how much farther apart the levels of a pair are at small noise.
        b: how fast that wears off with the noise level, which is in units of the [-1, 1] range.
        huber: ``c`` of the distance, divided by the square root of the entries of a sample.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, as ``ConsistencyTraining``.
    """

    calls: Tensor

    @checked
    def __init__(
        self,
        training_steps: PositiveInt,
        stages: PositiveInt = 8,
        q: Annotated[float, (">", 1), ("<", 1e999), "2 in the paper for CIFAR-10"] = 2.0,
        k: FiniteNonNegativeFloat = 8.0,
        b: FiniteNonNegativeFloat = 1.0,
        huber: Annotated[FinitePositiveFloat, "the paper has 0 for CIFAR-10, 0.06 for ImageNet"] = 0.00054,
    ) -> None:
        super().__init__()
        self.training_steps, self.stages = training_steps, stages
        self.q, self.k, self.b, self.huber = q, k, b, huber
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def stage(self, call: int) -> int:
        """``a`` at the call 0, 1, ...

        >>> [EasyConsistencyTuning(training_steps=80).stage(call) for call in (0, 9, 10, 79, 1000)]
        [1, 1, 2, 8, 8]
        """
        return min(self.stages, 1 + call * self.stages // self.training_steps)

    def below(self, level: Tensor, stage: int) -> Tensor:
        """``r`` of noise levels ``t`` at a stage, in their shape.

        >>> EasyConsistencyTuning(training_steps=80, k=0.0).below(torch.tensor([4.0]), stage=2)
        tensor([3.])
        """
        n = 1 + self.k * torch.sigmoid(-self.b * level)
        return level * (1 - n / self.q**stage).clamp(min=0)

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        smallest, largest = finite_levels(model.schedule)
        level = model.schedule.noise_level(t.to(device="cpu", dtype=torch.float64))
        high = level.clamp(min=min(_LEAST * smallest, largest))
        low = self.below(high, self.stage(int(self.calls))).clamp(min=smallest)
        loss = pair_loss(model, batch, noise, low, high, self.huber)
        self.calls += 1
        return loss
