"""EDM2's U-Net: magnitudes at the start, weights that stay normalised, and the published sizes."""

import pytest
import torch

from scoreexp.core.streams import generator
from scoreexp.networks import MagnitudePreservingUNet
from scoreexp.networks.layers import constrain
from scoreexp.networks.unet_edm2 import MPBlock, MPConv, mp_cat, mp_silu, mp_sum

TINY = {"channels": 16, "multipliers": (1, 2), "blocks": 1}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, "x"))


def size(x):
    return x.detach().square().mean().sqrt().item()


def test_each_layer_keeps_unit_variance():
    torch.manual_seed(0)
    a, b = normal(16, 64, 32, 32), normal(16, 32, 32, 32, seed=1)
    inside = MPConv(64, 128, kernel=3)(a)[:, :, 1:-1, 1:-1]  # at the border a kernel sees zeros too
    assert size(inside) == pytest.approx(1, abs=0.01)
    assert size(MPConv(64, 128, kernel=1)(a)) == pytest.approx(1, abs=0.01)
    assert size(mp_silu(a)) == pytest.approx(1, abs=0.01)
    assert size(mp_sum(a[:, :32], b, 0.3)) == pytest.approx(1, abs=0.01)
    joined = mp_cat(a, b, 0.5)
    assert size(joined) == pytest.approx(1, abs=0.01)
    assert joined[:, :64].square().sum() == pytest.approx(joined[:, 64:].square().sum().item(), rel=0.02)


def test_unit_variance_passes_through_the_whole_network():
    torch.manual_seed(0)
    network, sizes = MagnitudePreservingUNet(event_shape=(3, 32, 32)), []
    for module in network.modules():
        if isinstance(module, MPBlock):
            module.register_forward_hook(lambda _, __, out: sizes.append(size(out)))
    with torch.no_grad():
        out = network(normal(4, 3, 32, 32), torch.linspace(-2, 1.5, 4))
    assert torch.count_nonzero(out) == 0, "the gain of the output starts at 0"
    # uncorrelated activations would keep 1; what is lost is at the borders and in the means of attention
    assert len(sizes) == 15
    assert min(sizes) > 0.8
    assert max(sizes) < 1.1


def test_weights_are_back_at_unit_size_after_a_step():
    torch.manual_seed(0)
    network = MagnitudePreservingUNet(event_shape=(3, 8, 8), num_classes=4, **TINY)
    with torch.no_grad():
        for gain in (
            network.gain_out,
            *(m.modulation_gain for m in network.modules() if isinstance(m, MPBlock)),
        ):
            gain.fill_(0.5)
    x, c_noise, labels = normal(2, 3, 8, 8), torch.tensor([-1.0, 0.5]), torch.tensor([0, 4])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(x, c_noise, labels).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters()), (
        "every parameter is trained"
    )
    optimizer.step()
    moved = network(x, c_noise, labels)
    layers = [module for module in network.modules() if isinstance(module, MPConv)]
    assert max(abs(size(layer.weight[0]) - 1) for layer in layers) > 1e-3, "the step changes the norms"
    constrain(network)
    for layer in layers:
        rows = layer.weight.detach().flatten(1).square().mean(1)
        torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-3, rtol=0)
    torch.testing.assert_close(network(x, c_noise, labels), moved, atol=1e-3, rtol=1e-3)  # the same function


def test_the_number_of_parameters_is_the_published_one(monkeypatch):
    monkeypatch.setattr(MPConv, "constrain", lambda self: None)  # slow without values
    for channels, published in (
        (128, 125),
        (192, 280),
        (256, 498),
    ):  # EDM2-XS, S and M for ImageNet-512, millions
        with torch.device("meta"):
            network = MagnitudePreservingUNet(
                event_shape=(4, 64, 64), num_classes=1000, channels=channels, multipliers=(1, 2, 3, 4), blocks=3,
                attention_resolutions=(16, 8),
            )  # fmt: skip
        assert round(sum(p.numel() for p in network.parameters()) / 1e6) == published


def test_conditions_matter_and_samples_do_not_see_each_other():
    torch.manual_seed(0)
    network = MagnitudePreservingUNet(event_shape=(3, 8, 8), num_classes=4, **TINY)
    with torch.no_grad():
        for gain in (p for p in network.parameters() if p.ndim == 0):
            gain.fill_(0.5)
        x, c_noise, label = normal(3, 3, 8, 8), torch.linspace(-2, 1.5, 3), torch.full((3,), 2)
        out = network(x, c_noise)
        torch.testing.assert_close(network(x[1:2], c_noise[1:2]), out[1:2])
        assert not torch.allclose(network(x, c_noise + 0.1), out)
        assert not torch.allclose(network(x, c_noise, label), out)
        assert torch.equal(network(x, c_noise, torch.full((3,), 4)), out)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"image size 10 is not divisible .* factor 4: .* 8 or 12"):
        MagnitudePreservingUNet(event_shape=(3, 8, 10))
    with pytest.raises(ValueError, match=r"heads=3 does not divide the 64 channels"):
        MagnitudePreservingUNet(event_shape=(3, 8, 8), heads=3)
    network = MagnitudePreservingUNet(event_shape=(3, 8, 8), **TINY)
    with pytest.raises(ValueError, match="no classes"):
        network(normal(1, 3, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
