"""What the hidden layers of a network know at each noise level, by linear probes.

A denoiser is asked for the same data at several levels; the activations of its narrowest layer are the features, and a
linear classifier that is fitted to those of some samples is judged on others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.diagnostics.estimates import ByLevel, mean_of
from scoreexp.diagnostics.fields import denoised, noisy
from scoreexp.diagnostics.linear_classifier import fit_linear_classifier


@checked
@torch.no_grad()
def hidden_features(
    model: Denoiser, x: Tensor, level: FinitePositiveFloat, *, seed: int = 0, batch: PositiveInt = 32
) -> Tensor:
    """The activations ``[B, C]`` of the narrowest layer that sees the data, averaged over positions.

    Narrowest is the one with the fewest positions; of those, the widest, and of those, the last.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.schedules import VP
    >>> model = Denoiser(MLP(event_shape=(2,), width=8), VPrediction(), VP())
    >>> hidden_features(model, torch.randn(4, 2), 1.0).shape
    torch.Size([4, 8])

    Args:
        model: a denoiser with a network.
        x: clean data ``[B, *]``.
        level: ``r`` of the noise that is added, in the units of the data.
        seed: names the noise.
        batch: samples at once.

    Raises:
        ValueError: no layer's output depends on the data (an exact posterior mean has none), or the level is outside the
            schedule's.
    """
    chosen, found = None, []
    for part in noisy(x, level, seed).split(batch):
        outputs = _outputs(model, part, level)
        if chosen is None:
            chosen = _narrowest(outputs)
        found.append(outputs[chosen].flatten(2).mean(2) if outputs[chosen].ndim > 2 else outputs[chosen])
    return torch.cat(found)


def _outputs(model: Denoiser, u: Tensor, level: float) -> dict[str, Tensor]:
    """The last output of each layer without layers inside."""
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> object:
        def keep(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim > 1 and len(output) == len(u):
                outputs.pop(name, None)  # in the order of the last calls
                outputs[name] = output

        return keep

    leaves = [(name, m) for name, m in model.network.named_modules() if not list(m.children())]
    handles = [m.register_forward_hook(hook(name)) for name, m in leaves]
    try:
        denoised(model, u, level)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _narrowest(outputs: dict[str, Tensor]) -> str:
    hidden = {name: v for name, v in list(outputs.items())[:-1] if bool((v != v[:1]).any())}
    if not hidden:
        raise ValueError("the network has no hidden layer that sees the data: give a model with one")
    deep = {k: v for k, v in hidden.items() if v.ndim > 2} or hidden  # of images, those with positions
    return min(reversed(list(deep)), key=lambda name: (deep[name][0, 0].numel(), -deep[name].shape[1]))


@checked
def probe_by_level(
    model: Denoiser,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    levels: Sequence[float],
    *,
    seed: int = 0,
    batch: PositiveInt = 32,
) -> ByLevel:
    """The accuracy of a linear probe of the hidden features, by noise level.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.schedules import VP
    >>> model = Denoiser(MLP(event_shape=(2,), width=8), VPrediction(), VP())
    >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    >>> sign = (x[:, 0] > 0).long()
    >>> probe_by_level(model, (x, sign), (x, sign), [0.1])[0.1].value > 0.8
    True

    Args:
        model: a denoiser with a network.
        train: samples ``[N, *]`` and their classes ``[N]``, to which the probe is fitted.
        test: others, by which it is judged.
        levels: of the noise, in the units of the data.
        seed: names the noise.
        batch: samples at once.

    Raises:
        ValueError: of ``hidden_features`` and ``fit_linear_classifier``.
    """
    found = {}
    for level in levels:
        features = [hidden_features(model, x, level, seed=seed, batch=batch) for x, _ in (train, test)]
        probe = fit_linear_classifier(features[0], train[1])
        found[level] = mean_of(probe.accuracy(features[1], test[1]))
    return found
