"""The gradient of the input is torch's own, and no input of a convolution is kept for it."""

import pytest
import torch
from torch import nn

from scoreexp.numerics.input_gradients import InputGradients

X = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": (1, 0)},
        {"kernel_size": (1, 3), "dilation": 2, "bias": False},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
)
def test_the_gradient_is_torchs_own(settings):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, **settings).double()
    found = []
    for context, layout in (
        (torch.enable_grad(), torch.contiguous_format),
        (InputGradients(), torch.contiguous_format),
        (InputGradients(), torch.channels_last),
    ):
        x = X.clone(memory_format=layout).requires_grad_()
        with context:
            y = layer(x).sin()
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    plain, *others = found
    for lean in others:
        torch.testing.assert_close(lean, plain, rtol=1e-12, atol=1e-12)


def test_no_input_of_a_convolution_is_kept():
    kept = []
    layer = nn.Conv2d(4, 4, 3, padding=1).double().requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(X.clone().requires_grad_())
        assert X.shape in kept
        kept.clear()
        with InputGradients():
            layer(X.clone().requires_grad_())
    assert kept == [layer.weight.shape]
