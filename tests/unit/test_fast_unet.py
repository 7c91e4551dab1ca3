"""The spectral residual against the exact denoiser of a Gaussian, and the modulated U-Net."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from scoreexp.denoisers import Denoiser, EDMPrediction, OracleDenoiser, VPrediction
from scoreexp.networks import ModulatedUNet, SpectralResidual
from scoreexp.networks.spectral import cosines
from scoreexp.numerics.oracles import Gaussian
from scoreexp.schedules import EDM, VP

SHAPE = (2, 4, 6)
TIMES = torch.tensor([0.01, 0.3, 5.0], dtype=torch.float64)


class Echo(nn.Module):
    """Returns its input and remembers it."""

    def __init__(self, *, event_shape, num_classes=None):
        super().__init__()

    def forward(self, x, c_noise, cond=None):
        self.seen = x
        return x


def tiny(**kwargs):
    return ModulatedUNet(**{"event_shape": SHAPE, "widths": (16, 32), "blocks": (1, 2), "bands": 2, **kwargs})


def awake(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def transform(dtype=torch.float64):
    """The cosine transform of a flat image, one matrix."""
    like = torch.zeros(1, dtype=dtype)
    rows, columns = torch.kron(cosines(SHAPE[1], like), cosines(SHAPE[2], like)), cosines(SHAPE[0], like)
    return torch.kron(columns, rows)


def test_a_new_network_is_the_posterior_mean_of_a_gaussian_with_its_spectrum():
    network = SpectralResidual(network=partial(tiny), event_shape=SHAPE, sigma_data=0.4).double()
    basis = transform()
    covariance = 0.4**2 * basis.T @ torch.diag(network.power(*SHAPE[1:]).flatten().detach()) @ basis
    mean = torch.zeros(basis.shape[0], dtype=torch.float64)
    oracle = OracleDenoiser(Gaussian(mean, covariance), EDM())
    x_t = normal(3, *SHAPE, dtype=torch.float64)
    expected = oracle(x_t.flatten(1), TIMES).view_as(x_t)
    torch.testing.assert_close(Denoiser(network, EDMPrediction(0.4), EDM())(x_t, TIMES), expected)


def test_the_inner_network_sees_white_data_and_with_a_white_spectrum_is_all_there_is():
    network = SpectralResidual(network=Echo, event_shape=SHAPE, sigma_data=0.5, scale=0.25).double()
    noisy = 0.3  # sigma
    s2, c_noise = (noisy / 0.5) ** 2, torch.tensor([noisy], dtype=torch.float64).log() / 4
    basis = transform()
    size = basis.shape[0]
    # the map of an image to what the inner network sees, column by column
    network(torch.eye(size, dtype=torch.float64).view(size, *SHAPE), c_noise.expand(size))
    seen = network.network.seen.flatten(1).T.detach()
    power = network.power(*SHAPE[1:]).flatten().detach()
    data = basis.T @ torch.diag((power + s2) / (1 + s2)) @ basis  # covariance of c_in x_t
    torch.testing.assert_close(seen @ data @ seen.T, torch.eye(size, dtype=torch.float64))

    with torch.no_grad():
        network.log_power.zero_()
        network.exponent.zero_()
    x = normal(3, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(network(x, TIMES.log() / 4), 0.25 * x)


def test_the_spectrum_is_learned_and_other_sizes_have_their_own_transform():
    network = awake(SpectralResidual(network=partial(tiny), event_shape=SHAPE))
    network(normal(2, 2, 8, 4), torch.zeros(2)).square().sum().backward()
    assert all(p.grad is not None and torch.count_nonzero(p.grad) for p in network.parameters())
    kept = SpectralResidual(network=partial(tiny), event_shape=SHAPE, learned=False)
    assert {name for name, p in kept.named_parameters() if not p.requires_grad} == {
        "log_power",
        "exponent",
        "log_corner",
    }


def test_bfloat16_autocast_leaves_the_filter_exact():
    network = SpectralResidual(network=partial(tiny), event_shape=SHAPE)
    x, c_noise = normal(2, *SHAPE), torch.tensor([-1.5, 0.2])
    expected = network(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x, c_noise), expected)


def test_another_preconditioning_is_refused():
    network = SpectralResidual(network=partial(tiny), event_shape=SHAPE)
    for preconditioning, schedule in ((VPrediction(), VP()), (EDMPrediction(0.4), EDM())):
        with pytest.raises(
            ValueError, match=r"made for EDM's output with sigma_data=0.5.*choose precond=edm"
        ):
            Denoiser(network, preconditioning, schedule)
    with pytest.raises(ValueError, match=r"event_shape=\(2,\): SpectralResidual is for images"):
        SpectralResidual(network=Echo, event_shape=(2,))


def test_modulated_unet_starts_at_zero_and_every_parameter_learns():
    network = tiny(num_classes=3)
    x, c_noise = normal(2, *SHAPE), torch.tensor([-1.0, 0.5])
    assert torch.count_nonzero(network(x, c_noise)) == 0
    awake(network)
    network(x, c_noise, torch.tensor([0, 2])).square().sum().backward()
    assert all(p.grad is not None and torch.count_nonzero(p.grad) for p in network.parameters())
    null = network(x, c_noise)
    assert torch.equal(null, network(x, c_noise, torch.tensor([3, 3])))
    assert not torch.allclose(null, network(x, c_noise + 0.1))


def test_modulated_unet_is_the_stated_composition_of_layers():
    network = awake(tiny(blocks=(1, 1))).double()
    x, c_noise = normal(2, *SHAPE, dtype=torch.float64), torch.tensor([-1.0, 0.5], dtype=torch.float64)
    modulation = network.modulation(network.conditioning(c_noise, None))[:, :, None, None]
    widths = [16, 32, 32, 16]
    shift, gate = (part.split(widths, dim=1) for part in modulation.chunk(2, dim=1))

    def block(h, module, i):
        centred = h - h.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        hidden = F.silu(F.conv2d(normed, module.conv1.weight, padding=1) + shift[i])
        return h + gate[i] * F.conv2d(hidden, module.conv2.weight, padding=1)

    skip = block(network.stem(x), network.down[0], 0)
    h = block(network.downsample[0](skip), network.down[1], 1)
    h = block(h, network.up[0], 2)
    # one 1x1 convolution of the concatenation (skip, upsampled)
    joined = torch.cat([skip, h.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
    kernel = torch.cat([network.skip[0].weight, network.upsample[0].weight], 1)
    h = F.conv2d(joined, kernel, network.skip[0].bias + network.upsample[0].bias)
    found, fine_gain, coarse_gain = network.conv_out(block(h, network.up[1], 3)).chunk(3, dim=1)
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    expected = found + fine_gain * (x - coarse) + coarse_gain * coarse
    torch.testing.assert_close(network(x, c_noise), expected)


def test_resampling_starts_near_means_and_copies():
    network = tiny(blocks=(1, 1))
    mean = torch.zeros(32, 16, 2, 2)
    mean[range(32), [*range(16), *range(16)]] = 0.25
    fold = torch.cat([torch.eye(16), torch.eye(16)], 1)[:, :, None, None] / 2
    copies = torch.eye(16)[:, :, None, None]
    for conv, start in (network.downsample[0], mean), (network.upsample[0], fold), (network.skip[0], copies):
        random = (conv.weight - start).abs().max()  # torch draws it within 1 / sqrt(fan-in)
        assert 0 < random <= start[0].numel() ** -0.5


def test_wrong_levels_are_refused():
    with pytest.raises(ValueError, match="blocks has 1 values for the 2 levels of widths"):
        tiny(blocks=(1,))
    with pytest.raises(ValueError, match="bands=3 for 2 levels"):
        tiny(bands=3)
    with pytest.raises(ValueError, match="downsampling factor 2"):
        tiny(event_shape=(3, 5, 4))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("unet_fast_1m", 0.9e6, 1.1e6), ("unet_fast_9m", 8e6, 10e6)]
)
def test_sizes_of_the_configurations(name, low, high):
    config = yaml.safe_load((Path(__file__).parents[2] / "conf" / "network" / f"{name}.yaml").read_text())
    inner = {key: value for key, value in config.pop("network").items() if not key.startswith("_")}
    assert config.pop("_target_") == "scoreexp.networks.SpectralResidual"
    with torch.device("meta"):
        network = SpectralResidual(event_shape=(3, 32, 32), network=partial(ModulatedUNet, **inner), **config)
    assert low < sum(p.numel() for p in network.parameters()) < high
