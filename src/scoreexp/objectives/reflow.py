r"""Reflow: training on pairs of noise and the sample to which a teacher's probability flow takes it.

Let ``T`` map a start ``z`` to the end of the teacher's flow. Flow matching on the pairs ``(z, T(z))`` instead of independent
ones,

.. math:: x_t = (1 - t)\, T(z) + t z, \qquad E\,|v(x_t, t) - (z - T(z))|^2 ,

keeps the marginals of the teacher, and no pair crosses another if the paths are straight enough: then the velocity is
constant along a path, and one Euler step from ``t = 1`` is the flow. Each further reflow, with the student as the teacher,
makes paths straighter and adds the errors of one more flow.

References: X. Liu, C. Gong, Q. Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
2022, https://arxiv.org/abs/2209.03003.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoreexp.core.batch import Batch, are_labels
from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers.angular_flow import AngularFlow
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.numerics.ode import OdeSolver
from scoreexp.objectives.base import Objective, noise_name


class Reflow(nn.Module, Objective):
    """``objective`` on pairs from a teacher, of which there are finitely many; what the data set holds is not used.

    The pair of a sample is named by its noise. Pairs are drawn ``together`` at a time when a step first asks for one of
    them, and kept: training costs up to ``pairs`` solutions of the teacher's flow, most of them in the first steps, within
    the seconds of training, and the memory of ``pairs`` samples. They are functions of their number and the teacher, so a
    resumed run draws the same again. The teacher is saved with the run; it runs in evaluation mode and full precision.

    The teacher may be of any schedule that begins at noise. Pairs have its classes equally often. As for optimal-transport
    pairs, ``x0_hat`` is no posterior mean: sample by the deterministic samplers.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> from scoreexp.numerics.ode import RK45
    >>> flow, data = se.schedules.FlowMatching(), se.oracles.Gaussian(torch.ones(2), torch.zeros(2))
    >>> teacher = se.denoisers.OracleDenoiser(data, flow)
    >>> inside = se.objectives.DenoisingScoreMatching(se.objectives.FlowWeighting())
    >>> objective = Reflow(inside, teacher, RK45(), pairs=4)
    >>> objective(teacher, Batch(x=torch.zeros(3, 2)), torch.full((3,), 0.5), torch.randn(3, 2))  # every path ends at 1
    tensor([0., 0., 0.])

    Args:
        objective: of the pairs, such as ``DenoisingScoreMatching(FlowWeighting())`` on ``schedule=flow_matching``.
        teacher: the denoiser whose flow it is.
        solver: of the teacher's flow; its tolerances are in the units of the data ([-1, 1]).
        pairs: how many are drawn at most.
        together: pairs drawn as one batch of the teacher.

    Raises:
        ValueError: if the teacher's schedule does not begin at noise, or its output is no posterior mean; on a call, if its
            samples have another shape, or it lacks the classes or the images that the batch is conditioned on.
    """

    @checked
    def __init__(
        self,
        objective: Objective,
        teacher: DenoiserBase,
        solver: OdeSolver,
        pairs: PositiveInt = 10_000,
        together: PositiveInt = 64,
    ) -> None:
        super().__init__()
        low, high = teacher.schedule.sigma_range
        if not (low < high and high >= 1 and math.isfinite(teacher.schedule.prior_std)):
            raise ValueError(
                f"the teacher's {type(teacher.schedule).__name__} schedule has noise levels {low:.6g} to {high:.6g}, so its "
                "flow does not begin at noise: choose a teacher whose largest level is 1 or more (objective.teacher.path)"
            )
        if not teacher.states_posterior_mean:
            raise ValueError(
                "the teacher states the end of a path and not the posterior mean, so it has no flow: choose a teacher "
                "trained by another objective (objective.teacher.path)"
            )
        self.objective, self.teacher, self.solver = objective, teacher, solver
        if isinstance(teacher, nn.Module):
            teacher.requires_grad_(False)
        self.pairs, self.together = pairs, together
        self._ends: dict[int, Tensor] = {}

    def prepare(self, size: int, fetch: Callable[[Tensor], Batch]) -> None:
        self.objective.prepare(size, fetch)

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        self._require_suits(batch.cond, noise)
        numbers = [stream_seed("pair", noise_name(one)) % self.pairs for one in noise]
        x_0, z = self.pair(numbers, noise)
        cond, labels = batch.cond, self._labels(numbers, noise.device)
        if cond is not None and labels is not None:
            cond = torch.where(cond == self._classes, cond, labels)  # the null label stays
        return self.objective(model, batch._replace(x=x_0, cond=cond), t, z)

    def pair(self, numbers: list[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Ends ``x_0`` and starts ``z`` of pairs ``[n, *]``, of the event shape, dtype and device of ``like[B, *]``."""
        ends = []
        for number in numbers:
            chunk, place = divmod(number, self.together)
            if chunk not in self._ends:
                self._ends[chunk] = self._drawn(chunk, like)
            ends.append(self._ends[chunk][place])
        return torch.stack(ends).to(like), _starts(numbers, like)

    @property
    def _classes(self) -> int:
        """0 for a teacher without classes."""
        return self.teacher.record.get("num_classes") or 0

    def _labels(self, numbers: list[int], device: torch.device) -> Tensor | None:
        classes = self._classes
        return torch.tensor([n % classes for n in numbers], device=device) if classes else None

    def _require_suits(self, cond: Tensor | None, noise: Tensor) -> None:
        shape = tuple(noise.shape[1:])
        if self.teacher.event_shape not in (None, shape):
            raise ValueError(
                f"the teacher makes samples of shape {self.teacher.event_shape} and the data have {shape}: choose a teacher "
                "of the same data (objective.teacher.path)"
            )
        if cond is not None and not are_labels(cond):
            raise ValueError(
                "the batch is conditioned on images, of which a teacher's pairs have none: set objective=residual"
            )
        if cond is not None and not self._classes:
            raise ValueError(
                "the data have classes and the teacher has none: choose a teacher with these classes "
                "(objective.teacher.path), or set data.classes=false"
            )

    @torch.no_grad()
    def _drawn(self, chunk: int, like: Tensor) -> Tensor:
        """The ends of one chunk of pairs ``[together, *]``, on the CPU."""
        first = chunk * self.together
        numbers = list(range(first, min(first + self.together, self.pairs)))
        z = _starts(numbers, like)
        if isinstance(self.teacher, nn.Module):
            self.teacher.eval()  # Lightning has put the whole module into training mode
        schedule, cond = self.teacher.schedule, self._labels(numbers, like.device)
        flow = AngularFlow(self.teacher, cond)
        (angle_0, scale_0), (angle_1, scale_1) = flow.at(schedule.t_min), flow.at(schedule.t_max)
        with torch.autocast(like.device.type, enabled=False):
            y = self.solver(flow.velocity, z * (schedule.prior_std / scale_1), angle_1, angle_0).y
            t_min = torch.full((len(y),), schedule.t_min, dtype=torch.float64)
            return self.teacher(scale_0 * y, t_min, cond).cpu()


def _starts(numbers: list[int], like: Tensor) -> Tensor:
    return ImageStreams(numbers, "reflow").normal(like[:1].expand(len(numbers), *like.shape[1:]))
