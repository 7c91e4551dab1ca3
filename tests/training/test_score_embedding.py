"""Training on embedded images, from the outside, and the parts of the published settings."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf

import scoreexp.app.commands.precompute
from scoreexp.app.commands.precompute import embed_training_images, precompute
from scoreexp.app.commands.train import train
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import check_config
from scoreexp.core.batch import Batch
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import OracleDenoiser
from scoreexp.lit.checkpoint import read_checkpoint
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import DiffusionWeightedScoreMatching
from scoreexp.samplers import ClampedEulerMaruyama, UniformGrid
from scoreexp.schedules import ConstantNoise, VEPower
from scoreexp.train import PROVIDED, SCHEMA

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_data_files import write_celeba, write_cifar

pytestmark = pytest.mark.integration

EXPERIMENTS = sorted(
    path.stem
    for path in (conf_dir() / "experiment").glob("*_ours*.yaml")
    if "generated" not in path.stem  # monitored otherwise, and not by sigma
)
EMBEDDED = ["model=score_embedding", "schedule=ve"]


@pytest.fixture
def cached(tiny, tmp_path):
    """A tiny run with the project's own embedding and a cache of its own."""

    def make(*overrides, **options):
        cache = f"embedding.cache={tmp_path / 'cache'}"
        return tiny(*EMBEDDED, "embedding=spectral", cache, *overrides, **options)

    return make


# ------------------------------------------------------------------------------------------------ parts


def test_objective_is_its_formula():
    torch.manual_seed(0)
    schedule = VEPower(sigma=5.0, scale=2.0)
    model = OracleDenoiser(Gaussian(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.25)), schedule)
    x, noise = torch.randn(5, 3, 4, 4).double(), torch.randn(5, 3, 4, 4).double()
    t = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    for g in (None, 1.0):
        loss = DiffusionWeightedScoreMatching(g)(model, Batch(x=x), t, noise)
        for b in range(5):
            std = 2 * np.sqrt((25.0 ** t[b].item() - 1) / (2 * np.log(5)))
            score = -(x[b] + std * noise[b]) / (0.5**2 + std**2)  # of the Gaussian's noisy marginal
            g_t = 2 * 5 ** t[b].item() if g is None else g
            expected = ((score * std + noise[b]) ** 2).mean() / (2 * g_t**2)
            assert loss[b].item() == pytest.approx(expected.item(), rel=1e-9)


def test_objective_needs_a_diffusion_coefficient_and_clean_data():
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), ConstantNoise())
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match=r"ConstantNoise is 0: set objective\.g"):
        DiffusionWeightedScoreMatching()(model, Batch(x=x), t, x)
    with pytest.raises(ValueError, match="no clean data"):
        DiffusionWeightedScoreMatching(1.0)(model, Batch(), t, x)
    with pytest.raises(ValueError, match="draw as many"):
        DiffusionWeightedScoreMatching(1.0)(model, Batch(x=x), t, x[:2])
    with pytest.raises(ValueError, match="g=0"):
        DiffusionWeightedScoreMatching(0.0)


def test_constant_noise_has_one_level_and_no_diffusion():
    schedule = ConstantNoise(0.2)
    t = torch.linspace(0, 1, 5)
    alpha, sigma = schedule(t)
    assert torch.equal(alpha, torch.ones(5))
    assert torch.equal(sigma, torch.full((5,), 0.2))
    assert not schedule.diffusion(t).any()
    assert schedule.sigma_range == (0.2, 0.2)
    assert schedule.t_of_sigma(torch.tensor(0.2)) == 1
    with pytest.raises(ValueError, match="sigma=0"):
        ConstantNoise(0.0)


def test_sampler_is_the_published_iteration():
    schedule = ConstantNoise(0.2)
    mean = torch.full((1, 3, 3), 0.3, dtype=torch.float64)
    model = OracleDenoiser(Gaussian(mean, torch.full_like(mean, 0.16)), schedule)
    sampler = ClampedEulerMaruyama(UniformGrid(51, t_end=0.0))
    y = 2 * torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    x, t_start = sampler.start(schedule, y, sigma=1.012)
    assert torch.equal(x, y.clamp(-1, 1))
    result = sampler(model, x, streams=ImageStreams([1, 2]), t_start=t_start)
    assert result.nfe == 50
    streams = ImageStreams([1, 2])
    for i in range(50):
        score = (0.3 - x) / (0.4**2 + 0.2**2)
        x = x + 1.0 * score * 0.02
        if i < 49:
            x = x + 0.1 * 1.0 * 0.02**0.5 * streams.normal(x)
        x = x.clamp(-1, 1)
    torch.testing.assert_close(result.x, x, atol=1e-12, rtol=0)
    for bad in ({"g": 0.0}, {"noise": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ClampedEulerMaruyama(UniformGrid(51), **bad)


# ----------------------------------------------------------------------------------------------- training


def test_run_directory_shows_the_embedding_and_its_seconds(cached, tmp_path, capsys):
    result = train(cached())
    run = tmp_path / "run"
    assert {"score_field.png", "embedded.png"} <= {p.name for p in (run / "pictures").iterdir()}
    assert not (run / "pictures" / "residuals.png").exists(), "the exact solver does not iterate"
    assert set(result.seconds) == {"initial_density", "solve", "embed", "train", "evaluate"}
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert json.loads((run / "metrics.json").read_text())["seconds"] == result.seconds
    before = sum(result.seconds[stage] for stage in ("initial_density", "solve", "embed"))
    logged = before + result.metrics["time/train"] + result.metrics["time/evaluate"]
    assert result.metrics["time/total"] == pytest.approx(logged, rel=1e-5)
    assert result.metrics["time/total"] > result.metrics["time/train"]
    said = capsys.readouterr().out
    assert "1 solved, 0 found in the cache" in said
    assert not (tmp_path / "cache").exists(), "exact fields are not stored"
    iterating = "embedding.precomputation.solver=factorised"
    train(cached(iterating, run="stored"))
    train(cached(iterating, run="again"))
    assert "0 solved, 1 found in the cache" in capsys.readouterr().out


def weights(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_without_embedding_the_module_is_an_ordinary_one(tiny, cached, tmp_path):
    common = ["model.warmup_steps=0", "trainer.max_steps=2"]
    train(tiny("schedule=ve", *common, run="plain"))
    ema = ["model.ema.decay=0.999"]
    train(tiny(*EMBEDDED, *common, *ema, run="none"))
    train(cached(*common, *ema, run="embedded"))
    plain, none, embedded = (weights(tmp_path / run) for run in ("plain", "none", "embedded"))
    assert same(plain, none)
    assert not same(none, embedded)


def test_same_seed_same_embedding_same_run_with_and_without_a_cache(cached, tmp_path):
    published = [
        "trainer.max_steps=2",
        "embedding.precomputation.initial_density=sampled_kde", "embedding.noise=0.1", "embedding.clamp=true",
    ]  # fmt: skip
    train(cached(*published, run="a"))
    train(cached(*published, run="b"))
    train(cached(*published, "embedding.cache=null", run="c"))
    train(cached(*published, "seed=1", run="d"))
    a, b, c, d = (weights(tmp_path / run) for run in "abcd")
    assert same(a, b)
    assert same(a, c)
    assert not same(a, d)


def test_noise_of_the_paths_is_named_by_seed_and_image(cached):
    from hydra.utils import instantiate

    cfg = cached("data.name=[astronaut,chelsea]", "embedding.noise=0.1")
    data = instantiate(cfg.data)
    data.setup("fit")
    paths = {
        seed: embed_training_images(data, instantiate(cfg.embedding), seed, None)[0].images for seed in (0, 1)
    }
    assert torch.equal(paths[0][0], paths[1][0])
    difference = paths[0][1:] - paths[1][1:]
    assert difference.flatten(2).std(2).min() > 0.01, "in every image at every time"
    astronaut, chelsea = paths[0][1, 0] - paths[1][1, 0], paths[0][1, 1] - paths[1][1, 1]
    assert not torch.allclose(astronaut, chelsea, atol=1e-4)


def test_large_paths_are_kept_in_a_file(cached, tmp_path, monkeypatch):
    from hydra.utils import instantiate

    cfg = cached("data.name=[astronaut,chelsea]")
    data = instantiate(cfg.data)
    data.setup("fit")
    held, _ = embed_training_images(data, instantiate(cfg.embedding), 0, None)
    monkeypatch.setattr(scoreexp.app.commands.precompute, "_HELD_BYTES", 0)
    (tmp_path / "cache").mkdir()
    files = set(tmp_path.rglob("*"))
    mapped, _ = embed_training_images(data, instantiate(cfg.embedding), 0, None)
    assert torch.equal(held.images, mapped.images)
    assert "(deleted)" in Path("/proc/self/maps").read_text(), "memory-mapped from a nameless file"
    assert set(tmp_path.rglob("*")) == files, "a killed run leaves nothing behind"
    index, t = torch.tensor([1, 0]), torch.tensor([0.3, 0.9], dtype=torch.float64)
    assert torch.equal(held.at(index, t), mapped.at(index, t))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scoreexp.app.commands.precompute.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device.*embedding\.cache"):
        embed_training_images(data, instantiate(cfg.embedding), 0, None)


def test_resumed_run_goes_on_with_the_same_paths(cached, tmp_path):
    train(cached("trainer.max_steps=4", run="whole"))
    train(cached("trainer.max_steps=2", run="parts"))
    before = json.loads((tmp_path / "parts" / "metrics.json").read_text())["seconds"]
    train(cached("trainer.max_steps=4", "resume=auto", run="parts"))
    after = json.loads((tmp_path / "parts" / "metrics.json").read_text())["seconds"]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert {k: after[k] for k in ("initial_density", "solve", "embed")} == {
        k: before[k] for k in ("initial_density", "solve", "embed")
    }


def test_the_objective_sees_the_path_at_the_drawn_times(cached, monkeypatch):
    from hydra.utils import instantiate

    cfg = cached("data.name=[astronaut,chelsea]")
    seen = []
    original = instantiate(cfg.objective).__class__.__call__

    def spy(self, model, batch, t, noise):
        seen.append((batch, t))
        return original(self, model, batch, t, noise)

    monkeypatch.setattr(instantiate(cfg.objective).__class__, "__call__", spy)
    train(cfg)
    data = instantiate(cfg.data)
    data.setup("fit")
    embedded, _ = embed_training_images(data, instantiate(cfg.embedding), cfg.seed, None)
    assert len(seen) == 4
    for batch, t in seen:
        assert torch.equal(batch.x, embedded.at(batch.index, t))
        assert set(batch.index.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.augment=true"], r"cannot be augmented.*data\.augment=false"),
        (["data.rotation=5"], "cannot be augmented"),
        (["model=ddpm"], "set model=score_embedding"),
        (["objective=stable_target"], "averages clean images.*set embedding=none"),
        (["embedding.precomputation.horizon=0.5"], r"ends at time 0\.5.*horizon=1"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_run_leaves_traces(
    cached, tmp_path, overrides, message
):
    with pytest.raises(UserError, match=message):
        train(cached(*overrides))
    assert not list(tmp_path.rglob("*.*"))


def test_unconverged_solver_says_so_in_one_line(tiny, tmp_path, capsys):
    train(
        tiny(
            *EMBEDDED, "embedding=published", "embedding.cache=null", "embedding.precomputation.max_iter=1",
            "embedding.precomputation.steps=10",
        )
    )  # fmt: skip
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == 1
    assert "direct: 10 of 10 steps stopped after 1 iterations above tol=1e-06" in lines[0]
    assert (tmp_path / "run" / "pictures" / "residuals.png").stat().st_size > 1000


# -------------------------------------------------------------------------------------------- experiments


@pytest.mark.parametrize("embedding", [[], ["embedding=none"]])
@pytest.mark.parametrize("config", ["train", "precompute"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name, config, embedding):
    cfg = composed(config, f"experiment={name}", "run_dir=x", *embedding)
    assert check_config(OmegaConf.to_container(cfg, resolve=True), schema=SCHEMA, provided=PROVIDED) == []
    assert (cfg.embedding is None) == bool(embedding)
    assert cfg.callbacks.monitor.sigma == 0.506
    assert cfg.callbacks.stop.target == (0.9 if name.startswith("celeba128") else 0.99)


def test_photo32_ours_runs(tmp_path):
    result = train(
        composed(
            "train", "experiment=photo32_ours", "debug=fast", f"run_dir={tmp_path / 'run'}", "trainer.max_steps=2",
            f"embedding.cache={tmp_path / 'cache'}", "trainer.accelerator=cpu",
        )
    )  # fmt: skip
    assert result.status == "finished"


SMALL = {
    "unet": ["network.channels=16", "network.multipliers=[1,2]", "network.blocks=1"],
    "published": ["network.widths=[16,32]"],
}


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.startswith("photo32_ours_")])
def test_multi_image_experiments_run_on_files_in_the_real_layouts(name, tmp_path, capsys):
    if name == "photo32_ours":
        network, data = SMALL["unet"], ["data.name=[astronaut,chelsea,coffee]"]
    else:
        network = SMALL["unet" if name.endswith("_ve") else "published"]
        data = [f"data.root={tmp_path / 'files'}"]
        (tmp_path / "files").mkdir()
        (write_cifar if name.startswith("cifar") else write_celeba)(tmp_path / "files")
    result = train(
        composed(
            "train", f"experiment={name}", *network, *data, "data.num_images=3", "data.batch_size=2",
            f"embedding.cache={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}", "trainer.accelerator=cpu",
            "trainer.max_steps=2", "trainer.val_check_interval=2", "sampler.grid.steps=3",
            "embedding.precomputation.steps=2", "embedding.kept=2",
        )
    )  # fmt: skip
    assert result.status == "finished"
    assert "embedding      3 images" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == (0 if name == "photo32_ours" else 3)


# --------------------------------------------------------------------------------------------- precompute


def precomputing(tmp_path, *overrides):
    return composed(
        "precompute", "data.size=16", "data.crop=random", "data.crops=5", "embedding=published",
        "embedding.precomputation.steps=10", f"embedding.cache={tmp_path / 'cache'}", *overrides,
    )  # fmt: skip


def test_precompute_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    from scoreexp.embedding import cache as score_cache

    calls, original = [], score_cache.write_field

    def interrupted(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        original(*args)

    monkeypatch.setattr(score_cache, "write_field", interrupted)
    with pytest.raises(KeyboardInterrupt):
        precompute(precomputing(tmp_path))
    monkeypatch.undo()
    result = precompute(precomputing(tmp_path))
    assert (result.images, result.cached) == (5, 3)
    said = capsys.readouterr().out
    assert "2 solved, 3 found in the cache" in said
    assert str(tmp_path / "cache") in said
    assert precompute(precomputing(tmp_path)).cached == 5


def test_precomputed_fields_serve_training(tmp_path, tiny, capsys):
    precompute(precomputing(tmp_path))
    train(
        tiny(
            *EMBEDDED, "embedding=published", "embedding.precomputation.steps=10", "data.crop=random",
            "data.crops=5", f"embedding.cache={tmp_path / 'cache'}",
        )
    )  # fmt: skip
    assert "0 solved, 5 found in the cache" in capsys.readouterr().out


def test_precompute_stores_nothing_where_solving_is_cheaper(tmp_path, capsys):
    result = precompute(precomputing(tmp_path, "embedding=spectral"))
    assert (result.images, result.cached, result.folder) == (5, 0, None)
    assert "nothing to store: training solves the fields of its 5 images" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache" / "0a").mkdir(parents=True)
    (tmp_path / "cache" / "0a" / "old.npz").touch()
    precompute(precomputing(tmp_path, "embedding=spectral"))
    assert f"delete {tmp_path / 'cache' / '[0-9a-f][0-9a-f]'}" in capsys.readouterr().out


def test_precompute_needs_something_to_compute_and_a_place_for_it(tmp_path):
    with pytest.raises(UserError, match="choose embedding=spectral"):
        precompute(composed("precompute"))
    with pytest.raises(UserError, match="give a folder"):
        precompute(precomputing(tmp_path, "embedding.cache=null"))
    with pytest.raises(UserError, match="are not images"):
        precompute(composed("precompute", "data=swiss_roll", "data.points=100", "embedding=spectral"))
