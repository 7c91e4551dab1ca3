r"""Fine-tuning of a quantised denoiser by forward passes alone, for losses that rounding makes piecewise constant.

.. math:: g = \frac{L(\theta + \mu u) - L(\theta - \mu u)}{2 \mu}\, u, \qquad u \sim N(0, I_d),

whose mean over ``u`` is the gradient of the smoothed loss, with a variance of about ``d`` times its square. Projected on a
subspace of ``k`` dimensions that holds the gradient, it has the same mean and about ``k / d`` of the variance; what the
subspace lacks of the gradient is lost. It is that of the principal components of recent iterates. Here rounds without a
projection, which collect them, alternate with rounds with it: within the span alone nothing new would be found.

Reference: H. Seo, W. Jeong, K. Lee, S. Y. Chun, "Efficient Personalization of Quantized Diffusion Model without
Backpropagation", 2025, https://arxiv.org/abs/2503.14868 (ZOODiP), there for a token of a text; here for the scales of the
weights or for class embeddings, which are rounded again at each trial.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import FinitePositiveFloat, NonNegativeInt, PositiveInt, Probability
from scoreexp.denoisers.denoiser import Denoiser, DenoiserBase
from scoreexp.networks.quantised import Quantised
from scoreexp.objectives import EDMWeighting

Tuned = Literal["scales", "classes"]
CHECKED = 64  # samples by which the result is compared with the start


class Finetuned(NamedTuple):
    """The denoiser, and its loss on the same fixed noise before and after."""

    model: Denoiser
    before: float
    after: float


@torch.no_grad()
def zeroth_order_gradient(
    loss: Callable[[Tensor], float], theta: Tensor, direction: Tensor, mu: float
) -> Tensor:
    """``g`` above for one direction ``u``: two evaluations of the loss.

    >>> theta, u = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    >>> zeroth_order_gradient(lambda v: float(v.square().sum()), theta, u, mu=0.5)
    tensor([2., 0.])

    Args:
        loss: of parameters ``[d]``.
        theta: where, ``[d]``.
        direction: ``u[d]``, standard normal.
        mu: half the distance of the two evaluations, in units of ``u``.
    """
    slope = (loss(theta + mu * direction) - loss(theta - mu * direction)) / (2 * mu)
    return slope * direction


def principal_span(iterates: Tensor, rank: int) -> Tensor:
    """Orthonormal columns ``[d, k]``, ``k <= rank``, of the principal components of iterates ``[m, d]``.

    >>> principal_span(torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), 2).abs()
    tensor([[0.],
            [1.]])
    """
    centred = iterates - iterates.mean(0)
    _, size, directions = torch.linalg.svd(centred, full_matrices=False)
    found = int((size > 1e-6 * size[0]).sum()) if len(size) else 0
    return directions[: min(rank, found)].T


@checked
@torch.no_grad()
def finetune(
    model: Denoiser,
    data: Tensor,
    cond: Tensor | None = None,
    *,
    teacher: DenoiserBase | None = None,
    tune: Tuned = "scales",
    steps: NonNegativeInt = 200,
    batch: PositiveInt = 16,
    times: tuple[Probability, Probability] = (0.0, 1.0),
    lr: FinitePositiveFloat = 1e-3,
    mu: FinitePositiveFloat = 1e-2,
    history: PositiveInt = 16,
    rank: PositiveInt = 4,
    seed: int = 0,
) -> Finetuned:
    """Lower the denoising loss of a quantised model, or its distance from the model before, without backpropagation.

    Adam follows ``g``. The start is kept where the end is no better on a fixed set of samples, times and noise.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.diagnostics.compression import calibration_set, quantise
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.schedules import VP
    >>> node = {"_target_": "scoreexp.networks.MLP", "width": 8}
    >>> whole = Denoiser(MLP(event_shape=(2,), width=8), VPrediction(), VP())
    >>> small = quantise(whole, node, calibration_set(whole, "random", n=4), bits=4)
    >>> found = finetune(small, torch.randn(8, 2), teacher=whole, steps=2)
    >>> found.after <= found.before
    True

    Args:
        model: as ``compression.quantise`` returns it; it stays as it is.
        data: clean samples ``[N, *]``, or samples of the model.
        cond: their labels ``[N]``, or None.
        teacher: whose posterior mean is the target; None: the clean sample.
        tune: ``scales`` of each output channel of the weights, by factors; ``classes``: the embeddings of the labels in
            ``cond``.
        steps: updates, of two evaluations of a batch each.
        batch: samples of an evaluation.
        times: ``t ~ U[T_1, T_2]``, as shares of the schedule's range.
        lr: step size of Adam: of the logarithm of a scale, or of an embedding's entry.
        mu: see above; larger than what rounding hides.
        history: iterates of a round, at least two.
        rank: ``k``, principal components kept.
        seed: names all that is drawn.

    Raises:
        ValueError: the model is not quantised or has no class embedding, there is no sample, or an argument is out of range.
    """
    if not isinstance(model.network, Quantised):
        raise ValueError(
            f"{type(model.network).__name__} is not quantised: give what compression.quantise returns"
        )
    if not len(data):
        raise ValueError("data holds no sample: give one at least")
    if not times[0] < times[1]:
        raise ValueError(f"times={times} must rise: give shares 0 <= T_1 < T_2 <= 1 of the schedule's range")
    tuned = deepcopy(model)
    theta, put = _parameters(tuned.network, tune, cond)
    best = theta.clone()
    data = data.to(model.device)
    weighting, schedule = EDMWeighting(), model.schedule
    low, high = (schedule.t_min + share * (schedule.t_max - schedule.t_min) for share in times)

    def examples(n: int, *key: int | str) -> Callable[[Tensor], float]:
        """The loss on ``n`` samples, as a function of the parameters."""
        stream = generator(seed, "forward fine-tuning", *key)
        rows = torch.randint(len(data), (n,), generator=stream)
        t = low + (high - low) * torch.rand(n, generator=stream, dtype=torch.float64)
        noise = torch.randn(n, *data.shape[1:], generator=stream).to(data)
        labels = None if cond is None else cond[rows].to(model.device)
        alpha, sigma = schedule(t)
        x = data[rows]
        x_t = expand_to(alpha, x) * x + expand_to(sigma, x) * noise
        target = x if teacher is None else teacher(x_t, t, labels)

        def loss(values: Tensor) -> float:
            put(values)
            error = mean_per_sample((tuned(x_t, t, labels) - target) ** 2)
            return float((expand_to(weighting(alpha, sigma), error) * error).mean())

        return loss

    check = examples(CHECKED, "check")
    before = check(theta)
    adam = torch.optim.Adam([theta], lr=lr)
    iterates: list[Tensor] = []
    span: Tensor | None = None
    for step in range(steps):
        stream = generator(seed, "forward fine-tuning direction", step)
        direction = torch.randn(theta.shape, generator=stream).to(theta)
        gradient = zeroth_order_gradient(examples(batch, step), theta, direction, mu)
        theta.grad = gradient if span is None else span @ (span.T @ gradient)
        adam.step()
        iterates.append(theta.clone())
        if len(iterates) == history:
            span = principal_span(torch.stack(iterates), rank) if span is None else None
            iterates = []
    after = check(theta)
    if after < before:
        best = theta
    put(best)
    return Finetuned(tuned, before, min(before, after))


def _parameters(
    network: nn.Module, tune: str, cond: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """The tuned values ``[d]`` of a quantised network, and how they are put into it."""
    held: list[Any] = [m for m in network.modules() if hasattr(m, "weight_codes")]
    embeddings: list[Any] = [m for m in held if isinstance(m, nn.Embedding)]
    if tune == "scales":
        layers = [m for m in held if not isinstance(m, nn.Embedding)]
        first = [m.weight_scale.clone() for m in layers]
        sizes = [len(scale) for scale in first]

        def scale(values: Tensor) -> None:
            for layer, start, factor in zip(layers, first, values.exp().split(sizes), strict=True):
                layer.weight_scale.copy_(start * factor)

        return torch.zeros(sum(sizes)).to(first[0]), scale
    if not embeddings or cond is None:
        raise ValueError(
            "tune=classes needs a network with a class embedding and labels cond: set tune=scales"
        )
    rows = cond.unique().to(embeddings[0].weight_codes.device)
    largest = 2 ** (embeddings[0].bits - 1) - 1

    def embed(values: Tensor) -> None:
        for layer, part in zip(embeddings, values.split(numbers), strict=True):
            vectors = part.view(len(rows), -1)
            step = vectors.abs().amax(1) / largest
            step = torch.where(step > 0, step, torch.ones_like(step))
            layer.weight_codes[rows] = (vectors / step[:, None]).round().to(layer.weight_codes.dtype)
            layer.weight_scale[rows] = step

    now = [m.weight_codes[rows] * m.weight_scale[rows, None] for m in embeddings]
    numbers = [part.numel() for part in now]
    return torch.cat([part.flatten() for part in now]), embed
