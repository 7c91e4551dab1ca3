"""Which class labels a model is given: one rule for whatever draws or denoises.

A label that is not known is drawn where samples are drawn (the class ``seed mod classes``, so that a seed names a
sample), and is left open where an image is restored: the null label stands for all classes. It may be used only where
label dropout has trained it; without, restoring too takes ``seed mod classes``, and says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from scoreexp.core.errors import UserError

Label = int | Literal["none"] | None


def labels_for(
    seeds: Sequence[int],
    record: Mapping[str, Any],
    label: Label = None,
    *,
    device: torch.device | str = "cpu",
) -> Tensor | None:
    """Labels ``[B]`` of samples to be drawn, one per seed; None for a model without classes and for the null label.

    >>> labels_for([0, 1, 2, 3], {"num_classes": 3})
    tensor([0, 1, 2, 0])

    Args:
        seeds: one per sample.
        record: of the model, as its checkpoint has it (``model.record``).
        label: a class for all, ``"none"`` for the null label, None for ``seed mod classes``.
        device: of the result.

    Raises:
        UserError: the model has no such class, or its null label was not trained.
    """
    classes = record.get("num_classes")
    if label is not None:
        _require_label(label, record)
    if classes is None or label == "none":
        return None
    chosen = [seed % classes for seed in seeds] if label is None else [label] * len(seeds)
    return torch.tensor(chosen, device=device)


def label_of_observed(record: Mapping[str, Any], seed: int, label: Label = None) -> tuple[Label, str | None]:
    """The label with which an image of unknown class is restored, and what must be said of it, or None.

    >>> record = {"num_classes": 3, "config": {"model": {"label_dropout": 0.1}}}
    >>> label_of_observed(record, seed=0)
    ('none', None)

    Raises:
        UserError: as ``labels_for``.
    """
    if label is not None:
        _require_label(label, record)
        return label, None
    classes = record.get("num_classes")
    if classes is None or knows_null_label(record):
        return "none" if classes is not None else None, None
    return seed % classes, (
        f"this model needs a class and was trained without label dropout: it takes label={seed % classes}; give the "
        f"image's own, label=0 to {classes - 1}"
    )


def knows_null_label(record: Mapping[str, Any]) -> bool:
    """Whether training has left labels out, so that the null label stands for all classes.

    >>> knows_null_label({"num_classes": 3, "config": {"model": {"label_dropout": 0.1}}})
    True
    """
    model = record.get("config", {}).get("model") or {}
    return record.get("num_classes") is not None and float(model.get("label_dropout") or 0) > 0


def _require_label(label: int | str, record: Mapping[str, Any]) -> None:
    classes = record.get("num_classes")
    if classes is None:
        raise UserError(f"label={label}: the model has no classes, leave label out")
    if label == "none":
        if not knows_null_label(record):
            raise UserError(
                f"label=none: this model was trained without label dropout, so it knows no class but 0 to {classes - 1}: "
                "give one of them, or train with model.label_dropout=0.1"
            )
    elif not (isinstance(label, int) and 0 <= label < classes):
        raise UserError(f"label={label}: allowed is 0 to {classes - 1}, or none for no class")
