"""The U-ViT: its tokens, its long skip connections, and what is refused."""

import pytest
import torch

from scoreexp.core.streams import generator
from scoreexp.networks import UViT

TINY = {"channels": 8, "blocks": 5, "heads": 2, "patch": 2}


def tiny(**config):
    """A network with random weights, those that start at zero included."""
    network, stream = UViT(event_shape=(3, 8, 12), **{**TINY, **config}), generator(0, "weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream))
    return network


def inputs(batch=3):
    x = torch.randn(batch, 3, 8, 12, generator=generator(0, "x"))
    return x, torch.linspace(-2.5, 1.5, batch)


@pytest.mark.parametrize("config", [{}, {"num_classes": 4}, {"time_conditioning": False}])
def test_shape_and_gradients_of_every_parameter(config):
    network, (x, c_noise) = tiny(**config), inputs()
    out = network(x, c_noise, torch.tensor([0, 1, 4]) if "num_classes" in config else None)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_skips_join_mirror_images_first_in_last_out():
    network, seen = tiny(), []
    for block in network.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append((given[1], out)))
    network(*inputs())
    skips = [skip for skip, _ in seen]
    outputs = [out for _, out in seen]
    assert skips[:3] == [None] * 3
    assert torch.equal(skips[3], outputs[1])
    assert torch.equal(skips[4], outputs[0])


def test_conditions_matter_and_samples_do_not_see_each_other():
    network, (x, c_noise) = tiny(num_classes=4), inputs()
    out, label = network(x, c_noise), torch.full((3,), 2)
    torch.testing.assert_close(out[1:2], network(x[1:2], c_noise[1:2]))
    assert not torch.allclose(out, network(x, c_noise + 0.1))
    assert not torch.allclose(out, network(x, c_noise, label))
    assert torch.equal(out, network(x, c_noise, torch.full((3,), 4)))
    assert torch.count_nonzero(UViT(event_shape=(3, 8, 12), **TINY)(x, c_noise)) == 0, "begins as zero"


def test_what_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"image size 10 is not divisible .* factor 4: .* 8 or 12"):
        UViT(event_shape=(3, 8, 10), channels=8, heads=2)
    with pytest.raises(ValueError, match=r"channels=12 with heads=5: choose channels divisible"):
        UViT(event_shape=(3, 8, 8), channels=12, heads=5)
    with pytest.raises(ValueError, match=r"blocks=4 is even: choose 3 or 5"):
        UViT(event_shape=(3, 8, 8), blocks=4)
    with pytest.raises(ValueError, match="no classes"):
        tiny()(*inputs(), torch.zeros(3, dtype=torch.long))
