"""Quantised networks: every layer, the error of rounding, files and refusals."""

from functools import partial

import pytest
import torch
import yaml
from torch import nn

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.construct import construct
from scoreexp.core.streams import generator
from scoreexp.denoisers import Denoiser, EDMPrediction
from scoreexp.diagnostics.compression import calibration_set, compression_error, quantise, stored_bytes
from scoreexp.networks import Quantised, UNet
from scoreexp.runs.checkpoint_file import write_checkpoint
from scoreexp.runs.model import load, model_record
from scoreexp.samplers import DDIM, UniformGrid, draw
from scoreexp.schedules import VP

NODE = {
    "_target_": "scoreexp.networks.UNet", "channels": 16, "multipliers": [1, 2], "blocks": 1,
    "attention_resolutions": [4],
}  # fmt: skip
SAMPLER = DDIM(UniformGrid(3))


def unet():
    torch.manual_seed(0)
    network = UNet(event_shape=(1, 8, 8), num_classes=3, **{k: v for k, v in NODE.items() if k[0] != "_"})
    for parameter in network.parameters():  # zeros would hide the errors of all layers before them
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    model = Denoiser(network, EDMPrediction(), VP()).eval().requires_grad_(False)
    config = {
        "network": NODE,
        "precond": {"_target_": "scoreexp.denoisers.EDMPrediction"},
        "schedule": {"_target_": "scoreexp.schedules.VP"},
    }
    model.event_shape = (1, 8, 8)
    model.record = model_record(config, (1, 8, 8), 3)
    return model


@pytest.fixture(scope="module")
def model():
    return unet()


def test_every_weight_is_stored_in_whole_numbers_and_a_file_gives_the_same_model(model, tmp_path):
    small = quantise(model, NODE, calibration_set(model, "reverse", sampler=SAMPLER, n=4))
    state = small.state_dict()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert sum(v.dtype == torch.int8 for v in state.values()) == len(layers)
    assert all(v.ndim < 2 for v in state.values() if v.is_floating_point())
    assert stored_bytes(small) < 0.35 * stored_bytes(model)
    path = tmp_path / "small.ckpt"
    write_checkpoint(
        {"state_dict": {f"denoiser.{k}": v for k, v in state.items()}, "scoreexp": small.record}, path
    )
    x_t, t = torch.randn(2, 1, 8, 8, generator=generator(0, "x")), torch.full((2,), 0.3)
    assert torch.equal(load(path)(x_t, t), small(x_t, t))


@pytest.mark.parametrize(("name", "share"), [("unet_1m", 0.26), ("unet_9m", 0.255)])
def test_8_bits_are_a_quarter_of_the_bytes_of_the_benchmark_networks(name, share):
    node = yaml.safe_load((conf_dir() / "network" / f"{name}.yaml").read_text())
    make = construct({**node, "_partial_": True}, "network")
    with torch.device("meta"):  # shapes alone
        plain = make(event_shape=(3, 32, 32), num_classes=None)
        small = Quantised(event_shape=(3, 32, 32), network=make)
    before, after = (
        sum(v.numel() * v.element_size() for v in n.state_dict().values()) for n in (plain, small)
    )
    assert 0.25 * before < after < share * before


def test_16_bits_reproduce_the_samples_and_fewer_bits_err_more(model):
    calibrated = calibration_set(model, "reverse", sampler=SAMPLER, n=4)
    samples, errors = {}, {}
    for bits in (16, 8, 4):
        small = quantise(model, NODE, calibrated, bits=bits)
        samples[bits] = draw(small, SAMPLER, [100, 101], cond=torch.tensor([0, 1])).x
        errors[bits] = compression_error(model, small, torch.zeros(4, 1, 8, 8), [0.5])[0.5].value
    exact = draw(model, SAMPLER, [100, 101], cond=torch.tensor([0, 1])).x
    assert (samples[16] - exact).norm() < 1e-3 * exact.norm()
    assert errors[16] * 1000 < errors[8] < errors[4] / 10


@pytest.mark.parametrize("mode", ["random", "raw", "forward", "reverse"])
def test_the_calibration_sets_are_what_they_say(model, mode):
    data = torch.full((5, 1, 8, 8), 0.25)
    found = calibration_set(model, mode, sampler=SAMPLER, data=data, n=200 if mode != "reverse" else 12)
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in model.schedule(found.t))
    if mode == "raw":
        assert torch.equal(found.x_t, data[:1].expand_as(found.x_t))
    elif mode == "forward":
        z = (found.x_t - alpha * 0.25) / sigma
        assert z.std() == pytest.approx(1, abs=0.03)
        assert float(found.t.mean()) < 0.5
    elif mode == "random":
        assert found.x_t.std() == pytest.approx(1, abs=0.03)
    else:
        drawn = draw(model, SAMPLER, range(12), cond=torch.arange(12) % 3, keep=64)
        for x, t, i in zip(found.x_t, found.t, range(12), strict=True):
            at = int((drawn.times - t).abs().argmin())
            assert torch.equal(x, drawn.trajectory[at][i])


def test_gradients_pass_the_rounding(model):
    small = quantise(model, NODE, calibration_set(model, "random", n=4), bits=16)
    gradients = []
    for denoiser in (model, small):
        x = torch.randn(1, 1, 8, 8, generator=generator(1, "x")).requires_grad_()
        gradients.append(torch.autograd.grad(denoiser(x, torch.tensor([0.5])).sum(), x)[0])
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[0].norm()


class Scaling(nn.Module):
    """A weight that no layer holds."""

    def __init__(self, *, event_shape, num_classes=None):
        super().__init__()
        self.table = nn.Parameter(torch.ones(2, 2))


def test_what_cannot_be_quantised_is_named():
    with pytest.raises(ValueError, match="Scaling has weights that cannot be quantised: table"):
        Quantised(event_shape=(2,), network=Scaling)
    with pytest.raises(ValueError, match="bits=17"):
        Quantised(event_shape=(1, 8, 8), network=partial(UNet), bits=17)
    with pytest.raises(ValueError, match="calibration=raw needs data"):
        calibration_set(unet(), "raw")
