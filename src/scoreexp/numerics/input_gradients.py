r"""Gradients with respect to the input of a network alone, as guidance by a likelihood takes them, in less memory.

The gradient of a convolution with respect to its input needs its weights, not its input, yet torch keeps the input for the
gradient of the weights, also where these are frozen. Of a U-Net that is a third of all that is kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DEFAULTS: tuple[Any, ...] = (None, 1, 0, 1, 1)  # bias, stride, padding, dilation, groups of torch.conv2d


class InputGradients(TorchFunctionMode):
    """Within it, two-dimensional convolutions have no gradient with respect to their weights, and keep no input for one.

    >>> import torch
    >>> convolution = torch.nn.Conv2d(1, 1, 1, bias=False)
    >>> x = torch.ones(1, 1, 2, 2, requires_grad=True)
    >>> with InputGradients():
    ...     y = convolution(x)
    >>> (gradient,) = torch.autograd.grad(y.sum(), x)
    >>> bool((gradient == convolution.weight.item()).all())
    True
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and args[0].requires_grad and torch.is_grad_enabled():
            x, weight = args[:2]
            settings: list[Any] = [*args[2:], *_DEFAULTS[len(args) - 2 :]]
            bias, stride, padding, dilation, groups = settings
            if (
                not isinstance(padding, str)
                and x.dtype == weight.dtype
                and not torch.is_autocast_enabled(x.device.type)
            ):
                return _Convolution.apply(
                    x, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups
                )
        return func(*args, **(kwargs or {}))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout, ctx.geometry = (x.shape, x.stride()), geometry
        return torch.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (weight,), (*sides, groups) = gradients, ctx.saved_tensors, ctx.geometry
        # the values of the input are never read, but in another layout they would be copied into that of the weights
        layout_alone = gradient.new_empty_strided(*ctx.layout)
        wanted = (True, False, False)
        found = torch.ops.aten.convolution_backward.default(
            gradient, layout_alone, weight, None, *sides, False, [0, 0], groups, wanted
        )
        return (found[0], *[None] * 6)


def _pair(size: int | Sequence[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size) * (2 // len(size))
