r"""Adaptive guidance: the call without label is left out where it says little, or is guessed from earlier ones.

With :math:`e_c = \hat\epsilon(x_t, c)`, :math:`e_\varnothing = \hat\epsilon(x_t, \varnothing)` and classifier-free guidance
:math:`e = e_\varnothing + w (e_c - e_\varnothing)`:

- ``Adaptive`` takes ``e = e_c`` for the rest of a sample's trajectory once the cosine of the two exceeds a threshold. It
  begins near 1, where all is noise, falls and returns to 1, so the rule is armed by the first cosine below the threshold.
- ``LinearAG`` guesses :math:`e_\varnothing` at the k-th time of a grid as

  .. math:: \hat e_{\varnothing,k} = \sum_{i \le k} b_{ki}\, e_{c,i} + \sum_{i < k} c_{ki}\, e_{\varnothing,i} ,

  with numbers b and c that least squares fit to a few trajectories of classifier-free guidance. In the first half of the
  times every second one is guided exactly, in the rest none.

Both remember one trajectory. Where a model is called outside of any they are classifier-free guidance.

Reference: A. Castillo, J. Kohler, J. C. Pérez, J. P. Pérez, A. Pumarola, B. Ghanem, P. Arbeláez, A. Thabet, "Adaptive
Guidance: Training-free Acceleration of Conditional Diffusion Models", 2023, https://arxiv.org/abs/2312.12487.
"""

from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import OpenProbability, PositiveInt, Probability
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.denoisers.denoiser import x0_from_eps
from scoreexp.guidance.base import LabelGuidance, Trajectory
from scoreexp.samplers import DDIM, TimeGrid, draw


class Adaptive(LabelGuidance):
    """Classifier-free guidance until both branches agree again, sample by sample; one evaluation from there on.

    >>> import torch
    >>> from scoreexp.denoisers import ConditionalOracle
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> classes = [Gaussian(torch.full((2,), mean), torch.full((2,), 0.04)) for mean in (-0.5, 0.5)]
    >>> model = ConditionalOracle(classes, [0.5, 0.5], VP())
    >>> draw(Adaptive(model, weight=2.0), DDIM(UniformGrid(20)), [0], cond=torch.tensor([1])).nfe < 40
    True

    Args:
        model: a class-conditional model whose null label was trained.
        weight: ``w``, any finite number.
        threshold: the cosine above which the branches agree; 0.991 in the paper. A sample whose cosine never falls below
            it is guided to the end, at two evaluations each time: give a higher one.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
        ValueError: the weight is not finite, a call comes without labels, or a sampler visits times in another order.
    """

    @checked
    def __init__(
        self,
        model: DenoiserBase,
        weight: float = 2.0,
        threshold: Annotated[OpenProbability, "0.991 in the paper"] = 0.991,
    ) -> None:
        super().__init__(model, weight)
        self.threshold = threshold

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.pushed(*self.branches(x_t, t, cond))

    def begin(self) -> DenoiserBase:
        return _Adaptive(self)


class _Adaptive(Trajectory):
    """Which samples are armed, and which are guided still."""

    def __init__(self, guidance: Adaptive) -> None:
        super().__init__(guidance)
        self.guidance = guidance
        self.armed = self.guided = torch.empty(0, dtype=torch.bool)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.follow(x_t, t)
        if not len(self.guided):
            self.armed, self.guided = torch.zeros(len(x_t)).bool(), torch.ones(len(x_t)).bool()
        guided = self.guided
        found, without = self.guidance.branches(x_t, t, cond, guided)
        own = found[guided]
        if not len(own):
            return found
        result = found.clone()
        result[guided] = self.guidance.pushed(own, without)

        e_c, e_null = (
            self.guidance.eps_of(x0_hat.detach(), x_t.detach()[guided], t[guided]).flatten(1)
            for x0_hat in (own, without)
        )
        cosine = torch.cosine_similarity(e_c, e_null).cpu()
        armed, agree = self.armed.clone(), torch.zeros_like(guided)
        agree[guided] = cosine > self.guidance.threshold
        armed[guided] |= cosine <= self.guidance.threshold
        self.armed, self.guided = armed, guided & ~(armed & agree)
        return result


class LinearAG(LabelGuidance):
    """Classifier-free guidance with most calls without label guessed from earlier ones, see the module's formulas.

    Coefficients are fitted when it is made, on ``pilots`` trajectories of DDIM (classes in turn, two evaluations at each
    time). They belong to the times of the grid, so the sampler must visit these: ``sampler.grid.steps`` and
    ``guidance.grid.steps`` agree.

    >>> import torch
    >>> from scoreexp.denoisers import ConditionalOracle
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> classes = [Gaussian(torch.full((2,), mean), torch.full((2,), 0.04)) for mean in (-0.5, 0.5)]
    >>> model = ConditionalOracle(classes, [0.5, 0.5], VP())
    >>> guided = LinearAG(model, UniformGrid(20), weight=2.0)
    >>> draw(guided, DDIM(UniformGrid(20)), [0], cond=torch.tensor([1])).nfe
    25

    Args:
        model: a class-conditional model whose null label was trained.
        grid: the times.
        weight: ``w``, any finite number.
        pilots: trajectories to fit on; more where samples have few entries.
        alternate: share of the times, from the first on, of which every second is guided exactly.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
        ValueError: the weight is not finite, a call comes without labels, or a sampler visits other times.
    """

    @checked
    def __init__(
        self,
        model: DenoiserBase,
        grid: TimeGrid,
        weight: float = 2.0,
        pilots: PositiveInt = 32,
        alternate: Probability = 0.5,
    ) -> None:
        super().__init__(model, weight)
        self.times: list[float] = grid(self.schedule).tolist()
        self.exact = frozenset({0, *range(0, round(alternate * len(self.times)), 2)})
        self.coefficients = self._fitted(grid, pilots)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.pushed(*self.branches(x_t, t, cond))

    def begin(self) -> DenoiserBase:
        return _Linear(self)

    def guess(self, e_c: list[Tensor], e_null: list[Tensor]) -> Tensor:
        """``e_null`` at time ``k = len(e_null)`` from all ``e_c`` up to it and all ``e_null`` before it, ``[B, *]``."""
        coefficients = self.coefficients[len(e_null)].tolist()
        terms = (number * e for number, e in zip(coefficients, [*e_c, *e_null], strict=True))
        return torch.stack(list(terms)).sum(0)

    def _fitted(self, grid: TimeGrid, pilots: int) -> list[Tensor]:
        """``(b_k0, ..., b_kk, c_k0, ..., c_k(k-1))`` for each time k."""
        recorder = _Recorder(self)
        cond = torch.arange(pilots, device=self.device) % int(self.record["num_classes"])
        draw(recorder, DDIM(grid), range(pilots), cond=cond)
        n = len(self.times)
        vectors = torch.stack([*recorder.e_c, *recorder.e_null]).flatten(1)
        products = vectors @ vectors.T
        fitted = []
        for k in range(n):
            known = [*range(k + 1), *range(n, n + k)]
            left, right = products[known][:, known], products[known, n + k]
            # neighbouring times are nearly parallel: the smallest solution among those that fit equally well
            fitted.append(
                torch.linalg.lstsq(left, right[:, None], rcond=1e-10, driver="gelsd").solution[:, 0]
            )
        return fitted


class _Recorder(Wrapper):
    """Classifier-free guidance that keeps both branches of every call, as noise in float64 on the CPU."""

    def __init__(self, guidance: LabelGuidance) -> None:
        super().__init__(guidance)
        self.guidance = guidance
        self.e_c: list[Tensor] = []
        self.e_null: list[Tensor] = []

    def begin(self) -> DenoiserBase:
        return self

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        branches = self.guidance.branches(x_t, t, cond)
        for kept, x0_hat in zip((self.e_c, self.e_null), branches, strict=True):
            kept.append(self.guidance.eps_of(x0_hat, x_t, t).double().cpu())
        return self.guidance.pushed(*branches)


class _Linear(Trajectory):
    """The noise of both branches at the times so far, guessed or not."""

    def __init__(self, guidance: LinearAG) -> None:
        super().__init__(guidance)
        self.guidance = guidance
        self.e_c: list[Tensor] = []
        self.e_null: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        now, k, own = self.follow(x_t, t), len(self.e_c), self.guidance
        if k >= len(own.times) or abs(now - own.times[k]) > 1e-9 * own.times[0]:
            expected = f"time {own.times[k]:.6g}" if k < len(own.times) else "no further time"
            raise ValueError(
                f"LinearAG was fitted to {len(own.times)} times and expects {expected}, not {now:.6g}: give the sampler "
                "and guidance.grid the same grid, and a sampler of one evaluation at each time, such as sampler=ddim"
            )
        if k in own.exact:
            with_label, without = own.branches(x_t, t, cond)
        else:
            with_label = own.model(x_t, t, own.labels(cond))
        self.e_c.append(own.eps_of(with_label, x_t, t).detach())
        if k not in own.exact:
            without = x0_from_eps(own.guess(self.e_c, self.e_null), x_t, *self._scales(x_t, t))
        self.e_null.append(own.eps_of(without, x_t, t).detach())
        return own.pushed(with_label, without)
