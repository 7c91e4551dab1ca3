r"""A network whose layers hold whole numbers: post-training quantisation of every convolution, linear layer and embedding.

.. math:: \hat w = s_c\, q, \quad q = \operatorname{clip}(\operatorname{round}(w / s_c), \pm(2^{b-1} - 1)), \qquad
          \hat x = l + d \operatorname{clip}(\operatorname{round}((x - l) / d), 0, 2^b - 1),

with one step ``s_c`` for each output channel of a weight and one interval ``[l, l + (2^b - 1) d]`` for the input of each
layer. Up to 8 bits both are chosen among clipped ranges by the squared error of the layer's output on a calibration set;
above, nothing is clipped and the ranges of inputs are doubled, for samples that reach further. The arithmetic is in floating
point: the file is small, the network is not faster.

Reference: Y. Shang, Z. Yuan, B. Xie, B. Wu, Y. Yan, "Post-training Quantization on Diffusion Models", 2023,
https://arxiv.org/abs/2211.15736.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked

Bits = Annotated[int, (">=", 2), ("<=", 16)]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
SEARCHED = 8  # bits up to which ranges are clipped
RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4)  # of a clipped range to the whole one


class Quantised(nn.Module):
    """A network with weights and inputs of ``bits`` bits in every layer; biases and normalisation keep theirs.

    Until ``calibrate`` or a state dict has filled it, its weights are 0. Gradients with respect to the input pass
    the rounding as if it were not there (straight through).

    >>> from scoreexp.networks import MLP
    >>> from functools import partial
    >>> network = Quantised(event_shape=(2,), network=partial(MLP, width=16, blocks=1), bits=8)
    >>> network.network.stem.weight_codes.dtype
    torch.int8

    Args:
        event_shape: shape ``*`` of one sample.
        network: makes the network, called with ``event_shape`` and ``num_classes``.
        num_classes: passed on.
        bits: of each number; stored as int8 up to 8 and as int16 above.

    Raises:
        ValueError: an argument is out of its range, or a parameter with more than one axis belongs to no layer that is
            quantised; it is named.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        network: Callable[..., nn.Module],
        num_classes: int | None = None,
        bits: Bits = 8,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.bits = bits
        self.network = network(event_shape=self.event_shape, num_classes=num_classes)
        self.downsampling_factor = int(getattr(self.network, "downsampling_factor", 1))
        require_quantisable(self.network)
        for _, layer in _layers(self.network):
            _make_room(layer, bits)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        found: Tensor = self.network(x, c_noise, cond)
        return found

    @torch.no_grad()
    def calibrate(self, original: nn.Module, run: Callable[[], None]) -> None:
        """Take the weights of ``original``, with steps and intervals that serve what its layers see while ``run`` runs.

        Args:
            original: the trained network, of the same architecture.
            run: evaluates ``original`` on the calibration set; called twice.
        """
        own = dict(_layers(self.network))
        layers = dict(_layers(original))
        ranges = {name: _Range() for name in layers}
        _observe(layers, {name: ranges[name].see for name in layers}, run)
        choices = {name: _Choice(self.bits, ranges[name], layer) for name, layer in layers.items()}
        _observe(layers, {name: choices[name].see for name in layers}, run)
        for name, choice in choices.items():
            codes, scale, low, step = choice.best()
            own[name].weight_codes.copy_(codes)
            own[name].weight_scale.copy_(scale)
            own[name].input_low.copy_(low)
            own[name].input_step.copy_(step)
        kept = {
            key: value for key, value in original.state_dict().items() if key in self.network.state_dict()
        }
        self.network.load_state_dict(kept, strict=False)


def require_quantisable(network: nn.Module) -> None:
    """Refuse a network with a weight that would silently stay as it is.

    Raises:
        ValueError: a parameter with more than one axis belongs to no layer that is quantised; all are named.
    """
    covered = {f"{name}.weight" for name, _ in _layers(network)}
    left = [name for name, p in network.named_parameters() if p.ndim > 1 and name not in covered]
    if left:
        raise ValueError(
            f"{type(network).__name__} has weights that cannot be quantised: {', '.join(left)} (convolutions, linear "
            "layers and embeddings can): give a checkpoint of another network"
        )


def _layers(network: nn.Module) -> Iterable[tuple[str, Any]]:
    return ((name, module) for name, module in network.named_modules() if isinstance(module, _LAYERS))


def _make_room(layer: Any, bits: int) -> None:
    """Replace a layer's weight by codes and steps, from which it is made before each call."""
    weight = layer.weight
    del layer.weight
    dtype = torch.int8 if bits <= 8 else torch.int16
    layer.register_buffer("weight_codes", torch.zeros_like(weight, dtype=dtype, requires_grad=False))
    layer.register_buffer("weight_scale", torch.ones(len(weight), dtype=weight.dtype, device=weight.device))
    for name in ("input_low", "input_step"):
        layer.register_buffer(name, torch.zeros((), dtype=weight.dtype, device=weight.device))
    layer.bits = bits
    layer.register_forward_pre_hook(_prepare)


def _prepare(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    scale = layer.weight_scale
    layer.weight = layer.weight_codes.to(scale.dtype) * _along_first(scale, layer.weight_codes)
    if isinstance(layer, nn.Embedding):
        return inputs
    x, *rest = inputs
    return (_rounded(x, layer.input_low, layer.input_step, layer.bits), *rest)


def _rounded(x: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """``x`` on a grid of ``2^bits`` values; a step of 0 leaves it as it is."""
    spacing = torch.where(step > 0, step, torch.ones_like(step))
    v = x.detach()  # in place: rounding is half the time of a network otherwise
    moved = (v - low).div_(spacing).round_().clamp_(0, 2**bits - 1).mul_(spacing).add_(low).sub_(v)
    return x + moved.mul_(step > 0)


def _along_first(v: Tensor, like: Tensor) -> Tensor:
    return v.reshape(-1, *[1] * (like.ndim - 1))


def _codes(weight: Tensor, bits: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Whole numbers of the shape of ``weight`` and one step for each of its first axis."""
    largest = 2 ** (bits - 1) - 1
    scale = ratio * weight.flatten(1).abs().amax(1) / largest
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (weight / _along_first(scale, weight)).round().clamp(-largest, largest)
    return codes, scale


# ------------------------------------------------------------------------------------------------- calibration


def _observe(
    layers: dict[str, Any],
    see: dict[str, Callable[[Any, tuple[Any, ...], Tensor], None]],
    run: Callable[[], None],
) -> None:
    """Call ``see`` with each call of a layer while ``run`` runs."""
    hooks = [layer.register_forward_hook(see[name]) for name, layer in layers.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()


class _Range:
    """The smallest and largest input of a layer."""

    def __init__(self) -> None:
        self.low, self.high = torch.inf, -torch.inf

    def see(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not isinstance(layer, nn.Embedding):
            self.low = min(self.low, float(inputs[0].min()))
            self.high = max(self.high, float(inputs[0].max()))


class _Choice:
    """The errors of a layer's output with its input or its weight on clipped ranges."""

    def __init__(self, bits: int, seen: _Range, layer: Any) -> None:
        self.bits, self.weight = bits, layer.weight.detach()
        self.inputs: list[tuple[Tensor, Tensor]] = []
        if seen.low <= seen.high:
            for ratio in RATIOS if bits <= SEARCHED else (2.0,):
                ends = self.weight.new_tensor([ratio * seen.low, ratio * seen.high])
                self.inputs.append((ends[0], (ends[1] - ends[0]) / (2**bits - 1)))
        self.weights = [
            _codes(self.weight, bits, ratio) for ratio in (RATIOS if bits <= SEARCHED else (1.0,))
        ]
        self.input_errors = [0.0] * len(self.inputs)
        self.weight_errors = [0.0] * len(self.weights)
        self.busy = False

    def see(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.busy or isinstance(layer, nn.Embedding):
            return
        self.busy = True  # the layer's own hook sees the trials below too
        try:
            x, *rest = inputs
            for i, (low, step) in enumerate(self.inputs):
                rounded = layer(_rounded(x, low, step, self.bits), *rest)
                self.input_errors[i] += float((rounded - output).square().sum())
            own = layer.weight.data
            for i, (codes, scale) in enumerate(self.weights):
                layer.weight.data = codes * _along_first(scale, codes)
                self.weight_errors[i] += float((layer(*inputs) - output).square().sum())
            layer.weight.data = own
        finally:
            self.busy = False

    def best(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes, steps, lower end and step of the input."""
        codes, scale = self.weights[self.weight_errors.index(min(self.weight_errors))]
        zero = torch.zeros((), dtype=scale.dtype, device=scale.device)
        if not self.inputs:
            return codes, scale, zero, zero
        low, step = self.inputs[self.input_errors.index(min(self.input_errors))]
        return codes, scale, low, step
