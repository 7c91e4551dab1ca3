"""The perceptron for points: shapes, conditioning, and that it can learn."""

import pytest
import torch

from scoreexp.core.streams import generator
from scoreexp.networks import MLP

TINY = {"width": 8, "blocks": 2, "embedding_channels": 4}


def tiny(event_shape=(2,), **config):
    """A network with random weights, those that start at zero included."""
    network = MLP(event_shape=event_shape, **{**TINY, **config})
    stream = generator(0, "weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream))
    return network


def inputs(batch=3, event_shape=(2,)):
    x = torch.randn(batch, *event_shape, generator=generator(0, "x"))
    return x, torch.linspace(-2.5, 1.5, batch)


@pytest.mark.parametrize("event_shape", [(2,), (1,), (5,), (3, 4, 2)])
@pytest.mark.parametrize("config", [{}, {"num_classes": 4}, {"time_conditioning": False}])
def test_output_has_the_shape_of_the_input(event_shape, config):
    x, c_noise = inputs(3, event_shape)
    y = tiny(event_shape, **config)(x, c_noise)
    assert y.shape == x.shape
    assert y.dtype == torch.float32


def test_a_new_network_is_the_zero_function():
    assert torch.count_nonzero(MLP(event_shape=(2,), **TINY)(*inputs())) == 0


@pytest.mark.parametrize("config", [{}, {"num_classes": 4}, {"time_conditioning": False}])
def test_gradient_reaches_every_parameter(config):
    network = tiny(**config)
    labels = torch.tensor([0, 1, 4]) if "num_classes" in config else None  # 4 is the null label
    network(*inputs(), labels).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_samples_do_not_see_each_other():
    x, c_noise = inputs()
    network = tiny()
    assert torch.allclose(network(x, c_noise)[1:2], network(x[1:2], c_noise[1:2]), atol=1e-6)


def test_noise_level_and_class_matter_and_null_label_is_no_label():
    x, c_noise = inputs()
    network = tiny(num_classes=4)
    label = torch.full((3,), 2)
    assert not torch.allclose(network(x, c_noise), network(x, c_noise + 0.1))
    assert not torch.allclose(network(x, c_noise), network(x, c_noise, label))
    assert torch.equal(network(x, c_noise), network(x, c_noise, torch.full((3,), 4)))
    blind = tiny(time_conditioning=False)
    assert torch.equal(blind(x, c_noise), blind(x, c_noise + 0.1))


def test_an_odd_embedding_is_named():
    with pytest.raises(ValueError, match="embedding_channels=3"):
        MLP(event_shape=(2,), **{**TINY, "embedding_channels": 3})


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) for a network of \(2,\)"):
        tiny()(*inputs(3, (3,)))
    with pytest.raises(ValueError, match="no classes"):
        tiny()(*inputs(), torch.zeros(3, dtype=torch.long))
