r"""Classifier-free guidance, at all noise levels or in an interval of them.

.. math:: \hat x_0 = D(x_t, \varnothing) + w \,(D(x_t, c) - D(x_t, \varnothing)) ,

the same combination as of scores and of noise, which are linear in the posterior mean at a given time. ``w = 1`` is the
model itself, ``w = 0`` ignores the class. For ``w > 1`` the score is that of ``p(x_t) p(c | x_t)^w`` up to a constant;
the samples are not draws of that law at t = 0, because the chain's marginals are no noisy versions of it.

Large weights widen the range of the values. With ``phi > 0`` each guided estimate is pulled to the standard deviation (over
all entries of a sample) that the model's own has:

.. math:: \hat x_0 \leftarrow \left(1 - \phi + \phi\,
          \frac{\operatorname{std} D(x_t, c)}{\operatorname{std} \hat x_0}\right) \hat x_0 .

References:
    J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598, whose ``w`` is one
    less;
    T. Kynkäänniemi, M. Aittala, T. Karras, S. Laine, T. Aila, J. Lehtinen, "Applying Guidance in a Limited Interval Improves
    Sample and Distribution Quality in Diffusion Models", 2024, https://arxiv.org/abs/2404.07724;
    S. Lin, B. Liu, J. Li, X. Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024,
    https://arxiv.org/abs/2305.08891, section 3.4, where it is the model's output, here the estimate, that is rescaled.
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.types import NonNegativeFloat, Probability
from scoreexp.denoisers import DenoiserBase
from scoreexp.guidance.base import LabelGuidance


class ClassifierFree(LabelGuidance):
    """The model pushed from the null label towards its label.

    Two evaluations per call; one where ``w`` is 0 or 1, and at noise levels outside the interval.

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
    >>> guided = ClassifierFree(model, weight=2.0, interval=(0.2, 1.0))
    >>> draw(guided, DDIM(UniformGrid(20)), [0], cond=torch.tensor([1])).nfe
    23

    Args:
        model: a class-conditional model whose null label was trained.
        weight: ``w``, any finite number.
        interval: guide at noise levels ``low < sigma / alpha <= high`` alone, in units of the data ([-1, 1] for images);
            the model itself elsewhere. None: at all.
        rescale: ``phi``, for images; 0.7 in the paper.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
        ValueError: the weight is not finite, the interval holds no noise level of the schedule, the samples are no images
            and ``rescale`` is not 0, or a call comes without labels.
    """

    @checked
    def __init__(
        self,
        model: DenoiserBase,
        weight: float = 2.0,
        interval: tuple[NonNegativeFloat, NonNegativeFloat] | None = None,
        rescale: Probability = 0.0,
    ) -> None:
        super().__init__(model, weight)
        if interval is not None:
            low, high = self.schedule.sigma_range
            if not (interval[0] < interval[1] and interval[0] < high and interval[1] >= low):
                raise ValueError(
                    f"interval={list(interval)} holds no noise level sigma/alpha of the {type(self.schedule).__name__} "
                    f"schedule, [{low:.4g}, {high:.4g}]: choose low < high with part of that range between them"
                )
        if rescale and not isinstance(kind_of(self.event_shape), Images):
            raise ValueError(
                f"rescale={rescale} takes the deviation over an image's pixels, but the samples have shape "
                f"{self.event_shape}: choose rescale=0"
            )
        self.interval = interval
        self.rescale = float(rescale)

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        labels = self.labels(cond)
        guided = self._guided(t)
        if self.weight == 1 or not guided.any():
            return self.model(x_t, t, labels)
        if self.weight == 0 and guided.all():
            return self.model(x_t, t, None)
        with_label, without = self.branches(x_t, t, labels, guided)
        own = with_label[guided]
        pushed = self.pushed(own, without)
        if self.rescale:
            pushed = _rescaled(pushed, own, self.rescale)
        if guided.all():
            return pushed
        found = with_label.clone()
        found[guided] = pushed
        return found

    def _guided(self, t: Tensor) -> Tensor:
        """Which samples are at a noise level of the interval, ``[B]``."""
        if self.interval is None:
            return torch.ones(len(t), dtype=torch.bool)
        level = self.schedule.noise_level(t.to(device="cpu", dtype=torch.float64))
        return (self.interval[0] < level) & (level <= self.interval[1])


def _rescaled(x0_hat: Tensor, own: Tensor, share: float) -> Tensor:
    """``x0_hat`` with that share of the deviation of ``own``; an even image has none and stays."""
    dims = tuple(range(1, x0_hat.ndim))
    has, wanted = (x.std(dims, keepdim=True) for x in (x0_hat, own))
    ratio = torch.where(has > 0, wanted / has.clamp(min=torch.finfo(has.dtype).tiny), 1.0)
    return (1 - share + share * ratio) * x0_hat
