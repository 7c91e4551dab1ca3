"""Folders of pictures, estimated noise levels, and what is taken from the model's run."""

import numpy as np
import pytest
from conftest import composed
from PIL import Image

from scoreexp.app.commands import denoise as command
from scoreexp.app.commands.denoise import denoise
from scoreexp.app.commands.train import train
from scoreexp.app.run_settings import nearest_level
from scoreexp.core.errors import UserError
from scoreexp.schedules import DDPM, ConstantNoise


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A score CNN, which knows the noise level 0.1 alone."""
    run = tmp_path_factory.mktemp("trained") / "run"
    cfg = composed(
        "train", "experiment=photo32_score_cnn", "debug=fast", "trainer.accelerator=cpu", "network.widths=[8,8]",
        "callbacks.monitor.pictures=0", "trainer.max_steps=1", "trainer.val_check_interval=1",
        "data.name=astronaut", f"run_dir={run}",
    )  # fmt: skip
    return train(cfg).checkpoint


def picture(path, side=24, level=0.1, seed=0):
    """A gray ramp with noise of this level."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0.3, 0.7, side)[:, None, None] * np.ones((side, side, 3))
    noisy = (ramp + level * random.standard_normal(ramp.shape)).clip(0, 1)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray((255 * noisy).round().astype(np.uint8)).save(path)
    return path


def asked(checkpoint, source, *overrides):
    return composed("denoise", f"ckpt={checkpoint}", f"input={source}", "device=cpu", *overrides)


def test_two_pictures_of_one_name_are_refused_before_any_work(checkpoint, tmp_path, monkeypatch):
    picture(tmp_path / "in" / "b.gif")
    picture(tmp_path / "in" / "b.png")
    monkeypatch.setattr(command, "model_of_pictures", lambda *args, **kwargs: pytest.fail("work was begun"))
    with pytest.raises(UserError, match=r"b\.gif and .*b\.png would both be written to .*b\.png: rename"):
        denoise(asked(checkpoint, tmp_path / "in"))
    assert not (tmp_path / "in_denoised").exists()


def test_a_picture_too_small_for_an_estimate_does_not_end_the_batch(checkpoint, tmp_path, capsys):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png", side=10)
    picture(tmp_path / "in" / "c.png", seed=1)
    with pytest.raises(UserError, match=r"1 of 3 images failed: .*b\.png"):
        denoise(asked(checkpoint, tmp_path / "in", "sigma=auto"))
    assert sorted(path.name for path in (tmp_path / "in_denoised").iterdir()) == [
        "a.png",
        "c.png",
        "denoised.json",
    ]
    assert (
        "b.png: the noise level of an image of shape (10, 10, 3) cannot be estimated"
        in capsys.readouterr().out
    )


def test_an_estimate_near_the_only_level_is_taken_for_it(checkpoint, tmp_path, capsys):
    (done,) = denoise(asked(checkpoint, picture(tmp_path / "a.png", side=64), "sigma=auto"))
    assert done.sigma == pytest.approx(0.1)
    assert "denoises 0.100, the model's nearest level" in capsys.readouterr().out
    far = picture(tmp_path / "b.png", side=64, level=0.2)
    with pytest.raises(UserError, match=r"was estimated, but this model denoises 0\.1 alone.*photo32_ddpm"):
        denoise(asked(checkpoint, far, "sigma=auto"))


@pytest.mark.parametrize(
    ("estimated", "level"), [(0.1, 0.1), (0.119, 0.1), (0.084, 0.1), (0.121, None), (0.08, None)]
)
def test_the_tolerance_is_a_factor_of_six_fifths(estimated, level):
    schedule = ConstantNoise(0.2)
    if level is None:
        with pytest.raises(UserError, match=f"sigma={estimated}"):
            nearest_level(schedule, estimated)
    else:
        assert nearest_level(schedule, estimated) == pytest.approx(level)
    assert nearest_level(DDPM(), 0.3) == 0.3


def test_results_inside_of_the_input_are_not_denoised_again(checkpoint, tmp_path, capsys):
    picture(tmp_path / "in" / "a.png")
    arguments = [f"output={tmp_path / 'in' / 'clean'}", "overwrite=true"]
    for _ in range(2):
        (done,) = denoise(asked(checkpoint, tmp_path / "in", *arguments))
        assert done.source.name == "a.png"
    assert sorted(
        p.relative_to(tmp_path / "in" / "clean").as_posix() for p in (tmp_path / "in/clean").rglob("*")
    ) == ["a.png", "denoised.json"]
    assert "1 images below the output" in capsys.readouterr().out


def test_noise_level_and_sampler_are_those_of_the_run(checkpoint, tmp_path, capsys, monkeypatch):
    steps = []
    whole = command.restore_pixels
    monkeypatch.setattr(
        command, "restore_pixels",
        lambda *args, callback, **kwargs: whole(*args, callback=lambda i, n, *rest: steps.append((i, n)), **kwargs),
    )  # fmt: skip
    (done,) = denoise(asked(checkpoint, picture(tmp_path / "a.png")))
    assert done.sigma == 0.1
    assert steps == [(1, 1)], "its posterior mean: one evaluation"
    assert "sigma = 0.1, that of the model's run" in capsys.readouterr().out
    steps.clear()
    denoise(
        asked(checkpoint, tmp_path / "a.png", "sampler=langevin", "sampler.grid.steps=3", "overwrite=true")
    )
    assert steps[-1] == (3, 3)


def test_a_label_of_a_model_without_classes_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="label=3: the model has no classes"):
        denoise(asked(checkpoint, picture(tmp_path / "a.png"), "label=3"))
