"""The U-Nets: shapes, conditioning, layout, precision, and the contract every network keeps."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from scoreexp.networks import NCSNpp, UNet, UNetPublished
from scoreexp.networks.layers import EXPLICIT_ATTENTION_PIXELS, NoiseFeatures, SelfAttention, attend
from scoreexp.schedules import DDPM, EDM

NETWORKS = Path(__file__).parents[2] / "conf" / "network"
TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}


def tiny(event_shape=(3, 8, 8), **kwargs):
    return UNet(event_shape=event_shape, **{**TINY, **kwargs})


def tiny_published(event_shape=(3, 8, 8), **kwargs):
    return UNetPublished(event_shape=event_shape, **{"widths": (8, 16, 32), **kwargs})


FAMILIES = [tiny, tiny_published]


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


@pytest.mark.parametrize(
    ("event_shape", "config"),
    [
        ((3, 8, 8), {}),
        ((1, 8, 8), {"num_classes": 4}),
        ((2, 12, 4), {"time_conditioning": False}),
        ((3, 6, 10), {"attention_resolutions": (), "blocks": 2}),
        ((3, 8, 16), {"multipliers": (1, 2, 3), "hidden_ratio": 0.5, "heads": 2}),
        ((3, 5, 7), {"multipliers": (1,), "attention_resolutions": (5,), "hidden_ratio": 2.0}),
        (
            (3, 8, 8),
            {"channels": 12, "dropout": 0.5, "embedding_channels": 10, "attention_resolutions": (8, 4)},
        ),
    ],
)
def test_output_has_the_shape_of_the_input(event_shape, config):
    network = awake(tiny(event_shape, **config))
    x, c_noise = inputs(3, event_shape)
    y = network(x, c_noise)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all()


def test_published_output_has_the_shape_of_the_input():
    x, c_noise = inputs(2, (1, 8, 16))
    assert tiny_published((1, 8, 16))(x, c_noise).shape == x.shape


def test_a_new_unet_is_the_zero_function():
    assert torch.count_nonzero(tiny()(*inputs())) == 0


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (tiny, {}),
        (tiny, {"num_classes": 3}),
        (tiny, {"time_conditioning": True, "num_classes": 3}),
        (tiny_published, {"num_classes": 3}),
    ],
)
def test_gradient_reaches_every_parameter(make, config):
    network = awake(make(**config))
    x, c_noise = inputs()
    labels = torch.tensor([0, 1]) if "num_classes" in config else None
    network(x, c_noise, labels).square().sum().backward()
    unreached = [
        name for name, p in network.named_parameters() if p.grad is None or torch.count_nonzero(p.grad) == 0
    ]
    assert unreached == []


def test_time_conditioning_is_a_switch():
    x, c_noise = inputs()
    on, off = (awake(tiny(time_conditioning=switch)) for switch in (True, False))
    assert not torch.equal(on(x, c_noise), on(x, c_noise + 0.1))
    assert torch.equal(off(x, c_noise), off(x, c_noise + 0.1))


def test_published_network_ignores_time_and_labels():
    network = awake(tiny_published(num_classes=3))
    x, c_noise = inputs()
    assert torch.equal(network(x, c_noise), network(x, c_noise + 0.1, torch.tensor([0, 1])))


def test_no_label_is_the_null_label():
    network = awake(tiny(num_classes=3))
    x, c_noise = inputs()
    null = network(x, c_noise)
    assert torch.equal(null, network(x, c_noise, torch.tensor([3, 3])))
    for label in range(3):
        assert not torch.equal(null, network(x, c_noise, torch.tensor([label, label])))


def test_labels_without_classes_are_refused():
    with pytest.raises(ValueError, match="set num_classes"):
        tiny()(*inputs(), torch.tensor([0, 1]))


def test_noise_features_tell_every_level_apart_and_are_smooth():
    # neighbouring levels 0.01 apart: the fastest wave, 8 pi, moves its pair of features by at most 0.08 pi
    features = NoiseFeatures(16)
    c_noise = torch.linspace(-2.5, 1.26, 377)
    values = features(c_noise)
    assert values.shape == (377, 16)
    assert values.diff(dim=0).abs().max() <= 8 * torch.pi * 0.01
    distances = torch.cdist(values, values) + torch.eye(377)
    assert distances.min() > 0.05


def test_noise_features_end_where_ddpm_ends():
    ends = torch.stack([schedule.noise_level(torch.tensor(schedule.t_max)) for schedule in (DDPM(), EDM())])
    inside, infinite = NoiseFeatures(16)(ends.log() / 4), NoiseFeatures(16)(torch.tensor([10.0]))
    assert (inside - infinite).abs().amax(1).min() > 1e-3
    assert torch.equal(infinite, NoiseFeatures(16)(torch.tensor([1e4]).log() / 4))


@pytest.mark.parametrize("make", FAMILIES)
def test_images_do_not_depend_on_the_batch(make):
    # float64 rounds at 1e-16: 1e-10 leaves room for another order of summation and for nothing else
    network = awake(make()).double()
    x, c_noise = inputs(4, dtype=torch.float64)
    together = network(x, c_noise)
    alone = torch.cat([network(x[i : i + 1], c_noise[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", FAMILIES)
def test_memory_layout_does_not_change_the_result(make):
    network = awake(make()).double()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    x, c_noise = inputs(dtype=torch.float64)
    y = network(x.contiguous(memory_format=torch.channels_last), c_noise)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(network(x, c_noise), y, rtol=0, atol=0)
    torch.testing.assert_close(plain(x, c_noise), y, rtol=0, atol=1e-10)


def test_activations_stay_channels_last():
    network = awake(tiny())
    layouts = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda m, i, o: layouts.append(o.is_contiguous(memory_format=torch.channels_last))
            )
    network(*inputs())
    assert len(layouts) > 10
    assert all(layouts)


@pytest.mark.parametrize(
    ("make", "size", "factor", "nearest"),
    [
        (tiny, 9, 2, "8 or 10"),
        (tiny, 1, 2, "2"),
        (tiny_published, 10, 4, "8 or 12"),
        (tiny_published, 3, 4, "4"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(make, size, factor, nearest):
    message = (
        f"image size {size} is not divisible by the network's downsampling factor {factor}: .* {nearest}$"
    )
    with pytest.raises(ValueError, match=message):
        make((3, 8, size))
    with pytest.raises(ValueError, match=message):
        make()(*inputs(event_shape=(3, size, 8)))
    assert make().downsampling_factor == factor


@pytest.mark.parametrize(
    "config",
    [
        {"event_shape": (2,)},
        {"multipliers": ()},
        {"heads": 3},
        {"embedding_channels": 3},
    ],
)
def test_bad_arguments_are_refused_in_one_line(config):
    with pytest.raises(ValueError, match=r"\A[^\n]+: [^\n]+\Z|\A[^\n]+ must be [^\n]+\Z"):
        tiny(**config)


@pytest.mark.parametrize("config", [{"widths": ()}, {"widths": (8, 12)}, {"event_shape": (2,)}])
def test_bad_arguments_of_the_published_network_are_refused(config):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        tiny_published(**config)


@pytest.mark.parametrize("pixels", [16, EXPLICIT_ATTENTION_PIXELS + 1])
def test_attention_is_softmax_of_scaled_products(pixels):
    # both ways of computing it agree with the definition; float64 rounds at 1e-16 per term
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, pixels, 4, generator=generator, dtype=torch.float64)
    weights = torch.einsum("bhic,bhjc->bhij", q, k).div(2).exp()
    expected = torch.einsum("bhij,bhjc->bhic", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(attend(q, k, v), expected, rtol=0, atol=1e-12)


def test_attention_commutes_with_a_permutation_of_the_pixels():
    attention = awake(SelfAttention(8, heads=2)).double()
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(attention(x.flip(2)), attention(x).flip(2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "config"),
    [(tiny, {"time_conditioning": True, "num_classes": 2}), (tiny_published, {"widths": (8, 16)})],
)
def test_gradient_is_that_of_finite_differences(make, config):
    network = awake(make((1, 4, 4), **config)).double()
    x, c_noise = inputs(1, (1, 4, 4), torch.float64)
    parameters = [next(network.parameters()), list(network.parameters())[-1]]
    x.requires_grad_()
    c_noise.requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: network(x, c_noise), (x, c_noise, *parameters), fast_mode=True)


@pytest.mark.parametrize("make", FAMILIES)
def test_bf16_autocast_trains_with_float32_norms(make):
    network = awake(make())
    dtypes = []
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda m, i, o: dtypes.append(o.dtype))
    x, c_noise = inputs()
    exact = network(x, c_noise)
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x, c_noise)
    assert y.dtype == torch.bfloat16
    assert set(dtypes) == {torch.float32}
    # bf16 keeps 8 bits: a relative error of 2^-9 in each of some 20 layers stays below a tenth
    assert (y.float() - exact).norm() < 0.1 * exact.norm()
    y.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("make", FAMILIES)
def test_state_dict_round_trip(make):
    x, c_noise = inputs()
    network, other = awake(make(num_classes=2)), awake(make(num_classes=2), seed=1)
    assert not torch.equal(network(x, c_noise), other(x, c_noise))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(x, c_noise), other(x, c_noise))


@pytest.mark.parametrize("make", FAMILIES)
def test_a_copy_computes_with_its_own_weights(make):
    network, other, (x, c_noise) = awake(make()), awake(make(), seed=1), inputs()
    before, changed = network(x, c_noise), copy.deepcopy(network)
    changed.load_state_dict(other.state_dict())
    assert torch.equal(changed(x, c_noise), other(x, c_noise))
    assert torch.equal(network(x, c_noise), before)


def test_compile_in_place_leaves_the_keys_unchanged():
    network = tiny()
    keys = list(network.state_dict())
    network.compile()
    assert list(network.state_dict()) == keys
    network.load_state_dict(tiny().state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("make", FAMILIES)
def test_compiled_result_is_the_eager_one(make):
    # float32 rounds at 6e-8; fused kernels sum in another order through some 20 layers
    network = awake(make())
    x, c_noise = inputs()
    expected = network(x, c_noise)
    network.compile()
    y = network(x, c_noise)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "millions"), [("unet_1m", 1), ("unet_9m", 9), ("unet_35m", 35), ("unet", 0.95)]
)
def test_sizes_of_the_configurations(name, millions):
    config = yaml.safe_load((NETWORKS / f"{name}.yaml").read_text())
    assert config.pop("_target_") == "scoreexp.networks.UNet"
    with torch.device("meta"):
        network = UNet(event_shape=(3, 32, 32), **config)
    parameters = sum(p.numel() for p in network.parameters())
    assert abs(parameters / 1e6 / millions - 1) < 0.1


def test_the_published_configuration_has_as_many_parameters_as_the_program():
    config = yaml.safe_load((NETWORKS / "unet_published.yaml").read_text())
    assert config.pop("_target_") == "scoreexp.networks.UNetPublished"
    with torch.device("meta"):
        network = UNetPublished(event_shape=(3, 32, 32), **config)
    # the program counts 35,985,539; its time embedding 256 -> 512 -> 512, which it does not use, has 394,240
    assert sum(p.numel() for p in network.parameters()) == 35_985_539 - (256 * 512 + 512 + 512 * 512 + 512)
    assert network.downsampling_factor == 16


def test_published_network_is_the_stated_composition_of_layers():
    network = awake(tiny_published()).double()
    p = dict(network.named_parameters())

    def convolved(h, name):
        for conv, norm in ((0, 1), (3, 4)):
            h = F.conv2d(h, p[f"{name}.{conv}.weight"], p[f"{name}.{conv}.bias"], padding=1)
            h = F.relu(F.group_norm(h, 8, p[f"{name}.{norm}.weight"], p[f"{name}.{norm}.bias"], 1e-5))
        return h

    def interpolated(h):
        # corners stay corners: pixel i of 2 n lies at i (n - 1) / (2 n - 1) of the n
        for dim in (2, 3):
            n = h.shape[dim]
            position = torch.arange(2 * n, dtype=h.dtype) * (n - 1) / (2 * n - 1)
            weight = (1 - (position[:, None] - torch.arange(n, dtype=h.dtype)).abs()).clamp(min=0)
            h = torch.tensordot(h, weight, dims=([dim], [1])).movedim(-1, dim)
        return h

    x, c_noise = inputs(dtype=torch.float64)
    fine = convolved(x, "down.0")
    middle = convolved(F.max_pool2d(fine, 2), "down.1")
    coarse = convolved(F.max_pool2d(middle, 2), "down.2")
    normed = F.group_norm(coarse, 8, p["attention.norm.weight"], p["attention.norm.bias"], 1e-5).flatten(2)
    q, k, v = (
        torch.einsum("oc,bcn->bon", weight, normed) + bias[:, None]
        for weight, bias in zip(p["attention.qkv.weight"].chunk(3), p["attention.qkv.bias"].chunk(3))
    )
    weights = (torch.einsum("bcn,bcm->bnm", q, k) / 32**0.5).softmax(dim=2)
    seen = torch.einsum("bnm,bcm->bcn", weights, v)
    out = torch.einsum("oc,bcn->bon", p["attention.out.weight"], seen) + p["attention.out.bias"][:, None]
    h = coarse + out.reshape(coarse.shape)
    h = convolved(torch.cat([middle, interpolated(h)], dim=1), "up.0")
    h = convolved(torch.cat([fine, interpolated(h)], dim=1), "up.1")
    expected = F.conv2d(h, p["conv_out.weight"], p["conv_out.bias"])
    # float64 rounds at 1e-16; twenty layers of sums of at most some hundred terms stay below 1e-10
    torch.testing.assert_close(network(x, c_noise), expected, rtol=0, atol=1e-10)


def test_no_layer_of_the_published_network_starts_at_zero():
    assert all(
        torch.count_nonzero(p) for name, p in tiny_published().named_parameters() if name.endswith("weight")
    )


def test_hidden_widths_may_differ_by_level():
    net = UNet(event_shape=(3, 16, 16), channels=32, multipliers=(1, 2), blocks=1, hidden_ratio=(0.5, 1.5))
    assert net.hidden == [16, 96, 96, 96, 16], "down, middle, up"
    same = UNet(event_shape=(3, 16, 16), channels=32, multipliers=(1, 2), blocks=1, hidden_ratio=(0.5, 0.5))
    one = UNet(event_shape=(3, 16, 16), channels=32, multipliers=(1, 2), blocks=1, hidden_ratio=0.5)
    assert same.hidden == one.hidden
    with pytest.raises(ValueError, match="3 values for 2 levels"):
        UNet(event_shape=(3, 16, 16), channels=32, multipliers=(1, 2), hidden_ratio=(1.0, 1.0, 1.0))


def tiny_plus_plus(**kwargs):
    sizes = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
    return NCSNpp(event_shape=(3, 8, 8), **{**sizes, **kwargs})


@pytest.mark.parametrize(
    "make",
    [
        *FAMILIES,
        lambda: tiny_plus_plus(progressive_output="output_skip"),
        lambda: tiny_plus_plus(progressive_input="input_skip"),
        lambda: tiny_plus_plus(progressive_input="none", multipliers=(1,)),
    ],
)
def test_a_part_that_is_replaced_is_the_one_that_runs(make):
    """As quantisation and low-rank adapters replace layers: a reference kept aside would go on with the old one."""
    network = awake(make())
    x, c_noise = inputs()
    expected = network(x, c_noise)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, copy.deepcopy(child))
            for parameter in child.parameters():
                parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(network(x, c_noise), expected)
