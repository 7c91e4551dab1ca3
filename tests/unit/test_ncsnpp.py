"""NCSN++ and DDPM++: the filter, the published sizes, variance, conditioning, and the contract every network keeps."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.signal import upfirdn
from torch import nn

from scoreexp.networks import NCSNpp
from scoreexp.networks.ncsnpp import (
    Attention,
    FineGroupNorm,
    FIRFilter,
    FIRUpsample,
    GaussianFourierFeatures,
    InputResidual,
    Readout,
    ResidualBlock,
)

CONF = Path(__file__).parents[2] / "conf"
TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
DDPMPP = {"embedding": "positional", "fir": False, "progressive_input": "none"}
SKIPS = {"progressive_input": "input_skip", "progressive_output": "output_skip"}
KINDS = [{}, DDPMPP, SKIPS]
TAPS = np.array([1, 3, 3, 1]) / 8


def tiny(event_shape=(3, 8, 8), **kwargs):
    return NCSNpp(event_shape=event_shape, **{**TINY, **kwargs})


def awake(network, seed=0):
    """The network with parameters drawn at random, those that start at zero included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(batch=2, event_shape=(3, 8, 8), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *event_shape, generator=generator, dtype=dtype)
    return x, torch.linspace(-2.5, 1.5, batch, dtype=dtype)


def resampled(x, *, up=1, down=1, gain=1.0, padding):
    """Both axes of ``x[..., H, W]`` by scipy: zeros inserted, ``padding`` more around, filtered, decimated."""
    for axis in (-1, -2):
        before, after = padding
        zeros = np.zeros_like(np.take(x, [0], axis))
        y = upfirdn([1.0], x, up=up, axis=axis)  # n up - (up - 1) values
        y = np.concatenate([zeros] * before + [y] + [zeros] * (after + up - 1), axis)
        full = upfirdn(gain * TAPS, y, axis=axis)
        valid = np.take(full, range(len(TAPS) - 1, y.shape[axis]), axis)
        x = np.take(valid, range(0, valid.shape[axis], down), axis)
    return x


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (FIRFilter(stride=2, padding=1), {"down": 2, "padding": (1, 1)}),
        (FIRFilter(stride=1, padding=2), {"padding": (2, 2)}),
        (FIRUpsample(), {"up": 2, "gain": 2.0, "padding": (2, 1)}),
    ],
)
def test_filter_is_that_of_scipy(module, expected):
    # the published paddings; float64 rounds at 1e-16 per term
    x = torch.randn(2, 3, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = module.double()(x)
    np.testing.assert_allclose(y.numpy(), resampled(x.numpy(), **expected), rtol=0, atol=1e-14)


def test_filter_keeps_constants_and_removes_what_aliases():
    down, up = FIRFilter(stride=2, padding=1), FIRUpsample()
    ones = torch.ones(1, 2, 8, 8)
    checkerboard = ones * (-1) ** torch.arange(8) * ((-1) ** torch.arange(8))[:, None]
    inside = (..., slice(1, -1), slice(1, -1))
    assert torch.equal(down(ones)[inside], ones[..., :2, :2])
    assert torch.equal(up(ones)[inside], torch.ones(1, 2, 14, 14))
    assert torch.count_nonzero(down(checkerboard)[inside]) == 0
    assert down(ones).shape == (1, 2, 4, 4)
    assert up(ones).shape == (1, 2, 16, 16)


def test_upsampling_is_the_transpose_of_downsampling():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 8, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 2, 4, 3, generator=generator, dtype=torch.float64)
    down, up = FIRFilter(stride=2, padding=1).double(), FIRUpsample().double()
    torch.testing.assert_close((4 * down(x) * y).sum(), (x * up(y)).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("event_shape", "config"),
    [
        ((3, 8, 8), {}),
        ((1, 8, 8), {"num_classes": 4}),
        ((2, 12, 4), DDPMPP),
        ((3, 8, 16), {"multipliers": (1, 2, 3), **SKIPS}),
        ((1, 8, 4), {"multipliers": (1, 2, 1), "blocks": 2, "progressive_input": "input_skip"}),
        ((3, 6, 10), {"attention_resolutions": (), "blocks": 2, "progressive_output": "output_skip"}),
        (
            (3, 5, 7),
            {"multipliers": (1,), "attention_resolutions": (5,), "progressive_output": "output_skip"},
        ),
        ((3, 8, 8), {"channels": 6, "dropout": 0.5, "fir": False, "attention_resolutions": (8, 4)}),
    ],
)
def test_output_has_the_shape_of_the_input(event_shape, config):
    x, c_noise = inputs(3, event_shape)
    y = awake(tiny(event_shape, **config))(x, c_noise)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all()


def published(name, **changes):
    """Constructor arguments of conf/network/<name>.yaml."""
    config = yaml.safe_load((CONF / "network" / f"{name}.yaml").read_text())
    for base in config.pop("defaults", []):
        config = {**published(base), **config}
    config.pop("_target_", None)
    return {**config, **changes}


@pytest.mark.parametrize(
    ("name", "changes", "size", "parameters", "attentions"),
    [  # trainable parameters of the networks that the paper's authors published; attention after every block of the level
        # on the way down, once in the middle, once on the way up
        ("ncsnpp", {}, 32, 62_758_787, 4 + 1 + 1),
        ("ncsnpp", {"blocks": 8}, 32, 107_586_947, 8 + 1 + 1),
        ("ddpmpp", {}, 32, 61_804_419, 4 + 1 + 1),
        ("ddpmpp", {"blocks": 8}, 32, 106_632_579, 8 + 1 + 1),
        ("ncsnpp", "ffhq256_ncsnpp", 256, 65_574_421, 2 + 1 + 1),
    ],
)
def test_sizes_are_the_published_ones(name, changes, size, parameters, attentions):
    if isinstance(changes, str):
        changes = yaml.safe_load((CONF / "experiment" / f"{changes}.yaml").read_text())["network"]
    with torch.device("meta"):
        network = NCSNpp(event_shape=(3, size, size), **published(name, **changes))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(isinstance(m, Attention) for m in network.modules()) == attentions


def test_attention_follows_every_block_down_and_the_last_one_up():
    network = tiny(multipliers=(1, 2, 2), blocks=2, attention_resolutions=(4,))
    attends = [[isinstance(b.attention, Attention) for b in way] for way in (network.down, network.up)]
    assert attends[0] == [False, False, True, True, False, False]
    assert attends[1] == [False, False, False, False, False, True, False, False, False]


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (8, 2), (64, 16), (128, 32), (256, 32), (384, 32)])
def test_normalisation_groups_are_the_published_ones(channels, groups):
    assert FineGroupNorm(channels).num_groups == groups


@pytest.mark.parametrize("config", KINDS)
def test_a_new_network_is_the_zero_function(config):
    assert torch.count_nonzero(tiny(**config)(*inputs())) == 0


@pytest.mark.parametrize("config", KINDS)
def test_sums_of_two_branches_are_divided_by_the_root_of_two(config):
    # in a new network the second branch is zero
    network = tiny(channels=16, **config).eval()
    kept = []
    for module in network.modules():
        if isinstance(module, ResidualBlock) and isinstance(module.shortcut, nn.Identity):
            attended = not isinstance(module.attention, nn.Identity)
            module.register_forward_hook(lambda m, i, y, n=1 + attended: kept.append(y - i[0] / 2 ** (n / 2)))
    network(*inputs())
    assert len(kept) >= 3
    assert max(difference.abs().max() for difference in kept) < 1e-6


def test_twenty_blocks_keep_the_variance():
    # Branch and stream are independent and of variance 1, so (stream + branch) / sqrt(2) is too: the branch, because its
    # last convolution has weights of variance 1 / (fan in E silu(z)^2), with E silu(z)^2 = 0.356 for normal z. Zeros at
    # the border take about a tenth of the branch's variance, 64 random channels a few per cent.
    generator = torch.Generator().manual_seed(0)
    block = ResidualBlock(64, 64, 8, 0.0).requires_grad_(False)
    h = torch.randn(2, 64, 16, 16, generator=generator)
    for _ in range(20):
        block.conv1.weight.normal_(std=(9 * 64) ** -0.5, generator=generator)
        block.conv2.weight.normal_(std=(9 * 64 * 0.356) ** -0.5, generator=generator)
        h = block(h, torch.zeros(2, 8))
        assert 0.75 < h.var() < 1.25


def test_residual_pyramid_keeps_the_variance():
    joint = InputResidual(4, 4, fir=True).requires_grad_(False)
    joint.conv.weight.zero_()
    joint.conv.bias.zero_()
    h = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for new in joint(h, torch.ones(1, 4, 8, 8)):
        torch.testing.assert_close(new, h / 2**0.5)


@pytest.mark.parametrize(
    ("fir", "down", "up"), [(True, FIRFilter, FIRUpsample), (False, nn.AvgPool2d, nn.Upsample)]
)
def test_blocks_resample_by_the_filter_or_without(fir, down, up):
    network = tiny(fir=fir)
    assert [type(block.resample) for block in network.downsample] == [down]
    assert [type(block.resample) for block in network.upsample] == [up]


def test_every_level_adds_to_the_output():
    network = tiny((2, 16, 16), multipliers=(1, 1, 1), **SKIPS)
    with torch.no_grad():
        for readout, value in zip(network.readouts, (1.0, 2.0, 4.0), strict=True):
            readout.conv.bias.fill_(value)
    up = FIRUpsample()
    ones = torch.ones(1, 2, 4, 4)
    expected = up(up(ones) + 2) + 4
    torch.testing.assert_close(network(*inputs(1, (2, 16, 16))), expected)


def test_input_enters_every_level():
    # cut off above: the stem is silent, so a level below sees the image through the pyramid alone
    for progressive_input, changes in (("none", False), ("input_skip", True), ("residual", True)):
        network = awake(tiny(progressive_input=progressive_input))
        nn.init.zeros_(network.stem.weight)
        x, c_noise = inputs()
        assert torch.equal(network(x, c_noise), network(2 * x, c_noise)) != changes


def test_fourier_features_are_waves_of_log_sigma():
    torch.manual_seed(0)
    features = GaussianFourierFeatures(8192, 16.0).double()
    w = features.frequencies
    # the standard deviation of n normal numbers has relative error 1 / sqrt(2 n) = 1.1 %; five of those
    assert w.std() == pytest.approx(16.0, rel=5 / (2 * 4096) ** 0.5)
    log_sigma = torch.tensor([-4.0, 0.3], dtype=torch.float64)
    phase = 2 * torch.pi * log_sigma[:, None] * w
    expected = torch.cat([phase.cos(), phase.sin()], dim=1)
    torch.testing.assert_close(features(log_sigma / 4), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", [*KINDS, {"num_classes": 3}])
def test_gradient_reaches_every_parameter(config):
    network = awake(tiny(**config))
    labels = torch.tensor([0, 1]) if "num_classes" in config else None
    network(*inputs(), labels).square().sum().backward()
    unreached = [
        name for name, p in network.named_parameters() if p.grad is None or torch.count_nonzero(p.grad) == 0
    ]
    assert unreached == []


@pytest.mark.parametrize("config", KINDS)
def test_noise_level_changes_the_output(config):
    network, (x, c_noise) = awake(tiny(**config)), inputs()
    assert not torch.equal(network(x, c_noise), network(x, c_noise + 0.01))


def test_no_label_is_the_null_label():
    network, (x, c_noise) = awake(tiny(num_classes=3)), inputs()
    null = network(x, c_noise)
    assert torch.equal(null, network(x, c_noise, torch.tensor([3, 3])))
    for label in range(3):
        assert not torch.equal(null, network(x, c_noise, torch.tensor([label, label])))
    with pytest.raises(ValueError, match="set num_classes"):
        tiny()(x, c_noise, torch.tensor([0, 1]))


@pytest.mark.parametrize("config", KINDS)
def test_images_do_not_depend_on_the_batch(config):
    # float64 rounds at 1e-16: 1e-10 leaves room for another order of summation and for nothing else
    network = awake(tiny(**config)).double()
    x, c_noise = inputs(3, dtype=torch.float64)
    alone = torch.cat([network(x[i : i + 1], c_noise[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, c_noise), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", KINDS)
def test_activations_stay_channels_last_and_layout_changes_nothing(config):
    network = awake(tiny(**config)).double()
    layouts = []
    x, c_noise = inputs(dtype=torch.float64)
    hooks = [
        module.register_forward_hook(
            lambda m, i, o: layouts.append(o.is_contiguous(memory_format=torch.channels_last))
        )
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, FIRFilter, nn.AvgPool2d, nn.Upsample))
    ]
    y = network(x, c_noise)
    assert len(layouts) > 10
    assert all(layouts)
    for hook in hooks:
        hook.remove()
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(plain(x, c_noise), y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", KINDS)
def test_bf16_autocast_trains(config):
    network = awake(tiny(**config))
    x, c_noise = inputs()
    exact = network(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x, c_noise)
    # bf16 keeps 8 bits: a relative error of 2^-9 in each of some 20 layers stays below a tenth
    assert (y.float() - exact).norm() < 0.1 * exact.norm()
    y.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def step(network):
    """Gradients of one step with dropout, and the number of values kept for the backward pass."""
    kept = []
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = network(*inputs()).square().sum()
    loss.backward()
    return [p.grad for p in network.parameters()], sum(kept)


def test_gradient_checkpointing_changes_the_memory_and_nothing_else():
    plain, checkpointed = (
        awake(tiny(dropout=0.5, gradient_checkpointing=switch, **SKIPS)) for switch in (False, True)
    )
    checkpointed.load_state_dict(plain.state_dict())
    gradients, values = step(plain)
    recomputed, fewer = step(checkpointed)
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))
    assert fewer < values / 2


def test_state_dict_holds_the_frequencies():
    x, c_noise = inputs()
    network, other = awake(tiny()), awake(tiny(), seed=1)
    assert not torch.equal(network(x, c_noise), other(x, c_noise))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(x, c_noise), other(x, c_noise))


@pytest.mark.parametrize("config", KINDS)
def test_a_copy_computes_with_its_own_weights(config):
    network, other, (x, c_noise) = awake(tiny(**config)), awake(tiny(**config), seed=1), inputs()
    before, changed = network(x, c_noise), copy.deepcopy(network)
    changed.load_state_dict(other.state_dict())
    assert torch.equal(changed(x, c_noise), other(x, c_noise))
    assert torch.equal(network(x, c_noise), before)


def test_new_weights_have_the_published_variance():
    # uniform of variance 2 / (fan in + fan out); of n uniform numbers it has relative error sqrt(0.8 / n) < 0.7 %
    torch.manual_seed(0)
    network = NCSNpp(event_shape=(3, 8, 8), channels=64, multipliers=(1,), blocks=1)
    block = network.middle[0].requires_grad_(False)
    variance = 2 / (2 * 9 * 64)
    assert block.conv1.weight.var() == pytest.approx(variance, rel=0.03)
    assert block.conv1.weight.abs().max() <= (3 * variance) ** 0.5
    for weight in block.attention.qkv.weight.chunk(3):  # 4096 numbers: 1.4 %
        assert weight.var() == pytest.approx(0.1 * 2 / (2 * 64), rel=0.07)
    zero = [m.conv for m in network.modules() if isinstance(m, Readout)]
    zero += [m.conv2 for m in network.modules() if isinstance(m, ResidualBlock)] + [block.attention.out]
    assert all(torch.count_nonzero(p) == 0 for layer in zero for p in layer.parameters())


@pytest.mark.parametrize(("size", "nearest"), [(9, "8 or 10"), (1, "2")])
def test_sizes_that_do_not_divide_are_refused(size, nearest):
    message = f"image size {size} is not divisible by the network's downsampling factor 2: .* {nearest}$"
    with pytest.raises(ValueError, match=message):
        tiny((3, 8, size))
    with pytest.raises(ValueError, match=message):
        tiny()(*inputs(event_shape=(3, size, 8)))


@pytest.mark.parametrize(
    "config",
    [
        {"event_shape": (2,)},
        {"multipliers": ()},
    ],
)
def test_bad_arguments_are_refused_in_one_line(config):
    with pytest.raises(ValueError, match=r"\A[^\n]+: [^\n]+\Z|\A[^\n]+ must be [^\n]+\Z"):
        tiny(**config)
