"""What metrics say of themselves: the list, the reading of it without torch, and the names of logged values."""

import subprocess
import sys
from collections import Counter

import pytest

from scoreexp.core.construct import locate
from scoreexp.core.errors import UserError
from scoreexp.metrics import MetricSpec, catalogue
from scoreexp.metrics.catalogue import METRICS, metric_named, spec_of, specs
from scoreexp.metrics.likelihood_metrics import LikelihoodMetric
from scoreexp.metrics.minority import ModelMetric
from scoreexp.metrics.picture_metrics import PictureMetric
from scoreexp.metrics.sample_metrics import SampleMetric
from scoreexp.metrics.score_error import OracleMetric
from scoreexp.metrics.set_metrics import SetMetric

CALLED_AS = {
    "pairs": PictureMetric,
    "pictures": SampleMetric,
    "points": SetMetric,
    "training set": SetMetric,
    "model": ModelMetric,
    "oracle": OracleMetric,
    "likelihood": LikelihoodMetric,
}


@pytest.mark.parametrize(("target", "read"), list(zip(METRICS, specs(), strict=True)))
def test_the_list_gives_classes_and_what_they_say_of_themselves(target, read):
    metric = locate(target)
    assert metric.spec == read
    assert issubclass(metric, CALLED_AS[read.needs])
    for kind in read.kinds:
        assert metric_named(read.name, kind) is metric
        assert metric_named(target, kind) is metric


def test_a_listed_class_without_a_spec_is_named(monkeypatch):
    monkeypatch.setattr(catalogue, "METRICS", ("scoreexp.metrics.picture_metrics.PictureMetric",))
    with pytest.raises(TypeError, match=r"PictureMetric is in METRICS, but has no spec"):
        specs()


@pytest.mark.parametrize("kind", ["pictures", "points"])
def test_names_are_unique(kind):
    names = Counter(n for spec in specs(kind) for n in {spec.name, *spec.value_names, spec.published} if n)
    assert set(names.values()) == {1}


@pytest.mark.parametrize(
    ("logged", "name", "direction", "mode"),
    [
        ("val/ssim", "ssim", "higher", "max"),
        ("val/ssim_global_confirmed", "ssim_global", "higher", "max"),
        ("best/psnr", "psnr", "higher", "max"),
        ("mse", "mse", "lower", "min"),
        ("val/frechet_random_conv_500", "frechet", "lower", "min"),
        ("fid_2048", "fid", "lower", "min"),
        ("val/kid_inception_5k", "kid", "lower", "min"),
        ("val/precision_pixels8_500", "precision", "higher", "max"),
        ("recall_inception_1500", "recall", "higher", "max"),
        ("val/score_error_0.1", "score_error", "lower", "min"),
        ("nearest_neighbour_pixels32_8", "nearest_neighbour", "neither", None),
        ("memorised_share_points_8", "memorised_share", "lower", "min"),
    ],
)
def test_a_logged_name_leads_to_its_metric(logged, name, direction, mode):
    spec = spec_of(logged)
    assert (spec.name, spec.direction, spec.mode) == (name, direction, mode)
    assert spec.title


@pytest.mark.parametrize(
    "logged", ["train/loss", "val/nfe", "val/ssim_x", "val/sliced_wasserstein_floor", "step", ""]
)
def test_other_values_are_of_no_metric(logged):
    assert spec_of(logged) is None


def test_reports_read_specs_without_torch():
    program = "import sys; from scoreexp.metrics import spec_of; print(spec_of('val/psnr').unit, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "dB False\n", result.stderr


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere.Metric", "metric nowhere.Metric cannot be imported .*give MODULE.CLASS"),
        ("scoreexp.metrics.ssim", "scoreexp.metrics.ssim is not a metric of points"),
        ("scoreexp.metrics.SSIM", "scoreexp.metrics.SSIM is not a metric of points"),
    ],
)
def test_dotted_names_that_lead_to_no_metric_are_one_line(name, match):
    with pytest.raises(UserError, match=match):
        metric_named(name, "points")


def test_a_spec_is_plain_data():
    spec = MetricSpec(
        "a", "lower", needs="points", kinds=("points",), values=(("a", "lower"), ("b", "higher"))
    )
    assert spec.value_names == ("a", "b")
    assert spec.direction_of("b") == "higher"
