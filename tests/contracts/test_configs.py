"""Every yaml of every group composes, passes the check, builds, and every experiment trains for two steps.

A new yaml file is tested without editing this one.
"""

import re
from pathlib import Path

import pytest
import torch
from conftest import GIVEN, Blind, composed, with_teacher
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scoreexp.app.commands.train import train
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import check_config
from scoreexp.core.batch import Batch
from scoreexp.core.construct import construct
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers.denoiser import Denoiser, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.runs.model import build_denoiser, model_record
from scoreexp.train import PROVIDED, SCHEMA


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))


GROUPS = sorted(
    p.name for p in conf_dir().iterdir() if p.is_dir() and p.name not in ("hydra", "experiment", "debug")
)
IN_TRAIN = [g for g in GROUPS if re.search(rf"^\s*- {g}:", (conf_dir() / "train.yaml").read_text(), re.M)]


@pytest.mark.parametrize(
    "path", sorted(conf_dir().rglob("*.yaml")), ids=lambda p: str(p.relative_to(conf_dir()))
)
def test_yaml_files_are_short(path: Path):
    assert len(path.read_text().splitlines()) <= (35 if path.parent == conf_dir() else 25)


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in IN_TRAIN for n in names(g)])
def test_choice_composes_and_passes_the_check(group, name):
    choice = f"{group}={name}"
    cfg = composed("train", choice, *GIVEN.get(choice, ()))
    assert check_config(OmegaConf.to_container(cfg, resolve=True), schema=SCHEMA, provided=PROVIDED) == []


SHAPE = (3, 16, 16)


def shrunk(cfg: DictConfig) -> DictConfig:
    """The configuration with few channels in its network."""
    inner = cfg.network.get("network", cfg.network)  # of one that is conditioned on an image
    if isinstance(inner.get("channels"), int):
        inner.channels = 16
    if "widths" in cfg.network:
        cfg.network.widths = [8 * 2**level for level in range(len(cfg.network.widths))]
    return cfg


@pytest.fixture(scope="module")
def oracle():
    return Gaussian(torch.zeros(SHAPE), torch.full(SHAPE, 0.25))


@pytest.mark.parametrize("name", names("schedule"))
def test_schedule_contract(name):
    schedule = instantiate(composed("train", f"schedule={name}").schedule)
    t = torch.linspace(schedule.t_min, schedule.t_max, 9, dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert alpha.shape == sigma.shape == t.shape
    assert (sigma > 0).all()
    assert (alpha[:-1] > 0).all()
    assert alpha[-1] >= 0, "0 at t_max alone"


@pytest.mark.parametrize("name", names("precond"))
def test_preconditioning_contract(name):
    precond = instantiate(composed("train", f"precond={name}").precond)
    coefficients = precond(torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.8]))
    assert all(c.shape == (2,) and c.isfinite().all() for c in coefficients)


@pytest.mark.parametrize("name", names("network"))
def test_network_contract(name):
    cfg = shrunk(composed("train", f"network={name}"))
    network = instantiate(cfg.network, event_shape=SHAPE, num_classes=None)
    x = torch.randn(2, *SHAPE, generator=generator(0, "x"))
    with torch.no_grad():
        cond_shape = getattr(network, "cond_shape", None)  # of a network that is conditioned on an image
        cond = None if cond_shape is None else torch.zeros(2, *cond_shape)
        out = network(x, torch.tensor([-1.0, 0.5]), cond)
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert all(n % network.downsampling_factor == 0 for n in SHAPE[1:])


A_BLIND_SPOT = ["network=blind_spot", "network.centre=true", "network.stride=1", "precond=x0"]
OF_THEIR_OWN_NETWORK = {  # objectives that refuse another
    "cbsn": A_BLIND_SPOT,
    "sdap": A_BLIND_SPOT,
    "mean_flow": ["network=unet_two_times", "precond=v", "schedule=flow_matching"],
}


@pytest.mark.parametrize("name", names("objective"))
def test_objective_contract(name, oracle):
    cfg = composed("train", f"objective={name}")
    objective = construct(with_teacher(OmegaConf.to_container(cfg.objective), SHAPE))
    model = Blind(OracleDenoiser(oracle, instantiate(cfg.schedule)))
    if name in OF_THEIR_OWN_NETWORK:
        own = shrunk(composed("train", *OF_THEIR_OWN_NETWORK[name]))
        model = build_denoiser(model_record(OmegaConf.to_container(own), SHAPE, None))
    x = oracle.sample(4, generator(0, "x")).float()
    t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator(0, "noise"))
    loss = objective(model, Batch(x=x), t, noise)
    assert loss.shape == (4,), "per sample, not reduced"
    assert loss.isfinite().all()


@pytest.mark.parametrize("name", names("time_law"))
def test_time_law_contract(name):
    cfg = composed("train", f"time_law={name}")
    law, schedule = instantiate(cfg.time_law), instantiate(cfg.schedule)
    a, b, c = (law.sample(64, schedule, generator(seed, "t")) for seed in (7, 7, 8))
    assert torch.equal(a, b), "the generator decides"
    assert not torch.equal(a, c)
    assert a.shape == (64,)
    assert a.dtype == torch.float64
    assert float(a.min()) >= schedule.t_min
    assert float(a.max()) <= schedule.t_max


@pytest.mark.parametrize("name", [name for name in names("sampler") if name != "mean_flow"])  # of two times
def test_sampler_contract(name, oracle):
    cfg = composed("train", f"sampler={name}")
    OmegaConf.set_struct(cfg, False)
    if "grid" in cfg.sampler:
        cfg.sampler.grid.steps = 5
    sampler = instantiate(cfg.sampler)
    model = OracleDenoiser(oracle, instantiate(cfg.schedule))
    x = ImageStreams([0, 1]).normal(torch.empty(2, *SHAPE))
    result = sampler(model, x, streams=ImageStreams([0, 1]), keep=3)
    assert result.x.shape == x.shape
    assert result.x.isfinite().all()
    assert result.nfe >= 1
    assert len(result.trajectory) == 3


@pytest.mark.parametrize("name", names("model"))
def test_model_contract(name):
    from scoreexp.app.commands.train import build_module

    cfg = composed("train", f"model={name}", "network.channels=16", "data.size=16")
    record = model_record(OmegaConf.to_container(cfg, resolve=True), SHAPE, None)
    module = build_module(cfg, record)
    assert isinstance(module.evaluation_denoiser, Denoiser)


BUNDLED = {"photo"}  # data that need no files


@pytest.mark.parametrize("name", names("experiment"))
def test_experiment_composes_and_passes_the_check(name):
    cfg = composed("train", f"experiment={name}")
    assert check_config(OmegaConf.to_container(cfg, resolve=True), schema=SCHEMA, provided=PROVIDED) == []
    assert cfg.name == name, "a run directory is named after its experiment"


def _data_of(name: str) -> str:
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    if found := re.search(r"override /data: (\w+)", text):
        return found.group(1)
    parent = re.search(r"^  - (?!_self_)(\w+)$", text, re.MULTILINE)
    return _data_of(parent.group(1)) if parent else "photo"


@pytest.mark.integration
@pytest.mark.parametrize("name", [n for n in names("experiment") if _data_of(n) in BUNDLED])
def test_experiment_trains_two_steps(name, tmp_path):
    overrides = [
        f"experiment={name}",
        "debug=fast",
        "data.size=16",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        f"run_dir={tmp_path}",
    ]
    result = train(shrunk(composed("train", *overrides)))
    assert result.status == "finished"
    assert result.checkpoint.exists()
    assert -1 <= result.metrics["val/ssim"] <= 1
