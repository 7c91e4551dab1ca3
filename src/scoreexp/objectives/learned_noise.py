r"""A law of training noise levels that is learned while the network is: levels whose loss is falling are drawn more often.

The arms of a bandit are the levels between two quantiles of the log-normal law, equally likely under it. With the policy
``p`` and rewards ``r`` of the drawn arms ``a``, REINFORCE follows an unbiased estimate of the gradient of ``E_p[r]``,

.. math:: \frac1B \sum_b \frac{r_b - \bar r}{s} \nabla \log p_{a_b}, \qquad
          p = (1 - \epsilon) \operatorname{softmax}(\theta) + \epsilon / K,

with the mean and the standard deviation of earlier rewards. The reward is the loss decrease: the running mean of the losses
of an arm minus the new one.

References: R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning",
1992, https://doi.org/10.1007/BF00992696; a policy over noise in training is the idea of M. C. Yavuz, Y. Yang, "Policy
Gradient-Driven Noise Mask", 2024, https://arxiv.org/abs/2406.14568, there for masks that augment the data of classifiers.
"""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo, FiniteNonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.objectives.time_laws import TimeLaw
from scoreexp.schedules import Schedule

_LEAST_SHARE = 1e-9  # of the log-normal law on the schedule's range: below it there is but one level


class LearnedNoise(nn.Module, TimeLaw):
    """``log(sigma / alpha)`` from a policy over ``arms`` quantiles of a normal law; at first that law.

    The normal law is cut off at the ends of the schedule's range (``LogNormalNoise`` moves what lies beyond to the ends).
    Its state is on the CPU, the same on all devices, and part of the checkpoints.

    >>> import torch
    >>> import scoreexp as se
    >>> law, schedule = se.objectives.LearnedNoise(arms=4, rate=1.0), se.schedules.EDM()
    >>> for step in range(100):  # the losses of low noise levels fall
    ...     t = law.sample(64, schedule, torch.Generator().manual_seed(step))
    ...     low = schedule.noise_level(t) < 0.1
    ...     law.observe(t, torch.where(low, 1 - step / 100, 1.0), schedule)
    >>> law.probabilities.argmax().item(), law.weights(t[low], schedule).max() < 1
    (0, tensor(True))

    Args:
        mean: mean of ``log(sigma / alpha)``, with sigma in units of the [-1, 1] range.
        std: its standard deviation, > 0.
        arms: ``K``, the number of parts.
        rate: step of the policy's ascent; 0 leaves it as it is.
        explore: ``epsilon``, the share that is drawn from the normal law whatever the policy, in (0, 1].
        memory: samples that a running mean remembers.
        importance: weigh the loss of an arm by ``1 / (K p)``, so that its expectation is that of the normal law (at most
            ``1 / explore``). False: the policy decides the effective weighting too.

    Raises:
        ValueError: an argument is out of its range.
    """

    learns: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        mean: float = -1.2,
        std: PositiveFloat = 1.2,
        arms: AtLeastTwo = 16,
        rate: FiniteNonNegativeFloat = 0.1,
        explore: Annotated[float, (">", 0), ("<=", 1)] = 0.25,
        memory: PositiveInt = 256,
        importance: bool = True,
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.rate, self.explore, self.memory, self.importance = rate, explore, memory, importance
        # No buffers: they would follow the network to its device and precision.
        self.logits = torch.zeros(arms, dtype=torch.float64)
        self.level = torch.full((arms,), torch.nan, dtype=torch.float64)  # running means of the losses
        self.moments = torch.zeros(2, dtype=torch.float64)  # mean and mean square of the rewards

    @property
    def probabilities(self) -> Tensor:
        """``p[K]``, of the lowest levels first."""
        return (1 - self.explore) * self.logits.softmax(0) + self.explore / len(self.logits)

    def sample(self, n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        p = self.probabilities
        ends = p.cumsum(0)
        arm = torch.searchsorted(ends, u, right=True).clamp(max=len(p) - 1)
        inside = ((u - (ends - p)[arm]) / p[arm]).clamp(0, 1)
        low, share = self._mass(schedule)
        z = torch.special.ndtri(low + share * (arm + inside) / len(p))
        t = schedule.t_of_sigma((self.mean + self.std * z).exp().clamp(*schedule.sigma_range))
        return t.detach().to(generator.device)

    def weights(self, t: Tensor, schedule: Schedule) -> Tensor:
        """What the losses of times ``t[B]`` are multiplied by, ``[B]``; 1 without ``importance``."""
        if not self.importance or self._mass(schedule)[1] < _LEAST_SHARE:
            return torch.ones(len(t), dtype=torch.float64)
        return 1 / (len(self.logits) * self.probabilities[self._arms(t, schedule)])

    @torch.no_grad()
    def observe(self, t: Tensor, losses: Tensor, schedule: Schedule) -> None:
        """Learn from the losses ``[B]``, unweighted, of times ``t[B]`` that were drawn from this law."""
        if self._mass(schedule)[1] < _LEAST_SHARE:
            return
        arms, losses = self._arms(t, schedule), losses.detach().to("cpu", torch.float64)
        known = ~self.level[arms].isnan()
        rewards = (self.level[arms] - losses)[known]
        spread = (self.moments[1] - self.moments[0] ** 2).clamp(min=0).sqrt()
        if spread > 0 and len(rewards):
            advantage = (rewards - self.moments[0]) / spread
            self.logits = self.logits + self.rate * policy_gradient(
                self.logits, arms[known], advantage, self.explore
            )
        if len(rewards):
            seen = torch.stack([rewards.mean(), rewards.square().mean()])
            share = 1.0 if not self.moments[1] else self._share(torch.tensor(len(rewards)))
            self.moments = self.moments + share * (seen - self.moments)
        count = torch.bincount(arms, minlength=len(self.logits))
        mean = torch.bincount(arms, losses, minlength=len(self.logits)) / count
        followed = self.level + self._share(count) * (mean - self.level)
        self.level = torch.where(count == 0, self.level, torch.where(self.level.isnan(), mean, followed))

    def get_extra_state(self) -> Tensor:
        return torch.cat([self.logits, self.level, self.moments])

    def set_extra_state(self, state: Any) -> None:
        arms = len(self.logits)
        state = state.to("cpu", torch.float64, copy=True)
        self.logits, self.level, self.moments = state.split([arms, arms, 2])

    def _share(self, count: Tensor) -> Tensor:
        """Of ``count`` new samples in a running mean."""
        return 1 - (1 - 1 / self.memory) ** count.double()

    def _mass(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """The normal law's mass below the schedule's range, and within it."""
        ends = torch.tensor(schedule.sigma_range, dtype=torch.float64)
        low, high = self._below(ends)
        return low, high - low

    def _below(self, ratio: Tensor) -> Tensor:
        """The normal law's mass below noise levels."""
        return torch.special.ndtr((ratio.log() - self.mean) / self.std)

    def _arms(self, t: Tensor, schedule: Schedule) -> Tensor:
        low, share = self._mass(schedule)
        ratio = schedule.noise_level(t.detach().to("cpu", torch.float64)).detach()
        found = ((self._below(ratio) - low) / share * len(self.logits)).floor().long()
        return found.clamp(0, len(self.logits) - 1)


def policy_gradient(logits: Tensor, arms: Tensor, advantage: Tensor, explore: float = 0.0) -> Tensor:
    """The score-function estimate of the gradient of ``E_p[reward]`` with respect to the logits ``[K]``.

    >>> policy_gradient(torch.zeros(2), torch.tensor([0]), torch.tensor([1.0]))
    tensor([ 0.5000, -0.5000])

    Args:
        logits: of the policy ``p = (1 - explore) softmax(logits) + explore / K``.
        arms: ``[B]``, drawn from ``p``.
        advantage: ``[B]``, rewards less a baseline that does not depend on the arms.
        explore: share of the uniform law.
    """
    soft = logits.softmax(0)
    p = (1 - explore) * soft + explore / len(logits)
    each = advantage * (1 - explore) * (soft / p)[arms] / len(arms)
    return torch.zeros_like(logits).index_add(0, arms, each) - soft * each.sum()
