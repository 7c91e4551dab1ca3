r"""MeanFlow: the average velocity of the flow between two times, from which one evaluation draws a sample.

On the straight path ``x_t = (1 - t) x_0 + t z`` with the velocity ``v`` of its flow, the average

.. math:: u(x_t, s, t) = \frac{1}{t - s} \int_s^t v(x_\tau, \tau)\, d\tau
          \qquad\text{obeys}\qquad u = v - (t - s) \frac{d}{dt} u,
          \qquad \frac{d}{dt} u = v\, \partial_x u + \partial_t u .

The right side, with ``z - x_0`` for ``v`` and without a gradient, is the target: it is linear in ``v``, so its mean given
``x_t`` is that of the true velocity. The total derivative is one product in forward mode. ``s = t`` is flow matching.

Reference: Z. Geng, M. Deng, X. Bai, J. Z. Kolter, K. He, "Mean Flows for One-step Generative Modeling", 2025,
https://arxiv.org/abs/2505.13447 (whose r is s here).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat, Probability
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective, noise_name, perturb
from scoreexp.objectives.time_laws import TimeLaw
from scoreexp.schedules import FlowMatching


class _DifferentiableForward(TorchFunctionMode):
    """Group normalisation of contiguous inputs: in forward mode torch has no derivative for those with channels last.

    Fused attention has none either, hence the mathematical one beside it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


class MeanFlow(Objective):
    """``loss = mean |u - target|^2 / (mean |u - target|^2 + c)^p``, the denominator without a gradient.

    For a network of two times on ``schedule=flow_matching``. ``s`` is ``t`` but for a ``share`` of the samples; there it is
    the smaller, and ``t`` the larger, of the training time and a second draw. Those samples cost one
    more evaluation with its derivative. Called with one time the trained model is that of flow matching, so likelihoods and
    the samplers of a flow apply; ``sampler=mean_flow`` uses both times.

    >>> import torch
    >>> import scoreexp as se
    >>> from functools import partial
    >>> from scoreexp.core.batch import Batch
    >>> network = se.networks.TwoTimes(network=partial(se.networks.MLP, width=8), event_shape=(2,))
    >>> model = se.denoisers.Denoiser(network, se.denoisers.VPrediction(), se.schedules.FlowMatching())
    >>> objective = MeanFlow(se.objectives.LogNormalNoise(-0.4, 1.0))
    >>> objective(model, Batch(x=torch.zeros(3, 2)), torch.full((3,), 0.5), torch.randn(3, 2)).shape
    torch.Size([3])

    Args:
        law: of the second draw; as ``time_law`` for the published law of pairs.
        share: of the samples with ``s < t``.
        p: power of the adaptive weight; 0 is the mean square.
        c: keeps the weight finite.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, for a model of one time, another schedule, a batch
            without clean data, or noise of another shape.
    """

    @checked
    def __init__(
        self,
        law: TimeLaw,
        share: Annotated[Probability, "0.25 in the paper, 0.75 for CIFAR-10"] = 0.25,
        p: Annotated[FiniteNonNegativeFloat, "1 in the paper, 0.75 for CIFAR-10"] = 1.0,
        c: FinitePositiveFloat = 1e-3,
    ) -> None:
        self.law, self.share, self.p, self.c = law, share, p, c

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        if not (isinstance(model.schedule, FlowMatching) and model.schedule.std == 1):
            raise ValueError(
                f"MeanFlow needs the straight path to noise of std 1 and the schedule is {type(model.schedule).__name__}: "
                "set schedule=flow_matching schedule.std=1"
            )
        t = t.to(device="cpu", dtype=torch.float64)
        squared = mean_per_sample(self.error(model, batch, *self._two_times(model, t, noise), noise) ** 2)
        return squared / (squared.detach() + self.c) ** self.p

    def _two_times(self, model: DenoiserBase, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """``t`` and ``s``, ``[B]`` each."""
        draws = generator("second time", noise_name(noise))
        apart = torch.rand(len(t), generator=draws) < self.share
        other = torch.where(apart, self.law.sample(len(t), model.schedule, draws), t)
        return torch.maximum(t, other), torch.minimum(t, other)

    def error(self, model: DenoiserBase, batch: Batch, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        """``u - target`` ``[B, *]`` at times ``s <= t``, float64 on the CPU."""
        x_0, x_t, t, _, _ = perturb(model.schedule, batch, t, noise)
        v = noise - x_0

        def u(x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None) -> Tensor:
            return (x - model.toward(x, t, s, cond)) / expand_to(t, x)

        average, target = u(x_t, t, s, batch.cond), v
        apart = s < t
        if apart.any():
            rows = apart.to(x_t.device)
            cond = None if batch.cond is None else batch.cond[rows]

            def along(x: Tensor, t: Tensor) -> Tensor:
                return u(x, t, s[apart], cond)

            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _DifferentiableForward():
                tangents = (v[rows], torch.ones_like(t[apart]))
                rate: Tensor = jvp(along, (x_t[rows], t[apart]), tangents)[1]
            target = v.clone()
            target[rows] -= expand_to((t - s)[apart], rate) * rate
        return average - target.detach()
