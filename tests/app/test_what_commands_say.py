"""`denoise`, `sample` and `evaluate` as a user meets them: what is refused and when, what is said, what is left behind."""

import contextlib
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, composed
from PIL import Image

import scoreexp.data
import scoreexp.lit
import scoreexp.metrics
from scoreexp.app import progress as step_progress
from scoreexp.app.commands import denoise as denoising
from scoreexp.app.commands import sample as sampling
from scoreexp.app.commands.denoise import denoise
from scoreexp.app.commands.evaluate import evaluate
from scoreexp.app.commands.sample import sample
from scoreexp.app.commands.train import train
from scoreexp.app.early_checks import seeds_of
from scoreexp.app.evaluation import of_denoised
from scoreexp.app.launch import run_app
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import require_reachable, trained_on_one_picture
from scoreexp.core.errors import UserError
from scoreexp.runs import directory
from scoreexp.runs.checkpoint_file import read_checkpoint
from scoreexp.runs.checkpoint_path import CheckpointError, require_checkpoint
from scoreexp.runs.directory import dated_folder, new_folder
from scoreexp.samplers import DDIM, UniformGrid
from scoreexp.schedules import DDPM, VE, VP

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one picture whose evaluations denoise sigma 0.3 in 3 steps."""
    run = tmp_path_factory.mktemp("trained") / "run"
    return train(
        composed("train", *TINY, "trainer.max_steps=2", "callbacks.monitor.sigma=0.3", f"run_dir={run}")
    )


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(path)
    return path


def asked(command, trained, *overrides):
    return composed(command, f"ckpt={trained.checkpoint}", "device=cpu", *overrides)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


# ---------------------------------------------------------------------------------------------- before the first word


def test_a_model_is_read_without_lightning(trained):
    code = f"""
import sys, scoreexp
scoreexp.load({str(trained.checkpoint)!r})
import scoreexp.app.commands.denoise, scoreexp.app.commands.sample
print({{"torch", "pytorch_lightning", "torchmetrics", "matplotlib.pyplot"}} & set(sys.modules))
"""
    assert python(code) == "{'torch'}\n"


def test_what_cannot_be_right_is_refused_without_torch(trained, noisy, tmp_path):
    cases = [
        ("denoise", {"input": "nowhere.png"}, "does not exist"),
        ("denoise", {"input": str(noisy), "output": "a.xyz"}, "suffix"),
        ("denoise", {"input": str(noisy), "device": "gpu"}, "device=gpu"),
        ("denoise", {"input": str(noisy), "ckpt": str(trained.run_dir)}, "is a folder"),
        ("sample", {"n": 4, "seeds": [1, 2]}, "n=4 and seeds"),
        ("sample", {"ckpt": str(noisy)}, "is not a checkpoint"),
        ("evaluate", {"ckpt": "nowhere.ckpt"}, "no checkpoint"),
    ]
    code = f"""
import importlib, sys
from omegaconf import OmegaConf
for name, given, said in {cases!r}:
    usual = {{"ckpt": {str(trained.checkpoint)!r}, "device": "cpu", "output": None, "n": None, "seeds": None}}
    try:
        importlib.import_module(f"scoreexp.{{name}}").run(OmegaConf.create(usual | given))
    except ValueError as error:
        assert said in str(error) and "\\n" not in str(error), error
        print("refused", "torch" in sys.modules)
"""
    assert python(code) == "refused False\n" * len(cases)


@pytest.mark.parametrize("package", [scoreexp.data, scoreexp.metrics])
def test_names_of_packages_are_found(package):
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match=r"scoreexp\.\w+' has no attribute 'Nothing'"):
        _ = package.Nothing


def test_names_of_the_lightning_layer_are_found():
    for name in ("EMA", "ExactScore", "DDPM", "NonFiniteError", "ScoreModule", "ScoreCNN", "ScoreEmbedding"):
        assert getattr(scoreexp.lit, name).__name__ == name


# -------------------------------------------------------------------------------------------------------- noise levels


@pytest.mark.parametrize("schedule", [VP(), VE(), DDPM()], ids=lambda s: type(s).__name__)
def test_noise_levels_are_in_the_units_of_the_user(schedule):
    sampler = DDIM(UniformGrid(3))
    with pytest.raises(UserError, match=r"units of \[0, 1\]; 20000 of 255 is 78\.431") as error:
        require_reachable(sampler, schedule, 20000)
    low, high = str(error.value).split("denoises ")[1].split(" (")[0].split(" to ")
    for level in (float(low), float(high)):  # who does as told is not refused again
        require_reachable(sampler, schedule, level)
    for level in (0.99 * float(low), 1.01 * float(high)):
        with pytest.raises(UserError, match="this model denoises"):
            require_reachable(sampler, schedule, level)


# ------------------------------------------------------------------------------------------------------------ progress


def test_each_step_is_shown(trained, noisy, tmp_path, capsys, monkeypatch):
    for module in (denoising, sampling, of_denoised):
        monkeypatch.setattr(module, "StepProgress", functools.partial(StepProgress, line_seconds=0))
    steps = ["sampler=ddim", "sampler.grid.steps=2"]
    denoise(asked("denoise", trained, f"input={noisy}", "sigma=0.2", "tile=16", "overlap=4", *steps))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "denoising noisy.png  step 1/2"
    assert said[-1] == "denoising noisy.png  tile 6/6  step 2/2"
    sample(asked("sample", trained, "n=2", "batch_size=1", f"out={tmp_path / 's'}", *steps))
    assert capsys.readouterr().err.splitlines() == [
        f"sampling  batch {batch}/2  step {step}/2" for batch in (1, 2) for step in (1, 2)
    ]
    evaluate(asked("evaluate", trained, "metrics=[mse]", f"out={tmp_path / 'e'}", *steps))
    assert capsys.readouterr().err.splitlines() == ["restoring  step 1/2", "restoring  step 2/2"]


def test_a_pipe_gets_a_line_now_and_then_and_a_terminal_a_bar(capsys, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(step_progress.time, "monotonic", lambda: next(clock) / 2)
    x = torch.zeros(1)
    with StepProgress("sampling", 1, line_seconds=10) as progress:
        for i in range(1, 61):
            progress.step(i, 60, x, None)
    assert len(capsys.readouterr().err.splitlines()) in (2, 3)  # of 60 steps of half a second
    monkeypatch.undo()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with StepProgress("sampling", 1) as progress:
        progress.step(3, 60, x, None)
        assert progress._bar is not None
        assert progress._bar.tasks[0].completed == 3
        assert progress._bar.tasks[0].total == 60


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_evaluate_repeats_the_numbers_of_the_run(trained, tmp_path, capsys):
    values = evaluate(asked("evaluate", trained, "metrics=[ssim,psnr]", f"out={tmp_path / 'a'}"))
    for name, value in values.items():  # training logs in single precision
        assert value == pytest.approx(trained.metrics[f"val/{name}"], rel=1e-5)
    assert "pixels, sigma 0.3, DDIM, 3 evaluations" in capsys.readouterr().out
    card = json.loads((tmp_path / "a" / "evaluation.json").read_text())["cards"]["ssim"]
    assert (card["sigma"], card["nfe"], card["sampler"]["grid"]["steps"]) == (0.3, 3, 3)
    given = ["metrics=[ssim]", "+sampler.grid.steps=2", "sigma=0.1", f"out={tmp_path / 'b'}"]
    other = evaluate(asked("evaluate", trained, *given))
    assert "pixels, sigma 0.1, DDIM, 2 evaluations" in capsys.readouterr().out
    assert other["ssim"] != values["ssim"]


def test_evaluate_measures_what_is_possible_and_names_the_rest(trained, tmp_path, capsys):
    metrics = "metrics=[mse,ms_ssim,frechet,kernel]"
    values = evaluate(asked("evaluate", trained, metrics, f"out={tmp_path / 'a'}"))
    assert set(values) == {"mse"}
    said = capsys.readouterr().out
    assert "not measured   frechet, kernel: generated images are to be compared with 1 real one" in said
    assert "not measured   ms_ssim: " in said
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["evaluation.json"], (
        "nothing is drawn for nobody"
    )
    with pytest.raises(UserError, match=r"compared with 1 real one.*at least 2"):
        evaluate(asked("evaluate", trained, "metrics=[frechet]", f"out={tmp_path / 'b'}"))
    assert not (tmp_path / "b").exists()


# ------------------------------------------------------------------------------------------------------------- denoise


@pytest.mark.parametrize(
    ("data", "one"),
    [
        ({"_target_": "scoreexp.data.Photo", "name": None, "crop": "center"}, True),
        ({"_target_": "scoreexp.data.Photo", "name": ["cat"], "crop": "center"}, True),
        ({"_target_": "scoreexp.data.Photo", "path": "a.png", "crop": "random", "crops": 1}, True),
        ({"_target_": "scoreexp.data.CIFAR10", "num_images": 1}, True),
        ({"_target_": "scoreexp.data.CIFAR10", "indices": [7]}, True),
        ({"_target_": "scoreexp.data.Photo", "name": ["cat", "moon"], "crop": "center"}, False),
        ({"_target_": "scoreexp.data.Photo", "name": "cat", "crop": "random"}, False),
        ({"_target_": "scoreexp.data.CIFAR10", "num_images": None, "indices": None}, False),
        (None, False),
    ],
)
def test_models_of_one_picture_are_known(data, one):
    assert trained_on_one_picture({"data": data}) is one


def test_denoise_says_what_its_model_knows_and_which_folder_it_makes(
    trained, noisy, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    steps = ["sigma=0.2", "+sampler.grid.steps=2"]
    denoise(asked("denoise", trained, f"input={noisy}", "output=new/deep/x.png", "strip=true", *steps))
    said = capsys.readouterr().out
    assert "this model was trained on 1 image and can only return that one" in said
    assert "made folder    new\n" in said
    assert "strip=true" not in said
    denoise(asked("denoise", trained, f"input={noisy}", "output=new/deep/y.png", "strip=false", *steps))
    said = capsys.readouterr().out
    assert "made folder" not in said
    assert "strip=true for a comparison" in said


def test_a_failed_picture_is_named_once(trained, noisy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pics"
    folder.mkdir()
    (folder / "a.png").write_bytes(noisy.read_bytes())
    (folder / "bad.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"^1 of 2 images failed: pics/bad\.png \(see above\)$"):
        denoise(asked("denoise", trained, "input=pics", "sigma=0.2", "+sampler.grid.steps=2"))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert line.count("bad.png") == 1


# -------------------------------------------------------------------------------------------------------------- sample


def test_seeds_and_their_number():
    assert seeds_of(None, None) == list(range(16))
    assert seeds_of(2, None) == [0, 1]
    assert seeds_of(2, 100) == [100, 101]
    assert seeds_of(None, [3, 7]) == seeds_of(2, [3, 7]) == [3, 7]
    with pytest.raises(UserError, match="n=4 and seeds="):
        seeds_of(4, [1, 2])
    with pytest.raises(UserError, match="asks for no sample"):
        seeds_of(None, [])


def test_sample_says_that_its_overview_is_a_part(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sampling, "SHOWN", 2)
    steps = ["sampler.grid.steps=1"]
    sample(asked("sample", trained, "n=3", f"out={tmp_path / 'a'}", *steps))
    said = capsys.readouterr().out
    assert "(the first 2 of 3)" in said
    assert "seeds=100" in said
    sample(asked("sample", trained, "seeds=[5,6]", f"out={tmp_path / 'b'}", *steps))
    said = capsys.readouterr().out
    assert "the first" not in said
    assert "seeds=100" not in said


def test_an_interrupted_sample_leaves_nothing(trained, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample(asked("sample", trained, f"out={tmp_path / 'deep' / 'folder'}"))
    assert list(tmp_path.iterdir()) == []
    with contextlib.suppress(KeyboardInterrupt), new_folder(tmp_path / "a" / "b", ""):
        (tmp_path / "a" / "mine").touch()
        interrupted()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine"], "what holds something stays"


def test_calls_of_one_second_write_into_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(directory.time, "strftime", lambda _: "now")
    for name in ("now", "now_2", "now_3"):
        with dated_folder(tmp_path) as folder:
            (folder / "mine").touch()
        assert folder == tmp_path / name
    with contextlib.suppress(KeyboardInterrupt), dated_folder(tmp_path):
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == 3


# --------------------------------------------------------------------------------------------- checkpoints, manifest


def test_a_checkpoint_that_cannot_be_read_names_its_neighbours(trained, tmp_path):
    whole = trained.checkpoint.read_bytes()
    for name, content in (
        ("best.ckpt", whole[:3000]),
        ("last.ckpt", whole),
        ("note.ckpt", b"a letter to nobody"),
    ):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.ckpt .*truncated.*: use last\.ckpt beside it$"):
        read_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(
        CheckpointError, match=r"note\.ckpt .*\(it is not a checkpoint\): use last\.ckpt or best\.ckpt"
    ):
        read_checkpoint(tmp_path / "note.ckpt")
    with pytest.raises(
        CheckpointError, match=r"is a folder: give one of its files: .*best\.ckpt, .*last\.ckpt"
    ):
        require_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a folder: .*checkpoints/last\.ckpt"):
        require_checkpoint(trained.run_dir)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*lst\.ckpt: .*last\.ckpt"):
        require_checkpoint(tmp_path / "lst.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no \.ckpt file"):
        require_checkpoint(tmp_path / "empty")


def test_the_command_of_a_run_can_be_run_again(trained):
    manifest = json.loads((trained.run_dir / "manifest.json").read_text())
    assert manifest["command"] == ["python", *sys.orig_argv[1:]]


def test_a_key_of_what_the_run_has_is_offered_with_a_plus(capsys):
    arguments = ["ckpt=x.ckpt", "sampler.grid.steps=20"]
    assert run_app("evaluate", "scoreexp.app.commands.evaluate:evaluate", argv=arguments) == 1
    assert "no sampler is chosen here; add the key with +sampler.grid.steps=20" in capsys.readouterr().err
