"""`restorer=` and `guidance=` of the commands."""

import json

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image

import scoreexp as se
from scoreexp.app.commands.denoise import denoise
from scoreexp.app.commands.evaluate import evaluate
from scoreexp.app.commands.sample import sample
from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError
from scoreexp.data.image_io import read_image
from scoreexp.denoise import PROVIDED, SCHEMA
from scoreexp.observations import GaussianNoise
from scoreexp.restorers import ZSN2N
from scoreexp.restorers.images import restore_pixels
from scoreexp.runs.model import build_denoiser, model_record

CONFIG = {
    "network": {
        "_target_": "scoreexp.networks.UNet",
        "channels": 16,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_resolutions": [],
    },
    "precond": {"_target_": "scoreexp.denoisers.EDMPrediction"},
    "schedule": {"_target_": "scoreexp.schedules.VP"},
    "sampler": {
        "_target_": "scoreexp.samplers.DDIM",
        "grid": {"_target_": "scoreexp.samplers.UniformGrid", "steps": 3},
    },
}

CLASSIFIER_FREE = {
    "_target_": "scoreexp.guidance.ClassifierFree",
    "weight": 40,
    "interval": None,
    "rescale": 0.0,
}


def saved(path, classes, label_dropout=0.1):
    """A checkpoint of random weights."""
    record = model_record(CONFIG | {"model": {"label_dropout": label_dropout}}, (3, 8, 8), classes)
    model = build_denoiser(record)
    random = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, 0, 0.1, generator=random)
    state = {f"denoiser.{key}": value for key, value in model.state_dict().items()}
    torch.save({"scoreexp": record, "global_step": 1, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("classes") / "last.ckpt", classes=3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("plain") / "last.ckpt", classes=None)


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 35, 3), dtype=np.uint8)).save(path)
    return path


def denoised(noisy, *overrides):
    return denoise(composed("denoise", f"input={noisy}", "device=cpu", "overwrite=true", *overrides))


def test_a_restorer_without_a_model_needs_no_checkpoint(noisy, capsys):
    (done,) = denoised(noisy, "restorer=zs_n2n", "restorer.steps=5")
    before, after = read_image(noisy).pixels, read_image(done.target).pixels
    expected = restore_pixels(ZSN2N(steps=5), None, before, GaussianNoise(1.0)).states[-1]
    assert np.abs(after - expected).max() <= 0.51 / 255
    assert np.abs(after - before).max() > 0.1
    said = capsys.readouterr().out
    assert "estimated from noisy.png" in said
    assert "the run" not in said, "there is none"
    (done,) = denoised(noisy, "restorer=zs_n2n", "restorer.steps=5", "sigma=0.07")
    assert done.sigma == 0.07
    assert np.array_equal(read_image(done.target).pixels, after)


def test_a_restorer_with_a_model(plain, tmp_path):
    path = tmp_path / "small.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    asked = ["restorer=dds", "restorer.grid.steps=2", "sigma=0.1", f"ckpt={plain}"]
    (done,) = denoised(path, *asked)
    pixels = read_image(path).pixels
    restorer = se.restorers.DDS(se.samplers.UniformGrid(2))
    expected = restore_pixels(restorer, se.load(plain), pixels, GaussianNoise(0.2)).states[-1]
    assert np.abs(read_image(done.target).pixels - expected).max() <= 0.51 / 255


def test_guidance_denoises_towards_the_class(of_classes, noisy):
    asked = [f"ckpt={of_classes}", "sigma=0.2", "label=1"]
    (done,) = denoised(noisy, *asked, "guidance=classifier_free", "guidance.weight=40")
    model = se.guidance.ClassifierFree(se.load(of_classes), weight=40.0)
    expected = se.denoise(read_image(noisy).pixels, model, 0.2, label=1)
    assert np.abs(read_image(done.target).pixels - expected).max() <= 0.51 / 255
    (done,) = denoised(noisy, *asked)
    assert np.abs(read_image(done.target).pixels - expected).max() > 2 / 255


def test_guidance_draws_towards_the_class_and_is_counted_and_recorded(of_classes, tmp_path):
    asked = [f"ckpt={of_classes}", "n=2", "device=cpu", "sampler.grid.steps=3", "label=1"]
    folder = sample(
        composed(
            "sample", *asked, "guidance=classifier_free", "guidance.weight=40", f"out={tmp_path / 'guided'}"
        )
    )
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["nfe_per_sample"] == 6
    assert meta["guidance"] == CLASSIFIER_FREE
    model = se.guidance.ClassifierFree(se.load(of_classes), weight=40.0)
    sampler = se.samplers.DDIM(se.samplers.UniformGrid(3))
    for seed, expected in enumerate(se.sample(model, 2, sampler=sampler, label=1)):
        found = read_image(folder / f"seed_{seed:06d}.png").pixels
        assert np.abs(found - expected.movedim(0, -1).numpy()).max() <= 0.51 / 255
    plain = sample(composed("sample", *asked, f"out={tmp_path / 'plain'}"))
    meta = json.loads((plain / "meta.json").read_text())
    assert (meta["nfe_per_sample"], meta["guidance"]) == (3, None)
    first, second = (read_image(f / "seed_000000.png").pixels for f in (folder, plain))
    assert np.abs(first - second).max() > 2 / 255


def test_evaluate_measures_the_guided_model_and_its_cards_say_so(of_classes, tmp_path, capsys):
    asked = [
        f"ckpt={of_classes}", "data=photo", "data.size=8", "device=cpu", "n=4", "png=false",
        "+sampler.grid.steps=3", "features=pixels",
    ]  # fmt: skip
    values, cards = {}, {}
    for name, guidance in (("plain", []), ("guided", ["guidance=classifier_free", "guidance.weight=40"])):
        out = tmp_path / name
        metrics = f"metrics=[nearest_neighbour,minority_score{',bits_per_dim' * bool(guidance)}]"
        values[name] = evaluate(composed("evaluate", *asked, metrics, *guidance, f"out={out}"))
        cards[name] = json.loads((out / "evaluation.json").read_text())["cards"]
    (measured,) = {key for key in values["plain"] if key.startswith("nearest")}
    assert values["plain"][measured] != values["guided"][measured]
    plain, guided = cards["plain"][measured], cards["guided"][measured]
    assert "guidance" not in plain
    assert guided["guidance"] == CLASSIFIER_FREE
    assert (plain["nfe"], guided["nfe"]) == (3, 6)
    scores = [values[name]["minority_score_4"] for name in ("plain", "guided")]
    assert scores[0] != scores[1]
    assert cards["guided"]["minority_score_4"]["level"] == 0.7
    assert "bits_per_dim: a guided model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("guidance", "nfe"),
    [
        (["guidance=classifier_free", "guidance.interval=[0.1,1]"], None),
        (["guidance=adaptive"], None),
        (["guidance=linear_ag", "guidance.grid.steps=4", "guidance.pilots=2"], 5),
        (["guidance=residual"], 5),
        (["guidance=autoguidance", "guidance.weak.path=CKPT", "guidance.weak.weights=raw"], 8),
        (["guidance=minority", "guidance.classifier.path=CLASSIFIER"], 4),
    ],
    ids=lambda value: value[0].partition("=")[2] if isinstance(value, list) else "",
)
def test_each_guidance_is_a_choice_of_sample_and_denoise(of_classes, tmp_path, noisy, guidance, nfe):
    classifier = se.guidance.QuantileClassifier((3, 8, 8), quantiles=3, width=8)
    se.guidance.save_classifier(classifier, tmp_path / "classifier.pt")
    files = {"CKPT": str(of_classes), "CLASSIFIER": str(tmp_path / "classifier.pt")}
    guidance = [
        key.replace(name, file) for key in guidance for name, file in files.items() if name in key
    ] + [key for key in guidance if not any(name in key for name in files)]
    asked = [f"ckpt={of_classes}", "n=2", "device=cpu", "sampler.grid.steps=4", f"out={tmp_path / 'drawn'}"]
    folder = sample(composed("sample", *asked, *guidance))
    found = json.loads((folder / "meta.json").read_text())["nfe_per_sample"]
    assert found == nfe if nfe else 4 <= found <= 8
    if "guidance=minority" in guidance:
        with pytest.raises(
            ValueError, match=r"\(3, 22, 36\) for a classifier of \(3, 8, 8\): this one takes"
        ):
            denoised(noisy, f"ckpt={of_classes}", "sigma=0.2", "label=1", *guidance)
    elif "guidance=linear_ag" not in guidance:  # fitted to other times
        denoised(noisy, f"ckpt={of_classes}", "sigma=0.2", "label=1", *guidance)


GUIDED = "guidance=classifier_free"


@pytest.mark.parametrize(
    ("model", "overrides", "match"),
    [
        (None, [GUIDED, "label=1"], "the bundled prior takes no guidance and no label: leave"),
        ("plain", ["restorer=zs_n2n"], "ZSN2N takes no ckpt: leave ckpt out"),
        (None, ["restorer=zs_n2n", GUIDED, "label=1"], "takes no guidance and no label: leave"),
        ("plain", ["restorer=dds", "sampler=ddim"], "DDS takes no sampler: leave sampler out"),
        ("plain", [GUIDED, "label=1"], "the model has no classes"),
        ("of_classes", [GUIDED], r"give that of the image, label=0 to 2"),
        ("of_classes", [GUIDED, "label=none"], r"give that of the image, label=0 to 2"),
        ("of_classes", [GUIDED, "label=1", "guidance.weight=nan"], "guidance: weight=nan: choose a finite"),
    ],
)
def test_what_does_not_go_together_is_one_line(model, overrides, match, request, noisy):
    given = [] if model is None else [f"ckpt={request.getfixturevalue(model)}"]
    with pytest.raises(ValueError, match=match) as error:
        denoised(noisy, "sigma=0.2", *given, *overrides)
    assert "\n" not in str(error.value)
    assert [path.name for path in noisy.parent.iterdir()] == ["noisy.png"]


def test_sample_refuses_guidance_of_a_model_without_classes_and_without_a_label(plain, of_classes, tmp_path):
    asked = ["device=cpu", GUIDED, "sampler.grid.steps=2", f"out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="the model has no classes"):
        sample(composed("sample", f"ckpt={plain}", *asked))
    with pytest.raises(ValueError, match="needs labels"):
        sample(composed("sample", f"ckpt={of_classes}", "label=none", *asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ckpt=x.ckpt", GUIDED, "guidance.weight=much"], "guidance.weight=much must be a number"),
        (["ckpt=x.ckpt", GUIDED, "+guidance.model=1"], "guidance.model=1 cannot be set"),
        (["restorer=zs_n2n", "restorer.steps=0"], "restorer.steps=0 must be an int >= 1"),
        (["restorer=zs_n2"], "did you mean 'zs_n2n'?"),
        (["restorer=3"], "restorer=3 is not a choice of restorer"),
    ],
)
def test_keys_are_checked_like_those_of_a_sampler(arguments, said, noisy, capsys):
    argv = [f"input={noisy}", *arguments]
    assert run_app("denoise", "scoreexp.denoise:run", schema=SCHEMA, provided=PROVIDED, argv=argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["denoise", "sample"])
def test_the_help_of_a_command_has_a_line_for_each_group(command, capsys):
    assert run_app(command, f"scoreexp.{command}:run", argv=["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("  guidance=" in line and "classifier_free" in line for line in lines)
    assert any("  restorer=" in line and "zs_n2n" in line for line in lines) == (command == "denoise")
