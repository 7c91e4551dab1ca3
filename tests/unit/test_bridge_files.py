"""Files of other libraries: what is read from them, and what is refused in one line, without running anything."""

import gzip
import io
import json
import pickle
import re
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Payload
from torch import nn

import scoreexp as se
from benchmarks.bridge_fixtures import IMAGE_STEPS, ODE_END, ODE_TOLERANCE, STEPS, THINNED, drawn, image
from benchmarks.bridge_peers import CASES
from scoreexp.api.export import timestep_levels, to_torch_export
from scoreexp.app.commands.restore_comparison import Budget, compare_restorers
from scoreexp.bridge import ForeignModelError, TimestepGrid, recognised
from scoreexp.bridge.exported import checked_program
from scoreexp.bridge.inert import Inert, UnreadableError, _Storage, read_pickle, read_weights, require_plain
from scoreexp.core.streams import ImageStreams
from scoreexp.numerics.ode import RK45
from scoreexp.runs.checkpoint_file import write_checkpoint
from scoreexp.runs.model import build_denoiser, model_record

FIXTURES = Path(__file__).parent.parent / "fixtures" / "bridge"
ORIGINALS = json.loads(gzip.decompress((FIXTURES / "originals.json.gz").read_bytes()))


# -------------------------------------------------------------------------------------------- tensors


def state() -> dict:
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "model": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "turned": torch.arange(6).reshape(2, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "step": 7,
        "text": ["a", (1, None, True)],
    }


def same(ours, theirs) -> bool:
    if isinstance(theirs, torch.Tensor):
        return torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    if isinstance(theirs, dict):
        return set(ours) == set(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path, zipped):
    torch.save(state(), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    assert same(read_weights(tmp_path / "a.pth"), expected)


def test_tensors_in_a_bare_pickle(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"net": nn.Linear(2, 2), "t": torch.eye(2)}))
    found = read_weights(tmp_path / "a.pkl")
    assert torch.equal(found["t"], torch.eye(2))
    assert found["net"].name == "torch.nn.modules.linear.Linear"
    assert found["net"].state["_parameters"]["weight"].shape == (2, 2)


def test_safetensors(tmp_path):
    values = np.arange(6, dtype=np.float32)
    header = json.dumps(
        {"__metadata__": {"a": "b"}, "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    ).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["w"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_runs(tmp_path, protocol):
    mark = tmp_path / "executed"
    data = pickle.dumps({"ema": Payload(mark), "weights": [Payload(mark)]}, protocol)
    found = read_pickle(data)
    assert isinstance(found["ema"], Inert)
    for name in ("a.pkl", "a.pth"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ForeignModelError) as error:
            se.load(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save({"w": torch.ones(1), "evil": Payload(mark)}, tmp_path / "b.pth")
    assert torch.equal(read_weights(tmp_path / "b.pth")["w"], torch.ones(1))
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}(r\xff\xff\xff\x7f" + b"u.",  # a far place of the memo
        b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b".",  # a bytearray of any size
        b"\x80\x02K\x01"
        + b"2\x86" * 60
        + b"}K\x01s.",  # a key whose hash takes 2^60 steps, and a pair without its target
        b"\x80\x02cos\nsystem\n.",
        b"",
    ],
)
def test_crafted_pickles_are_refused_soon(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(ForeignModelError):
        se.load(tmp_path / "a.pkl")


def test_a_tensor_stays_inside_its_values():
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    for size, stride in ((5, 1), (2**40, 0), (2, 9)):
        program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00"
        program += (
            b"(\x8a\x08" + struct.pack("<q", size) + b"t(\x8a\x08" + struct.pack("<q", stride) + b"t\x89}tR."
        )
        with pytest.raises(UnreadableError, match="larger than its values"):
            read_pickle(program, lambda _: _Storage(torch.float32, 4, torch.zeros(4)))


# ------------------------------------------------------------------------------------------- EDM


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "labels"])
def test_networks_of_edm_give_their_posterior_means_and_images(tmp_path, name):
    """The outputs are those of NVlabs/edm at commit 008a4e5 (``benchmarks/bridge_fixtures.py``)."""
    (tmp_path / "a.pkl").write_bytes(gzip.decompress((FIXTURES / f"edm_{name}.pkl.gz").read_bytes()))
    model = se.load(tmp_path / "a.pkl")
    stored = np.load(FIXTURES / "edm.npz")
    x, levels = torch.from_numpy(stored["x"]), torch.from_numpy(stored["levels"])
    label = torch.ones(len(levels), dtype=torch.long) if name == "labels" else None
    found = model(levels.float().view(-1, 1, 1, 1) * x, levels, label)
    expected = torch.from_numpy(stored[name])
    assert (found - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())
    sampler = se.samplers.Heun(se.samplers.KarrasGrid(IMAGE_STEPS, t_end=max(0.002, model.schedule.t_min)))
    start = {"t_start": 80.0, "cond": None if label is None else label[:1]}
    drawn = sampler(model, 80 * x, streams=ImageStreams([0]), **start)
    expected = torch.from_numpy(stored[f"{name} image"])
    assert (drawn.x - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max().item())


class Times(se.samplers.TimeGrid):
    """Given times."""

    def __init__(self, times):
        super().__init__(len(times))
        self.times = times

    def __call__(self, schedule, *, t_start=None):
        return self.times


# ------------------------------------------------------------- public code without a package


def original(folder: Path, name: str) -> Path:
    """A file of the named case as its own code writes it, with what stands beside it."""
    fact, path = ORIGINALS[name], folder / "model.pth"
    state = drawn(fact["shapes"])
    if name.startswith("score_sde"):
        averages = [tensor for key, tensor in state.items() if key != "all_modules.0.W"]
        online = {
            f"module.{key}": tensor if key == "all_modules.0.W" else torch.zeros_like(tensor)
            for key, tensor in state.items()
        }
        held = {
            "model": {"module.sigmas": torch.ones(9), **online},
            "ema": {"decay": 0.999, "shadow_params": averages},
        }
        torch.save({**held, "step": 3}, path)
    else:
        torch.save(state, path)
    path.with_suffix(".json").write_text(json.dumps(fact["stated"]))
    return path


def inputs(name: str, model) -> tuple[torch.Tensor, torch.Tensor]:
    """``x_t`` and t of the ten levels of a case."""
    if name.startswith("drunet"):
        x = 2 * (0.5 + 0.2 * image((model.event_shape[0], 16, 24))) - 1
        return x.expand(10, -1, -1, -1), 2 * torch.linspace(1, 50, 10, dtype=torch.float64) / 255
    x = image(model.event_shape)
    if "levels" not in ORIGINALS[name]:
        steps = model.schedule.steps
        return x.expand(10, -1, -1, -1), torch.tensor(
            [(n * steps // 1000 + 1) / steps for n in STEPS], dtype=torch.float64
        )
    levels = torch.tensor(ORIGINALS[name]["levels"], dtype=torch.float64)
    if name.startswith(
        "score_sde ve"
    ):  # noise of a grey picture, 0.5, in [0, 1] has twice the level in [-1, 1]
        return levels[:, 1, None, None, None].float() * x - 1, levels[:, 1]
    times = torch.tensor(ORIGINALS[name]["times"], dtype=torch.float64)
    return x.expand(10, -1, -1, -1), (999 * times + 1) / 1000 if "discrete" in name else times


@pytest.mark.parametrize("name", ORIGINALS)
def test_public_code_gives_the_same_posterior_means_and_images(tmp_path, name):
    """The outputs are those of the repositories at the commits that the file names (``benchmarks/bridge_fixtures.py``)."""
    model = se.load(original(tmp_path, name))
    x, t = inputs(name, model)
    label = torch.full((10,), 7) if getattr(model.network, "num_classes", None) else None
    found = model(x, t, label)[..., ::THINNED, ::THINNED]
    outputs = np.load(FIXTURES / "originals.npz")
    expected = torch.from_numpy(outputs[name])
    error = (found - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1).clamp(min=1)
    assert error.max() < 1e-5, error
    if f"{name}, image" in outputs:
        found = picture(name, model, None if label is None else label[:1])[..., ::THINNED, ::THINNED]
        expected = torch.from_numpy(outputs[f"{name}, image"])
        assert (found - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max().item())


def picture(name, model, label) -> torch.Tensor:
    """By the deterministic sampler of the original: DDIM, or the probability-flow equation."""
    x = image(model.event_shape)
    if not name.startswith("score_sde"):
        sampler = se.samplers.DDIM(TimestepGrid(IMAGE_STEPS, "leading", total_steps=model.schedule.steps))
        return sampler(model, x, streams=ImageStreams([0]), cond=label).x
    end = torch.tensor([ODE_END], dtype=torch.float64)
    if name.startswith("score_sde ve"):
        low, high = model.schedule.sigma_range
        times = torch.stack([torch.tensor(high).double(), low * (high / low) ** end[0]])
        x = high * x - 1
    else:
        times = torch.cat([torch.ones(1).double(), end])
    solver = RK45(rtol=ODE_TOLERANCE, atol=ODE_TOLERANCE)
    return se.samplers.ProbabilityFlow(Times(times), solver, denoise_last=False)(
        model, x, streams=ImageStreams([0])
    ).x


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("guided_diffusion", {"flags": None}, r'has no flags: write \{"format": "guided_diffusion"'),
        ("guided_diffusion", {"flags": "--colour True"}, "the flag colour is unknown: known are image_size"),
        ("guided_diffusion", {"flags": "--learn_sigma True"}, "6 channels of 3 with labels: flags are .*class_cond=False"),
        ("guided_diffusion", {"flags": "--num_channels 48"}, "are not widths of guided_diffusion, which divide by 32"),
        ("guided_diffusion", {"flags": "--class_cond maybe"}, "class_cond is 'maybe': allowed are True and False"),
        ("score_sde ve", {"config": None}, "does not say how it was trained: write"),
        ("score_sde ve", {"config": {"model": {"name": "ncsnv2_64"}}}, "model.name is 'ncsnv2_64': allowed is ncsnpp"),
        ("score_sde ve", {"config": {"training": {"sde": "ouve"}}}, "training.sde is 'ouve': allowed is vesde, vpsde or"),
        ("score_sde vp", {"config": {"training": {"sde": "vpsde"}}}, "centered.* is .*False.*: allowed is .True, False"),
        ("score_sde ve", {"config": {"model": {"nf": 16, "num_res_blocks": 1}}}, "configuration is of another network"),
        ("drunet grey", {"sigma_range": [0.1]}, "sigma_range is"),
    ],
)  # fmt: skip
def test_what_public_code_does_not_say_is_one_line(tmp_path, name, change, message):
    path = original(tmp_path, name)
    path.with_suffix(".json").write_text(json.dumps({**ORIGINALS[name]["stated"], **change}))
    with pytest.raises(ForeignModelError, match=message) as error:
        se.load(path)
    assert "\n" not in str(error.value)


def test_averages_of_score_sde_need_all_weights(tmp_path):
    path = original(tmp_path, "score_sde vp")
    held = torch.load(path)
    held["ema"]["shadow_params"].pop()
    torch.save(held, path)
    with pytest.raises(ForeignModelError, match=r"averages of \d+ weights: take weights=raw"):
        se.load(path)
    raw = se.load(path, weights="raw")  # zeros in this file, so that E[x_0 | x_t] is x_t / alpha
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([0.5], dtype=torch.float64)
    assert torch.allclose(raw(x, t), x / raw.schedule.alpha(t)[0].float(), rtol=1e-5)


def test_a_model_of_classes_asks_for_one(tmp_path):
    model = se.load(original(tmp_path, "guided_diffusion"))
    with pytest.raises(ForeignModelError, match="give a label of 0 to 999"):
        model(torch.zeros(1, 3, 16, 16), torch.tensor([0.5]))


# --------------------------------------------------------------------------------- Gaussian denoisers


def ipol_ffdnet(width: int = 4, layers: int = 3, channels: int = 1) -> dict[str, torch.Tensor]:
    """An FFDNet whose output is a tenth of the map of sigma plus the noisy quarters, so that the result is known."""
    state = {}
    for i in range(layers):
        taken = 5 * channels if i == 0 else width
        made = 4 * channels if i == layers - 1 else width
        weight = torch.zeros(made, taken, 3, 3)
        for k in range(min(made, taken)):
            # the first layer takes the quarters, which stand behind the map
            weight[k, (k + channels) % taken if i == 0 else k, 1, 1] = 1.0
        state[f"module.intermediate_dncnn.itermediate_dncnn.{2 * i}.weight"] = weight
    return state


def test_ffdnet_cuts_an_image_into_its_quarters_and_back(tmp_path):
    torch.save(ipol_ffdnet(), tmp_path / "ffdnet.pth")
    model = se.load(tmp_path / "ffdnet.pth")
    x = torch.rand(1, 1, 5, 7)  # above 0 in units of [0, 1] too, where the ReLUs are the identity
    t = torch.tensor([0.2], dtype=torch.float64)
    # the network returns its input as the noise, so nothing remains: 0 in units of [0, 1]
    assert torch.allclose(model(x, t), torch.full_like(x, -1.0), atol=1e-6)


def test_a_row_of_a_grey_denoiser_asks_for_grey_pictures(tmp_path):
    torch.save(ipol_ffdnet(), tmp_path / "ffdnet.pth")
    model = se.load(tmp_path / "ffdnet.pth")
    for channels, reason in ((1, None), (3, "a model of 1 channels, pictures of 3: give pictures of 1")):
        images = [torch.zeros(1, channels, 8, 8)]
        (row,) = compare_restorers(
            model, images, ["posterior_mean"], ["denoise_25"], Budget(nfe=1), memory=False
        )
        assert (row.reason, row.nfe) == (reason, int(reason is None))


def test_dncnn_is_read_by_the_order_of_its_layers(tmp_path):
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 1, 3, padding=1),
    ).eval()  # fmt: skip
    body[3].running_mean += 0.1
    torch.save({f"net.{name}": value for name, value in body.state_dict().items()}, tmp_path / "dncnn.pth")
    with pytest.raises(ForeignModelError, match="does not say what it is"):
        se.load(tmp_path / "dncnn.pth")
    (tmp_path / "dncnn.json").write_text('{"format": "dncnn", "sigma": 0.1}')
    model = se.load(tmp_path / "dncnn.pth")
    noisy = torch.rand(2, 1, 6, 5)
    expected = 2 * (noisy - body(noisy)) - 1
    assert model.schedule.sigma_range == (0.2, 0.2)
    assert torch.allclose(model(2 * noisy - 1, torch.zeros(2, dtype=torch.float64)), expected, atol=1e-6)
    clean = ((expected[0] + 1) / 2).clamp(0, 1)
    assert torch.allclose(se.denoise(noisy[0], model, sigma=0.1), clean, atol=1e-6)


# -------------------------------------------------------------------------------------------- diffusers

UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8],
}
SCHEDULER = {"_class_name": "DDIMScheduler"}


def pipeline(
    folder: Path, index: dict | None = None, unet: dict | None = None, scheduler: dict | None = None
) -> Path:
    for part, name, content in (
        ("", "model_index.json", index or {}),
        ("unet", "config.json", {**UNET, **(unet or {})}),
        ("scheduler", "scheduler_config.json", {**SCHEDULER, **(scheduler or {})}),
    ):
        (folder / part).mkdir(exist_ok=True, parents=True)
        (folder / part / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": {"vae": ["diffusers", "AutoencoderKL"]}}, "a latent model .* not supported, because"),
        ({"index": {"text_encoder": ["transformers", "CLIPTextModel"]}}, "conditioned by its text_encoder"),
        ({"unet": {"_class_name": "UNet2DConditionModel"}}, "conditioned on text or images is not supported"),
        ({"unet": {"_class_name": "VQModel"}}, "a part of a latent model"),
        ({"unet": {"sample_size": None}}, "sample_size is None: write"),
        ({"unet": {"in_channels": 4}}, "it takes more than an image"),
        ({"unet": {"block_out_channels": [2**40]}}, "widths that no network has"),
        (
            {"scheduler": {"_class_name": "KarrasVeScheduler"}},
            "the scheduler KarrasVeScheduler is unknown: known are DDIM",
        ),
        ({"scheduler": {"prediction_type": "flow"}}, "prediction_type is 'flow'"),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "the noise does not determine the image"),
        ({"scheduler": {"beta_schedule": "laplace"}}, "beta_schedule is 'laplace': allowed are linear"),
        ({"scheduler": {"num_train_timesteps": "many"}}, "num_train_timesteps is 'many'"),
        ({}, "has no diffusion_pytorch_model.safetensors"),
    ],
)
def test_what_a_pipeline_cannot_be_is_one_line(tmp_path, change, message):
    with pytest.raises(ForeignModelError, match=message) as error:
        se.load(pipeline(tmp_path, **change))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_scheduler_or_configuration(tmp_path):
    folder = pipeline(tmp_path)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ForeignModelError, match=r"no scheduler/scheduler_config\.json"):
        se.load(folder)
    pipeline(tmp_path)
    (folder / "unet" / "config.json").write_text("[")
    with pytest.raises(ForeignModelError, match="not readable JSON"):
        se.load(folder)
    (folder / "unet" / "config.json").unlink()
    (folder / "model_index.json").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ForeignModelError, match=r"has no config.json"):
        se.load(folder)


@pytest.mark.skipif(find_spec("diffusers") is not None, reason="diffusers is installed")
def test_a_missing_package_is_named(tmp_path):
    folder = pipeline(tmp_path)
    torch.save({"w": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ForeignModelError, match="a network of diffusers: pip install diffusers"):
        se.load(folder)


@pytest.mark.parametrize("name", CASES)
def test_the_libraries_themselves_agree(name):
    package, case = CASES[name]
    pytest.importorskip(package, exc_type=ImportError)
    with torch.no_grad():
        found = case()
    assert found.mean < 1e-5
    assert found.image < 1e-4


# ----------------------------------------------------------------------------------- recognition, mismatch


def test_formats_are_told_apart(tmp_path):
    names = {
        "a.pkl": "edm",
        "a.pt2": "torch_export",
        "a.pth": "weights",
        "b.pth": "azula",
        "c.pth": "k_diffusion",
        "a.ckpt": None,
    }
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "b.json").write_text('{"format": "azula"}')
    (tmp_path / "c.json").write_text('{"model": {"type": "image_v1"}}')
    assert {name: recognised(tmp_path / name) for name in names} == names
    (tmp_path / "b.json").write_text('{"format": "tensorflow"}')
    with pytest.raises(ForeignModelError, match="format is 'tensorflow': allowed are azula"):
        recognised(tmp_path / "b.pth")


def test_weights_of_another_network_list_five_places(tmp_path):
    state = ipol_ffdnet(layers=9)
    for i in range(1, 8):
        state[f"module.intermediate_dncnn.itermediate_dncnn.{2 * i}.weight"] = torch.zeros(5, 4, 3, 3)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(
        ForeignModelError,
        match=r"does not fit its network in 7 places: (network\S+ is [^;]+; ){4}network[^;]+: give",
    ):
        se.load(tmp_path / "a.pth")


# ------------------------------------------------------------------------------------------ programs


def small_model() -> tuple:
    config = {
        "network": {"_target_": "scoreexp.networks.UNet", "channels": 16, "multipliers": [1], "blocks": 1,
                    "attention_resolutions": []},
        "precond": {"_target_": "scoreexp.denoisers.VPrediction"},
        "schedule": {"_target_": "scoreexp.schedules.VP"},
    }  # fmt: skip
    record = model_record(config, (1, 4, 4), None)
    torch.manual_seed(0)
    model = build_denoiser(record).eval().requires_grad_(False)
    nn.init.normal_(model.network.conv_out.weight)
    model.record = record
    return model, record


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "a.pt2"
    model, record = small_model()
    to_torch_export(model, record, path)
    return path, model


def test_an_exported_program_is_the_same_model(program):
    path, model = program
    again = se.load(path)
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    assert (again(x, t) - model(x, t)).abs().max() < 1e-6
    sampler = se.samplers.DDIM(se.samplers.UniformGrid(2))
    assert (se.sample(again, 1, sampler=sampler) - se.sample(model, 1, sampler=sampler)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["graph_module"]["graph"]["nodes"][0].update(target="torch.load"), "it calls torch.load"),
        (
            lambda m: m["graph_module"]["graph"]["nodes"][0].update(
                target="torch.ops.aten.from_file.default"
            ),
            "from_file",
        ),
        (
            lambda m: m["graph_module"]["graph"]["nodes"][0].update(target="_operator.methodcaller"),
            "methodcaller",
        ),
        (
            lambda m: m["graph_module"]["graph"]["sym_int_values"].update(
                a={"as_expr": {"expr_str": "__import__('os').getcwd()", "hint": None}}
            ),
            "it has a size __import__",
        ),
        (
            lambda m: m["graph_module"]["graph"]["inputs"].append({"as_custom_obj": {"name": "a"}}),
            "no tensor",
        ),
    ],
)
def test_a_program_holds_tensor_operations_alone(program, tmp_path, change, message):
    path, _ = program
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.pt2", "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("models/model.json"):
                model = json.loads(data)
                change(model)
                data = json.dumps(model).encode()
            copy.writestr(name, data)
    with pytest.raises(ForeignModelError, match=message):
        checked_program(tmp_path / "b.pt2")


def test_guards_of_a_program_are_left_out(program, tmp_path):
    path, _ = program
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.pt2", "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("models/model.json"):
                data = json.dumps({**json.loads(data), "guards_code": ["open('executed', 'w')"]}).encode()
            copy.writestr(name, data)
    with zipfile.ZipFile(checked_program(tmp_path / "b.pt2")) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
        assert json.loads(archive.read(name))["guards_code"] == []


def test_what_torch_would_unpickle_names_tensors_alone(tmp_path):
    buffer = io.BytesIO()
    torch.save((torch.ones(2), {"a": 1}), buffer)
    require_plain(buffer.getvalue())
    for hidden in (Payload(tmp_path / "executed"), [Payload(tmp_path / "executed")]):
        buffer = io.BytesIO()
        torch.save((torch.ones(2), hidden), buffer)
        with pytest.raises(UnreadableError, match="it names"):
            require_plain(buffer.getvalue())


def test_levels_of_an_exported_pipeline():
    ddpm = se.schedules.DDPM()
    n = torch.arange(1, 1001, dtype=torch.float64)
    assert torch.equal(timestep_levels(ddpm), ddpm.noise_level(n / 1000))
    with pytest.raises(ForeignModelError, match="no sampler of diffusers"):
        timestep_levels(se.schedules.ConstantNoise(0.2))


# ------------------------------------------------------------------------------------------- conversion


def test_a_converted_model_is_the_same_and_says_where_it_is_from(tmp_path):
    from scoreexp.app.launch import run_app
    from scoreexp.convert import SCHEMA

    (tmp_path / "net.pkl").write_bytes(gzip.decompress((FIXTURES / "edm_labels.pkl.gz").read_bytes()))

    def convert(*arguments: str) -> int:
        return run_app("convert", "scoreexp.convert:run", schema=SCHEMA, argv=list(arguments))

    assert convert(f"in={tmp_path}/net.pkl", f"out={tmp_path}/ours.ckpt") == 0
    model, ours = se.load(tmp_path / "net.pkl"), se.load(tmp_path / "ours.ckpt")
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.1, 50.0], dtype=torch.float64)
    label = torch.tensor([0, 2])
    assert torch.equal(model(x, t, label), ours(x, t, label))
    source = ours.record["config"]["source"]
    assert (source["format"], source["file"]) == ("edm", "net.pkl")
    assert re.fullmatch("[0-9a-f]{64}", source["sha256"])
    assert convert(f"in={tmp_path}/net.pkl", f"out={tmp_path}/ours.ckpt") == 1  # it is there
    assert convert(f"ckpt={tmp_path}/ours.ckpt") == 1  # it is ours


def test_pipelines_of_diffusers_draw_what_ddim_draws(tmp_path):
    pytest.importorskip("diffusers")
    from diffusers import DDIMPipeline

    from scoreexp.bridge import Betas, DiscreteVP, TimestepGrid
    from scoreexp.core.streams import ImageStreams
    from scoreexp.runs.model import load

    model, record = small_model()
    write_checkpoint(
        {"state_dict": {f"denoiser.{k}": v for k, v in model.state_dict().items()}, "scoreexp": record},
        tmp_path / "a.ckpt",
    )
    from scoreexp.api.export import to_diffusers

    to_diffusers(model, record, tmp_path / "pipeline")
    pipe = DDIMPipeline.from_pretrained(tmp_path / "pipeline")
    drawn = pipe(
        batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=50, output_type="np"
    ).images
    z = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = (1000 * TimestepGrid(50, "trailing")(DiscreteVP(Betas()))).round().long() - 1
    times = model.schedule.t_of_sigma(timestep_levels(model.schedule)[steps])

    class Grid(se.samplers.TimeGrid):
        def __call__(self, schedule, *, t_start=None):
            return times

    ours = se.samplers.DDIM(Grid(50))(model, z, streams=ImageStreams([0, 1])).x
    assert np.abs(drawn - ((ours + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()).max() < 1e-4
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert torch.equal(load(tmp_path / "pipeline")(x, t), model(x, t))
