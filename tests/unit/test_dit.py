"""The diffusion transformer: patches, conditioning, positions, and what is refused."""

import pytest
import torch

from scoreexp.core.streams import generator
from scoreexp.networks import DiT

TINY = {"channels": 8, "blocks": 2, "heads": 2, "patch": 2}


def tiny(event_shape=(3, 8, 12), **config):
    """A network with random weights, those that start at zero included."""
    network = DiT(event_shape=event_shape, **{**TINY, **config})
    stream = generator(0, "weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream))
    return network


def inputs(batch=3, event_shape=(3, 8, 12)):
    x = torch.randn(batch, *event_shape, generator=generator(0, "x"))
    return x, torch.linspace(-2.5, 1.5, batch)


@pytest.mark.parametrize("config", [{}, {"num_classes": 4}, {"time_conditioning": False}, {"patch": 4}])
def test_shape_and_gradients_of_every_parameter(config):
    network, (x, c_noise) = tiny(**config), inputs()
    labels = torch.tensor([0, 1, 4]) if "num_classes" in config else None  # 4 is the null label
    out = network(x, c_noise, labels)
    assert out.shape == x.shape
    out.square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    expected = [name for name in unused if name.endswith("modulation.weight")]  # of what nothing conditions
    assert unused == (expected if config == {"time_conditioning": False} else [])


def test_a_new_network_is_the_zero_function_and_its_blocks_are_the_identity():
    network = DiT(event_shape=(3, 8, 12), **TINY)
    assert torch.count_nonzero(network(*inputs())) == 0
    h, embedding = torch.randn(2, 5, 8), torch.randn(2, 8)
    assert all(torch.equal(block(h, embedding), h) for block in network.blocks)


def test_samples_do_not_see_each_other_and_conditions_matter():
    network, (x, c_noise) = tiny(num_classes=4), inputs()
    label = torch.full((3,), 2)
    torch.testing.assert_close(network(x, c_noise)[1:2], network(x[1:2], c_noise[1:2]))
    assert not torch.allclose(network(x, c_noise), network(x, c_noise + 0.1))
    assert not torch.allclose(network(x, c_noise), network(x, c_noise, label))
    assert torch.equal(network(x, c_noise), network(x, c_noise, torch.full((3,), 4)))


def test_a_patch_returns_to_its_place():
    # with attention off, the output of a patch depends on the input of that patch alone
    network, (x, c_noise) = tiny(), inputs(1)
    for block in network.blocks:
        torch.nn.init.zeros_(block.out.weight)
    changed = x.clone()
    changed[:, :, 2:4, 6:8] += 1
    difference = (network(changed, c_noise) - network(x, c_noise)).abs() > 1e-7
    assert difference[:, :, 2:4, 6:8].all()
    difference[:, :, 2:4, 6:8] = False
    assert not difference.any()
    # with attention on, of all
    assert ((tiny()(changed, c_noise) - tiny()(x, c_noise)).abs() > 0).all()


def test_positions_are_told_apart_and_any_size_is_taken():
    network, c_noise = tiny(), torch.zeros(1)
    flat = network(torch.ones(1, 3, 8, 8), c_noise)
    patches = torch.nn.functional.pixel_unshuffle(flat, 2).flatten(2)[0].T
    assert torch.cdist(patches, patches).add(torch.eye(16)).min() > 1e-4
    assert network(torch.zeros(1, 3, 4, 6), c_noise).shape == (1, 3, 4, 6)


def test_what_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"image size 10 is not divisible .* factor 4: .* 8 or 12"):
        DiT(event_shape=(3, 8, 10), channels=8, heads=2, patch=4)
    with pytest.raises(ValueError, match=r"image size 7 is not divisible"):
        tiny()(torch.zeros(1, 3, 8, 7), torch.zeros(1))
    for channels, heads in ((12, 5), (6, 2)):
        with pytest.raises(
            ValueError, match=rf"channels={channels} with heads={heads}: choose channels divisible"
        ):
            DiT(event_shape=(3, 8, 8), channels=channels, heads=heads)
    with pytest.raises(ValueError, match="no classes"):
        tiny()(*inputs(), torch.zeros(3, dtype=torch.long))
