"""Weighted convolution against the ordinary one."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scoreexp.core.streams import generator
from scoreexp.networks import ScoreCNN, UNet, WeightedConv2d, WeightedConvolutions

X = torch.randn(2, 4, 9, 9, generator=generator(0, "x"))
UNET = partial(UNet, channels=16, multipliers=(1, 2), blocks=1, attention_resolutions=())


def test_it_is_the_convolution_with_the_kernel_times_the_density():
    layer = WeightedConv2d(4, 6, 5, density=(0.25, 0.75), padding=2, groups=2)
    a = torch.tensor([0.25, 0.75, 1.0, 0.75, 0.25])
    wanted = F.conv2d(X, layer.weight * torch.outer(a, a), layer.bias, padding=2, groups=2)
    assert torch.equal(layer(X), wanted)
    (got,) = torch.autograd.grad(layer(X).sum(), layer.weight)
    effective = (layer.weight * torch.outer(a, a)).detach().requires_grad_()
    (plain,) = torch.autograd.grad(F.conv2d(X, effective, layer.bias, padding=2, groups=2).sum(), effective)
    torch.testing.assert_close(got, plain * torch.outer(a, a))  # the trained weight moves with the density


def test_a_density_of_ones_leaves_the_network_bit_for_bit():
    torch.manual_seed(0)
    plain = UNET(event_shape=(1, 8, 8), num_classes=3)
    for p in plain.parameters():
        nn.init.normal_(p, std=0.1)
    weighted = WeightedConvolutions(
        network=lambda **_: copy.deepcopy(plain), density=[1.0], event_shape=(1, 8, 8), num_classes=3
    )
    assert {k.removeprefix("network.") for k in weighted.state_dict()} == set(plain.state_dict())
    layers = [m for m in weighted.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(layers) > 5
    assert all(isinstance(m, WeightedConv2d) for m in layers)
    assert weighted.downsampling_factor == plain.downsampling_factor
    x, c, cond = X[:, :1, :8, :8], torch.tensor([0.1, -1.0]), torch.tensor([0, 2])
    assert torch.equal(weighted(x, c, cond), plain(x, c, cond))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"kernels of 3 pixels a side, and kernel_size is 5"):
        WeightedConv2d(1, 1, 5, density=(0.5,))
    with pytest.raises(ValueError, match=r"ScoreCNN has no convolution of 5 x 5 pixels"):
        WeightedConvolutions(network=ScoreCNN, density=(0.5, 0.5), event_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="density"):
        WeightedConv2d(1, 1, 3, density=(0.0,))
