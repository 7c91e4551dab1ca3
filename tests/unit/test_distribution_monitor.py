"""Distances between generated and real pictures during training."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, multiprocessing

from scoreexp.core.errors import UserError
from scoreexp.data import Photo, SwissRoll
from scoreexp.denoisers.denoiser import OracleDenoiser
from scoreexp.lit.callbacks import DistributionMonitor
from scoreexp.metrics import (
    FrechetDistance,
    MetricSpec,
    MissingWeightsError,
    PixelFeatures,
    SampleMetric,
    make_reference,
)
from scoreexp.numerics.oracles import Gaussian
from scoreexp.samplers import DDIM, UniformGrid, draw
from scoreexp.schedules import VP

SHAPE = (3, 8, 8)
N = 10


def model(shape=SHAPE):
    denoiser = OracleDenoiser(Gaussian(torch.zeros(shape), torch.full(shape, 0.1)), VP())
    denoiser.event_shape = shape
    return denoiser


def crops(count=6):
    return Photo(size=8, crop="random", crops=count)


def monitor(folder, **changed):
    arguments = {"features": lambda: PixelFeatures(2), "n": N, "batch_size": 4, "folder": str(folder)}
    return DistributionMonitor(sampler=DDIM(UniformGrid(3)), **(arguments | changed))


def around(data, rank=0, world=1, **state):
    """What the callback sees of a trainer and of a module, and what it logs."""
    logged = {}

    def decide(decision, all=True):
        if world == 1:
            return decision
        votes = torch.tensor(int(decision))
        distributed.all_reduce(votes)
        return int(votes) == world if all else int(votes) > 0

    strategy = SimpleNamespace(reduce_boolean_decision=decide, root_device=torch.device("cpu"))
    trainer = SimpleNamespace(
        datamodule=data, strategy=strategy, global_rank=rank, world_size=world, is_global_zero=rank == 0,
        sanity_checking=False, should_stop=False, global_step=7, max_steps=100, state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    vars(trainer).update(state)
    shape = data.event_shape
    module = SimpleNamespace(
        denoiser=model(shape), evaluation_denoiser=model(shape), device=torch.device("cpu"), record={},
        log=logged.__setitem__,
    )  # fmt: skip
    return trainer, module, logged


def measure(callback, rank=0, world=1):
    trainer, module, logged = around(crops(), rank, world)
    callback.setup(trainer, module, "fit")
    callback.on_validation_epoch_end(trainer, module)
    return logged


def test_the_value_is_that_of_the_named_seeds(tmp_path):
    logged = measure(monitor(tmp_path, first_seed=5))
    data = crops()
    result = draw(model(), DDIM(UniformGrid(3)), range(5, 15))
    extractor = PixelFeatures(2)
    real = data.split("train").samples(data.train_positions)
    reference = make_reference(lambda: [(real + 1) / 2], extractor, n=6, split="train", recipe="")
    metric = FrechetDistance(extractor, reference, N)
    metric.update(((result.x + 1) / 2).clamp(0, 1))
    # in batches of 4 instead of 10 a pixel may round to the neighbouring one of 256 levels
    assert logged["val/frechet_pixels2_10"] == pytest.approx(float(metric.compute()), rel=1e-3)
    assert logged["step"] == 7
    assert (tmp_path / "step_0000007.png").exists()
    stored = json.loads((tmp_path / "values.json").read_text())
    assert stored["step"] == 7
    assert stored["values"][0]["card"]["n_reference"] == 6
    assert measure(monitor(tmp_path)) != logged, "other seeds"


class Seen(SampleMetric):
    """A metric that no list has."""

    spec = MetricSpec("seen", "higher", needs="pictures")

    def add_features(self, features, index):
        pass

    def compute(self):
        return self.seen.sum()

    def results(self):
        return (self._with_card(self.spec.name, self.compute()),)


def test_a_metric_of_ones_own_is_given_by_its_class(tmp_path):
    callback = monitor(tmp_path, metric=f"{__name__}.Seen")
    assert measure(callback)["val/seen_pixels2_10"] == N
    assert callback.names == ["seen_pixels2_10"]
    with pytest.raises(UserError, match="nowhere"):
        monitor(tmp_path, metric="nowhere.Seen")
    with pytest.raises(ValueError, match="needs pairs, not generated images"):
        monitor(tmp_path, metric="scoreexp.metrics.SSIM")


def worker(rank, world, folder, metric):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    logged = measure(monitor(folder, metric=metric), rank, world)
    Path(folder, f"{rank}.json").write_text(json.dumps(logged))
    distributed.destroy_process_group()


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="starts processes by fork, without importing everything again"
)
@pytest.mark.parametrize("metric", ["frechet", "kernel"])
def test_two_processes_give_the_value_of_one(metric, tmp_path):
    expected = measure(monitor(tmp_path, metric=metric))
    multiprocessing.start_processes(worker, (2, str(tmp_path), metric), nprocs=2, start_method="fork")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    for name, value in expected.items():
        assert found[0][name] == pytest.approx(value, rel=1e-3), "batches of other images: 8-bit rounding"


def test_intervals():
    def due(callback, **state):
        return callback._is_due(around(crops(), **state)[0])

    every = monitor("", every_n_steps=10)
    assert [due(every, global_step=step) for step in (4, 10, 12)] == [False, True, True]
    assert due(every, global_step=4, max_steps=4), "the last step"
    assert due(every, global_step=4, should_stop=True), "training stops here"
    assert due(every, global_step=0, state=SimpleNamespace(fn="validate")), "evaluation without training"
    resumed = monitor("", every_n_steps=10)
    resumed.load_state_dict({"measured_at": 12, "elapsed": 0.0})
    assert [due(resumed, global_step=step) for step in (12, 15, 22)] == [False, False, True]
    assert resumed.state_dict() == {"measured_at": 12, "elapsed": 0.0}
    seconds = monitor("", every_n_seconds=50)
    assert not due(seconds)
    seconds.load_state_dict({"measured_at": 3, "elapsed": 60.0})
    assert due(seconds)
    assert not due(seconds, global_step=3), "measured already"
    assert due(monitor("")), "without an interval every evaluation"


def test_missing_weights_do_not_stop_training(tmp_path, caplog):
    def missing():
        raise MissingWeightsError("the weights are not here")

    callback = monitor(tmp_path, features=missing)
    with caplog.at_level(logging.WARNING):
        assert measure(callback) == {}
        trainer, module, _ = around(crops())
        callback.on_train_end(trainer, module)
    assert callback.not_run == "the weights are not here"
    assert [r.message for r in caplog.records] == [
        "the frechet distance of generated images is not measured: the weights are not here"
    ] * 2


@pytest.mark.parametrize(
    ("data", "match"), [(SwissRoll(), r"\(2,\): set callbacks=points"), (crops(1), "1 real one")]
)
def test_data_that_cannot_be_compared_are_refused(data, match, tmp_path):
    trainer, module, _ = around(data)
    with pytest.raises(UserError, match=match):
        monitor(tmp_path).setup(trainer, module, "fit")
