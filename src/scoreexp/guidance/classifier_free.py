r"""Classifier-free guidance.

.. math:: \hat x_0 = D(x_t, \varnothing) + w \,(D(x_t, c) - D(x_t, \varnothing)) ,

the same combination as of scores and of noise, which are linear in the posterior mean at a given time. ``w = 1`` is the
model itself, ``w = 0`` ignores the class. For ``w > 1`` the score is that of ``p(x_t) p(c | x_t)^w`` up to a constant;
the samples are not draws of that law at t = 0, because the chain's marginals are no noisy versions of it.

Reference: J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598, whose ``w``
is one less.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.batch import are_labels
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.samplers.labels import knows_null_label


class ClassifierFree(Wrapper):
    """The model pushed from the null label towards its label: two evaluations per call, one where ``w`` is 0 or 1.

    >>> import torch
    >>> from scoreexp.denoisers import Denoiser, EDMPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.samplers import DDIM, UniformGrid, draw
    >>> from scoreexp.schedules import VP
    >>> network = MLP(event_shape=(2,), num_classes=3, width=8, blocks=1)
    >>> model = Denoiser(network, EDMPrediction(), VP())
    >>> model.record = {"num_classes": 3, "config": {"model": {"label_dropout": 0.1}}}
    >>> draw(ClassifierFree(model, weight=2.0), DDIM(UniformGrid(20)), [0], cond=torch.tensor([1])).nfe
    40

    Args:
        model: a class-conditional model whose null label was trained.
        weight: ``w``, any finite number.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
        ValueError: the weight is not finite, or a call comes without labels.
    """

    @checked
    def __init__(self, model: DenoiserBase, weight: float = 2.0) -> None:
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
        if not math.isfinite(weight):
            raise ValueError(f"weight={weight}: choose a finite number, such as 2")
        super().__init__(model)
        self.weight = float(weight)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None or not are_labels(cond):
            raise ValueError("classifier-free guidance needs labels: give cond, or label=K")
        if self.weight in (0.0, 1.0):
            return self.model(x_t, t, cond if self.weight else None)
        null = torch.full_like(cond, int(self.record["num_classes"]))
        both = self.model(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([cond, null]))
        with_label, without = both.chunk(2)
        return without + self.weight * (with_label - without)
