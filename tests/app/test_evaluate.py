"""`evaluate`: the values of a trained model, what they are called, and what is written."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import TINY, composed
from omegaconf import OmegaConf
from PIL import Image

from scoreexp.app.commands.evaluate import evaluate
from scoreexp.app.commands.train import train
from scoreexp.app.config_check import check_config
from scoreexp.app.evaluation import of_model
from scoreexp.core.errors import UserError
from scoreexp.data import Photo
from scoreexp.diagnostics.likelihood import Likelihood, LikelihoodResult
from scoreexp.evaluate import SCHEMA
from scoreexp.metrics import MetricSpec, PictureMetric, SampleMetric, catalogue
from scoreexp.metrics.likelihood_metrics import LikelihoodMetric
from scoreexp.metrics.score_error import OracleMetric
from scoreexp.metrics.set_metrics import SetMetric
from scoreexp.metrics.spec import Measurement
from scoreexp.numerics.ode import RK45

CROPS = ["data.crop=random", "data.crops=6"]  # of one photograph: six pictures to train on


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    steps = ["trainer.max_steps=2", "callbacks=fid", "callbacks.distribution.n=8", f"run_dir={run}"]
    return train(composed("train", *TINY, *CROPS, *steps))


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The exact score of the training pictures, whose samples are copies of them."""
    run = tmp_path_factory.mktemp("exact") / "run"
    small = [
        "data.size=16",
        "data.validate_on=train",
        "trainer.accelerator=cpu",
        "callbacks.monitor.confirm=1",
    ]
    return train(composed("train", "experiment=photo32_exact", *CROPS, *small, f"run_dir={run}"))


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    run = tmp_path_factory.mktemp("points") / "run"
    small = ["network.width=16", "sampler.grid.steps=3", "callbacks.monitor=null", "callbacks.stop=null"]
    limits = ["callbacks.checkpoints.monitor=null", "trainer.max_steps=2", f"run_dir={run}"]
    return train(composed("train", "experiment=swiss_roll_ve", *small, *limits)).run_dir


@pytest.fixture
def coarse_likelihood(monkeypatch):
    """Its accuracy is tested elsewhere."""
    monkeypatch.setattr(of_model, "Likelihood", lambda trace: Likelihood(RK45(1e-2, 1e-2), trace))


def configured(checkpoint, *overrides):
    given = [f"ckpt={checkpoint}", "sampler=ddim", "sampler.grid.steps=3", "n=8", "device=cpu", *overrides]
    return composed("evaluate", *given)


def last(run):
    return run / "checkpoints" / "last.ckpt"


def test_values_are_those_that_training_logged(trained, tmp_path):
    values = evaluate(
        configured(
            last(trained.run_dir), "metrics=[ssim,psnr,frechet]", f"out={tmp_path / 'out'}", "batch_size=3"
        )
    )
    assert set(values) == {"ssim", "psnr", "frechet_random_conv_8"}
    for name, value in values.items():  # other batches: rounding only; training logs in single precision
        assert value == pytest.approx(trained.metrics[f"val/{name}"], rel=1e-4)


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory):
    """A run that restores a blur by a model trained on pairs."""
    run = tmp_path_factory.mktemp("conditioned") / "run"
    small = ["channels=16", "multipliers=[1,2]", "blocks=1", "attention_resolutions=[]"]
    limits = [
        "trainer.max_steps=1",
        "trainer.val_check_interval=1",
        "trainer.accelerator=cpu",
        "data.size=16",
    ]
    few = ["sampler.grid.steps=2", f"run_dir={run}"]
    overrides = [*(f"network.network.{one}" for one in small), *limits, *few]
    return train(composed("train", "experiment=photo32_ouve", *overrides))


def test_a_model_of_pairs_is_measured_by_what_its_run_restored(conditioned, tmp_path, capsys):
    checkpoint = conditioned.run_dir / "checkpoints" / "last.ckpt"

    def asked(*overrides):
        return composed("evaluate", f"ckpt={checkpoint}", "device=cpu", *overrides)

    values = evaluate(asked(f"out={tmp_path / 'a'}"))
    assert values == {name: pytest.approx(conditioned.metrics[f"val/{name}"], rel=1e-5) for name in values}
    assert set(values) == {"ssim", "ssim_global", "psnr", "mse"}
    values = evaluate(asked(f"out={tmp_path / 'b'}", "metrics=[psnr,fid]"))
    assert set(values) == {"psnr"}
    assert "fid: the model restores observations" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="this run restores GaussianBlur with GaussianNoise, Conditioned: leave sigma"
    ):
        evaluate(asked("sigma=0.5"))


def test_samples_and_values_are_written(trained, tmp_path, capsys):
    out = tmp_path / "out"
    values = evaluate(configured(last(trained.run_dir), "metrics=[mse,kernel]", "first_seed=3", f"out={out}"))
    samples = np.load(out / "samples" / "samples.npz")
    assert samples["samples"].shape == (8, 16, 16, 3)
    assert samples["samples"].dtype == np.uint8
    assert samples["seeds"].tolist() == list(range(3, 11))
    assert np.array_equal(np.asarray(Image.open(out / "samples" / "seed_000005.png")), samples["samples"][2])
    stored = json.loads((out / "evaluation.json").read_text())
    assert stored["values"] == values
    assert stored["cards"]["kernel_random_conv_8"]["n_reference"] == 6
    assert stored["cards"]["mse"]["sigma"] == 0.5
    assert stored["checkpoint"].endswith("last.ckpt")
    assert stored["command"].startswith("python -m scoreexp.evaluate")
    said = capsys.readouterr().out
    assert "kernel_random_conv_8" in said
    assert "samples.npz" not in said


def test_values_of_one_checkpoint_are_collected_in_its_run_folder(trained, capsys):
    file = trained.run_dir / "evaluation.json"
    few = ["n=2", "png=false"]
    evaluate(configured(last(trained.run_dir), "metrics=[mse]"))
    evaluate(configured(last(trained.run_dir), "metrics=[frechet]", *few))
    stored = json.loads(file.read_text())
    assert set(stored["values"]) == {"mse", "frechet_random_conv_2"}
    assert "2 images for 224 feature dimensions" in stored["caveats"]["frechet_random_conv_2"]
    assert "2 images for 224 feature dimensions" in capsys.readouterr().out
    assert not list(trained.run_dir.rglob("seed_*.png"))
    evaluate(configured(last(trained.run_dir), "metrics=[psnr]", "weights=raw"))
    assert set(json.loads(file.read_text())["values"]) == {"psnr"}, "other weights begin anew"
    assert OmegaConf.load(trained.run_dir / "config.yaml").name, "the run itself is left alone"


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["metrics=[sim]"], r"sim is not a metric of pictures; did you mean 'ssim'\? \(metrics: ssim, .*fid.*bits"),
        (["metrics=[nll]"], "nll is not a metric of pictures"),
        (["metrics=[]"], "asks for nothing"),
        (["metrics=[fid]"], r"metric fid: .*Inception.*download http.*SCOREEXP_INCEPTION.*random_conv.*_random_conv_8"),
        (["metrics=[frechet]", "features=inception", "features.path=nowhere.pth"], r"nowhere.pth is no file.*_INCEPTION"),
        (["+data.size=8"], r"shape \[3, 8, 8\], the model \[3, 16, 16\]"),
        (["+data.sise=8"], "sise"),
        (["metrics=[frechet]", "reference_n=1"], "compared with 1 real one"),
        (["metrics=[ms_ssim]"], "161"),
        (["metrics=[mse]", "sigma=250"], r"sigma=250: this model denoises \S+ to \S+ \(units.*250 of 255 is 0.980"),
        (["metrics=[mse]", "+sampler.grid.stepps=3"], "stepps"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(trained, tmp_path, overrides, match, monkeypatch):
    monkeypatch.delenv("SCOREEXP_INCEPTION", raising=False)
    with pytest.raises(ValueError, match=match) as error:
        evaluate(configured(last(trained.run_dir), *overrides, f"out={tmp_path / 'out'}"))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.json"))


def test_a_folder_with_results_is_not_written_to(trained, tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        evaluate(configured(last(trained.run_dir), "metrics=[mse]", f"out={tmp_path}"))


@pytest.mark.parametrize("features", ["random_conv", "pixels", "inception", "exported"])
def test_command_line_passes_the_check(features):
    given = ["features.path=a.pt2", "features.name=mine", "features.dimension=3"] * (features == "exported")
    cfg = composed("evaluate", "ckpt=a.ckpt", f"features={features}", *given, "metrics=[ssim]", "data=photo")
    assert check_config(OmegaConf.to_container(cfg, resolve=True), schema=SCHEMA) == []


def test_copies_are_found(exact, tmp_path):
    steps = ["sampler.grid.steps=20", f"out={tmp_path / 'out'}"]
    values = evaluate(configured(last(exact.run_dir), "metrics=[nearest_neighbour,mse]", *steps))
    # Measured 0.0 and 1.0: the flow of the exact score ends at training pictures, saved with 8 bits.
    assert values["nearest_neighbour_pixels16_8"] < 0.01 * (3 * 16**2) ** 0.5
    assert values["memorised_share_pixels16_8"] == 1
    assert (tmp_path / "out" / "samples" / "nearest.png").exists()
    caveats = json.loads((tmp_path / "out" / "evaluation.json").read_text())["caveats"]
    assert caveats["mse"] == "on the images that were trained on"


def test_bits_are_those_of_dequantised_pictures(trained, tmp_path, monkeypatch):
    seen = []

    class Square:
        trace = "none"

        def __call__(self, model, x, *, streams, cond):
            seen.append(x)
            return LikelihoodResult(-x.double().square().flatten(1).sum(1), x, 1)

    monkeypatch.setattr(of_model, "Likelihood", lambda trace: Square())
    given = ["metrics=[bits_per_dim]", "+data.num_val=2"]
    a, b = (
        evaluate(
            configured(last(trained.run_dir), *given, f"batch_size={size}", f"out={tmp_path / str(size)}")
        )
        for size in (1, 2)
    )
    assert a == b
    assert [len(x) for x in seen] == [1, 1, 2]
    moved = seen[-1] - Photo(size=16, crop="random", crops=6).split("val").samples(np.arange(2))
    assert 0.9 / 255 < moved.abs().max() < 2 / 255, "half a level from rounding, half from dequantisation"
    dimensions = 3 * 16**2
    bits = float(seen[-1].double().square().sum()) / 2 / (dimensions * np.log(2)) + np.log2(255 / 2)
    assert a["bits_per_dim"] == pytest.approx(bits)
    assert not (tmp_path / "1" / "samples").exists(), "nothing was generated"


def test_points(points, tmp_path, capsys, coarse_likelihood):
    out = tmp_path / "out"
    values = evaluate(configured(last(points), "+data.points=300", f"out={out}"))
    assert set(values) == {"sliced_wasserstein_8", "mmd_8", "score_error"}
    samples = np.load(out / "samples" / "samples.npz")["samples"]
    assert samples.shape == (8, 2)
    assert samples.dtype == np.float32
    assert "real points have" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"ssim is not a metric of points.*nll"):
        evaluate(configured(last(points), "metrics=[ssim]", f"out={tmp_path / 'no'}"))
    more = evaluate(
        configured(
            last(points),
            "metrics=[nll,nearest_neighbour]",
            "+data.points=300",
            "+data.num_val=3",
            f"out={tmp_path / 'nll'}",
        )
    )
    assert set(more) == {"nll", "nearest_neighbour_points_8", "memorised_share_points_8"}
    assert "the exact distribution has" in capsys.readouterr().out


class Constant(PictureMetric):
    """A metric in a file of its own: nothing else knows it."""

    spec = MetricSpec("constant", "lower", needs="pairs")

    def per_picture(self, prediction, target):
        return torch.full((len(target),), 0.25)


class Counted(SampleMetric):
    spec = MetricSpec("counted", "higher", needs="pictures")

    def add_features(self, features, index):
        pass

    def compute(self):
        return self.seen.sum()

    def results(self):
        return (self._with_card(self.spec.name, self.compute()),)


class Sizes(SetMetric):
    spec = MetricSpec("sizes", "neither", needs="points", kinds=("points",))

    def __call__(self, generated, real):
        return (Measurement("sizes", len(generated) + len(real) / 1000),)


class Trained(Sizes):
    spec = MetricSpec("trained", "lower", needs="training set", kinds=("points",))

    def __call__(self, generated, real):
        return (Measurement("trained", len(real)),)


class Dimension(OracleMetric):
    spec = MetricSpec("dimension", "higher", needs="oracle", kinds=("points",))

    def __call__(self, model, oracle, *, n, seed, device):
        return (Measurement("dimension", oracle.event_shape[0], {"n": n}, "as told"),)


class Dimensions(LikelihoodMetric):
    spec = MetricSpec("dimensions", "lower", needs="likelihood", kinds=("points",))

    def per_sample(self, log_prob, dimensions):
        return 0 * log_prob + dimensions


def test_a_new_metric_is_one_class_and_one_entry(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "METRICS", (*catalogue.METRICS, f"{__name__}.Constant"))
    values = evaluate(configured(last(trained.run_dir), "metrics=[constant]", f"out={tmp_path / 'out'}"))
    assert values == {"constant": 0.25}
    assert re.search(r"^constant +0.25 +lower ", capsys.readouterr().out, re.M)
    assert catalogue.spec_of("val/constant").direction == "lower"
    with pytest.raises(UserError, match=r"sim is not a metric .*mse, .*bits_per_dim, constant"):
        evaluate(configured(last(trained.run_dir), "metrics=[sim]", f"out={tmp_path / 'no'}"))


@pytest.mark.parametrize(
    ("run", "metric", "name", "value", "better"),
    [
        ("trained", "Constant", "constant", 0.25, "lower"),
        ("trained", "Counted", "counted_random_conv_8", 8, "higher"),
        ("points", "Sizes", "sizes_8", 8.3, "-"),
        ("points", "Trained", "trained_points_8", 300, "lower"),
        ("points", "Dimension", "dimension", 2, "higher"),
        ("points", "Dimensions", "dimensions", 2, "lower"),
    ],
)
def test_a_metric_of_ones_own_is_given_by_its_class(
    run, metric, name, value, better, request, tmp_path, capsys
):
    found = request.getfixturevalue(run)
    request.getfixturevalue("coarse_likelihood")
    folder = getattr(found, "run_dir", found)
    more = ["+data.points=300", "+data.num_val=3"] if run == "points" else []
    given = [f"metrics=[{__name__}.{metric}]", f"out={tmp_path / 'out'}", *more]
    assert evaluate(configured(last(folder), *given)) == {name: pytest.approx(value)}
    assert re.search(rf"^{name} +{value:g} +{better} ", capsys.readouterr().out, re.M)
