"""Distances between generated and real pictures in a run."""

from types import SimpleNamespace

from conftest import TINY, composed

from scoreexp.app.commands.train import train
from scoreexp.lit.callbacks import distribution_monitor, timing
from scoreexp.samplers import draw


def test_a_run_logs_it_with_the_averaged_weights_and_books_it_as_evaluation(tmp_path, monkeypatch):
    late, models = [0.0], []
    clock = timing.time.perf_counter

    def slow(denoiser, *args, **kwargs):
        models.append(denoiser)
        late[0] += 1e6  # seconds
        return draw(denoiser, *args, **kwargs)

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock() + late[0]))
    monkeypatch.setattr(distribution_monitor, "draw", slow)
    given = [
        "callbacks=fid",
        "callbacks.distribution.n=4",
        "callbacks.distribution.batch_size=4",
        "data.crop=random",
    ]
    steps = ["trainer.max_steps=3", "trainer.val_check_interval=1", "callbacks.distribution.every_n_steps=2"]
    result = train(composed("train", *TINY, *given, *steps, f"run_dir={tmp_path / 'run'}"))
    assert result.metrics["val/frechet_random_conv_4"] > 0
    assert len(models) == 2, "after step 2 and after the last"
    assert models[0].network is not None
    assert not any(p.requires_grad for p in models[0].parameters()), "the average, which is not trained"
    assert result.seconds["evaluate"] > 2e6
    assert result.seconds["train"] < 1e6
    pictures = {path.name for path in (tmp_path / "run" / "distribution").iterdir()}
    assert pictures == {"step_0000002.png", "step_0000003.png", "values.json"}


def test_missing_inception_weights_in_a_run(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("SCOREEXP_INCEPTION", raising=False)
    given = ["callbacks=fid", "features@callbacks.distribution.features=inception", "trainer.max_steps=1"]
    result = train(composed("train", *TINY, *given, f"run_dir={tmp_path / 'run'}"))
    assert result.status == "finished"
    assert "val/ssim" in result.metrics
    assert not any("inception" in name for name in result.metrics)
    assert (
        sum("is not measured" in r.message and "SCOREEXP_INCEPTION" in r.message for r in caplog.records) == 2
    )
