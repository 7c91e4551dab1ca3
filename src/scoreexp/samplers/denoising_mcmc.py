"""Markov chains over data and noise level, then a short reverse integration."""

import math
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import AtLeastTwo, FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase, OracleDenoiser, Wrapper
from scoreexp.samplers.base import Sampler, falling_noise_levels, step_from_noise
from scoreexp.samplers.grids import TimeGrid
from scoreexp.samplers.level_laws import ExactLevels, LevelLaw, spaced_levels
from scoreexp.schedules import Schedule


class _State(NamedTuple):
    law: LevelLaw
    end: float  # the level at which the integration ends
    steps: int
    begin: Tensor | None = None  # the level [B] at which it began; None before the chain
    done: int = 0


class DenoisingMCMC(Sampler):
    r"""Denoising Langevin Gibbs: a chain in ``(y, sigma)`` that stays near the data, and Heun's method from there.

    With ``y = x_t / alpha`` at the level ``sigma``, of any schedule:

    1. the chain, ``updates`` times, leaves :math:`p(y | \sigma) p(\sigma)` as it is, all levels equally probable:
       :math:`y \leftarrow D + (1 - r) (y - D) + \sqrt{1 - (1 - r)^2}\, \sigma z` with :math:`D = D(y; \sigma)`, then
       :math:`\sigma \sim p(\sigma | y)`;
    2. of its last ``keep_of`` states each sample takes the one of the smallest level;
    3. from that level Heun's method goes down to the end of the grid, each sample in as many steps over its own levels,
       spaced as by ``KarrasGrid`` with ``rho = 7``, and the denoising ends it.

    A Langevin step ``y + eta score + sqrt(2 eta) z`` with ``eta = r sigma^2``, as in the paper, is the same with
    ``sqrt(2 r)`` before the noise. It raises the variance where the data are a point by ``r^2``, which in many dimensions
    drives the level up without end; here that variance is exact for every r, and for Gaussian data of variance v it is too
    small by the share ``r^2 sigma^2 v / (v + sigma^2)^2``.

    The least noisy of several states is often one whose level was drawn small by chance, further from the data than that
    level allows. In many dimensions such draws are rare; in the plane they widen modes by a tenth: take ``keep_of=1`` there.

    The levels are between that at the end of the grid and ``largest``, where modes of the data should be joined. Samples
    start at any level below; from a larger one there is a step to ``largest`` first. ``p(sigma | y)`` is exact for
    ``OracleDenoiser``, all other models need a ``law``. An evaluation for each update, two for each step of the grid after
    its first time, and the denoising.

    Reference: B. Kim, J. C. Ye, "Denoising MCMC for Accelerating Diffusion-Based Generative Models", 2023,
    https://arxiv.org/abs/2209.14593.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.full((2,), 0.01))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.EDM())
    >>> sampler = se.samplers.DenoisingMCMC(se.samplers.UniformGrid(4), updates=50)
    >>> se.samplers.draw(model, sampler, seeds=[0, 1]).nfe  # 1 to the largest level, 50, 6 and 1
    58

    Args:
        grid: how many times the integration visits, at least two, and the last of them.
        updates: of the chain.
        keep_of: the last states of the chain among which the one of the smallest level is taken; at most ``updates``.
        ratio: ``r``, in (0, 1], without unit.
        largest: noise level ``sigma / alpha``, in units of the data ([-1, 1]); that of the schedule if it is smaller.
        levels: how many, even in their logarithm; these two are for the exact law, another has levels of its own.
        law: of the levels; None for the exact one.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, if the grid has one time, the law's levels are outside
            the schedule's, or there is no law and the model is no ``OracleDenoiser`` or has labels.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        updates: PositiveInt = 100,
        keep_of: PositiveInt = 20,
        ratio: Annotated[float, (">", 0), ("<=", 1), "of the way to the posterior mean"] = 0.3,
        largest: FinitePositiveFloat = 10.0,
        levels: AtLeastTwo = 32,
        law: LevelLaw | None = None,
        denoise_last: bool = True,
    ) -> None:
        super().__init__(grid, denoise_last)
        self.updates, self.keep_of, self.ratio = updates, keep_of, ratio
        self.largest, self.levels, self.law = largest, levels, law

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> _State:
        visited = falling_noise_levels(model.schedule, times)
        if len(times) < 2:
            raise ValueError(
                f"{len(times)} time makes no step after the chain: choose sampler.grid.steps >= 2, and no start at the end "
                "of the grid"
            )
        end = visited[-1].item()
        if (law := self.law) is None:
            asked = model.model if isinstance(model, Wrapper) else model
            if not isinstance(asked, OracleDenoiser):
                raise ValueError(
                    "denoising MCMC needs the law of the noise level of a sample, which is known for exact denoisers "
                    "alone: fit one with scoreexp.samplers.fit_level_classifier and choose it as sampler.law"
                )
            high = model.schedule.sigma_range[1]
            law = ExactLevels(asked.oracle, spaced_levels((end, high), self.levels, self.largest))
        model.schedule.t_of_sigma(law.levels[[0, -1]])  # raises where they are outside the schedule
        return _State(law, end, len(times) - 1)

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        schedule = model.schedule
        begin = state.begin
        if begin is None:
            y, begin = self._chain(model, x_t, t, state.law, streams)
            begin = begin.clamp(min=state.end)
        else:
            y = x_t / expand_to(_scale(schedule, _spaced(begin, state, state.done)), x_t)
        # 3. Heun's method, each sample between its own levels
        r, r_next = (_spaced(begin, state, state.done + i) for i in (0, 1))
        width = expand_to(r_next - r, y)
        d = (y - _denoised(model, y, r)) / expand_to(r, y)
        y_next = y + width * d
        d_next = (y_next - _denoised(model, y_next, r_next)) / expand_to(r_next, y)
        y_next = y + width * (d + d_next) / 2
        x = expand_to(_scale(schedule, r_next), y) * y_next
        return x, state._replace(begin=begin, done=state.done + 1)

    def _chain(
        self, model: DenoiserBase, x: Tensor, t: float, law: LevelLaw, streams: ImageStreams
    ) -> tuple[Tensor, Tensor]:
        """Steps 1 and 2: ``y [B, *]`` and its levels ``[B]``."""
        schedule = model.schedule
        levels = law.levels.cpu()
        level = schedule.noise_level(torch.full((len(x),), t, dtype=torch.float64))
        if (level > levels[-1]).any():
            joined = schedule.t_of_sigma(levels[-1]).item()
            if joined < t:
                x, t = step_from_noise(model, x, t, joined, streams), joined
            level = levels[-1].expand(len(x))
        y = x / schedule.at(t)[0]
        best, lowest = y, torch.full_like(level, math.inf)
        for n in range(self.updates):
            # 1. Langevin, then Gibbs
            mean = _denoised(model, y, level)
            spread = math.sqrt(self.ratio * (2 - self.ratio)) * expand_to(level, y)
            y = mean + (1 - self.ratio) * (y - mean) + spread * streams.normal(y)
            uniform = torch.special.ndtr(streams.normal(y.flatten(1)[:, :1].double())).cpu()
            below = law(y).double().cpu().exp().cumsum(1) < uniform
            level = levels[below.sum(1).clamp(max=len(levels) - 1)]
            # 2. the smallest level of the last states
            if n >= self.updates - self.keep_of:
                smaller = level <= lowest
                best = torch.where(expand_to(smaller, y).bool(), y, best)
                lowest = torch.where(smaller, level, lowest)
        return best, lowest


_RHO = 7


def _spaced(begin: Tensor, state: _State, i: int) -> Tensor:
    """The level ``[B]`` of time ``i`` of ``0 .. state.steps``."""
    root_begin, root_end = begin ** (1 / _RHO), state.end ** (1 / _RHO)
    between: Tensor = (root_begin + i / state.steps * (root_end - root_begin)) ** _RHO
    return torch.minimum(between, begin) if i < state.steps else torch.full_like(begin, state.end)


def _scale(schedule: Schedule, level: Tensor) -> Tensor:
    return schedule.alpha(schedule.t_of_sigma(level))


def _denoised(model: DenoiserBase, y: Tensor, level: Tensor) -> Tensor:
    """``D(y; sigma)``, one evaluation."""
    t = model.schedule.t_of_sigma(level)
    return model(expand_to(model.schedule.alpha(t), y) * y, t)
