"""What guidance by labels shares: the two branches of a class-conditional model, and the memory of one trajectory."""

import math
from typing import Any

import torch
from torch import Tensor

from scoreexp.core.batch import are_labels
from scoreexp.core.errors import UserError
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.samplers.labels import knows_null_label


class LabelGuidance(Wrapper):
    """Base: a class-conditional model whose null label was trained, and a weight.

    Args:
        model: the model.
        weight: of the guidance, any finite number; 1 is the model itself.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
        ValueError: the weight is not finite.
    """

    def __init__(self, model: DenoiserBase, weight: float) -> None:
        if not knows_null_label(model.record):
            classes = model.record.get("num_classes")
            what = (
                "has no classes"
                if classes is None
                else "was trained without label dropout, so its null label means nothing"
            )
            raise UserError(
                f"classifier-free guidance: the model {what}; train with data.classes=true model.label_dropout=0.1"
            )
        super().__init__(model)
        self.weight = finite(weight)

    def labels(self, cond: Tensor | None) -> Tensor:
        """The labels, which must be there."""
        if cond is None or not are_labels(cond):
            raise ValueError("classifier-free guidance needs labels: give cond, or label=K")
        return cond

    def branches(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None, rows: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """``D(x_t, c)`` of all samples and ``D(x_t, null)`` of those of ``rows`` (a mask ``[B]``), in one call."""
        cond = self.labels(cond)
        null = torch.full_like(cond[rows], int(self.record["num_classes"]))
        both = self.model(torch.cat([x_t, x_t[rows]]), torch.cat([t, t[rows]]), torch.cat([cond, null]))
        with_label, without = both.split([len(x_t), len(null)])
        return with_label, without

    def pushed(self, with_label: Tensor, without: Tensor) -> Tensor:
        """``without + w (with_label - without)``."""
        return without + self.weight * (with_label - without)

    def eps_of(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that belongs to an estimate."""
        return eps_from_x0(x0_hat, x_t, *self._scales(x_t, t))


class Trajectory(Wrapper):
    """Base of what a guidance remembers along one trajectory: a fixed batch at one time after the other.

    Args:
        guidance: whose trajectory it is.
    """

    def __init__(self, guidance: LabelGuidance) -> None:
        super().__init__(guidance)
        self._last: tuple[float, int] | None = None

    def begin(self) -> DenoiserBase:
        return self.model.begin()

    def follow(self, x_t: Tensor, t: Tensor) -> float:
        """The time of this call, which must continue the trajectory.

        Raises:
            ValueError: samples are at different times, time rises, or the batch is another one.
        """
        now, size = float(t[0]), len(x_t)
        last, before = self._last or (math.inf, size)
        if bool((t != t[0]).any()) or now > last or size != before:
            raise ValueError(
                f"{type(self.model).__name__} remembers earlier times, so all samples must pass the same falling times: "
                "choose a sampler on a fixed grid, such as sampler=ddim, or guidance=classifier_free"
            )
        self._last = now, size
        return now


def finite(weight: Any) -> float:
    """The weight as a float.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(weight):
        raise ValueError(f"weight={weight}: choose a finite number, such as 2")
    return float(weight)
