"""`restore` on noisy speech, by a run of experiment=speech_ouve."""

import json

import numpy as np
import pytest
from conftest import composed
from scipy.io import wavfile

from scoreexp.app.commands.evaluate import evaluate
from scoreexp.app.commands.restore import restore
from scoreexp.app.commands.train import train
from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError
from scoreexp.data.wav import Wav, read_wav, write_wav
from scoreexp.restore import PROVIDED, SCHEMA


def recording(path, n=3000, seed=0, is_float=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, n).astype(np.float32)
    write_wav(path, Wav(samples, 8000, is_float))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    for name in range(4):
        recording(folder / "clean" / f"{name}.wav", seed=name)
    return train(
        composed(
            "train",
            "experiment=speech_ouve",
            f"data.root={folder / 'clean'}",
            "data.frames=16",
            "data.spectrogram.window=126",
            "data.spectrogram.hop=32",
            "data.batch_size=2",
            "network.network.widths=[8,16]",
            "network.network.blocks=[1,1]",
            "network.network.bands=1",
            "sampler.grid.steps=2",
            "trainer.max_steps=2",
            "trainer.accelerator=cpu",
            f"run_dir={folder / 'run'}",
        )
    )


def asked(source, ckpt, *overrides):
    return composed("restore", f"input={source}", f"ckpt={ckpt}", "device=cpu", *overrides)


@pytest.mark.integration
def test_a_run_on_speech_restores_recordings_and_keeps_their_format(run, tmp_path, capsys):
    assert np.isfinite([run.metrics["val/si_sdr"], run.metrics["val/si_sdr_noisy"]]).all()
    last = run.checkpoint.parents[1] / "pictures" / "last"
    assert {path.name for path in last.iterdir()} == {"clean.wav", "noisy.wav", "restored.wav"}
    noisy = recording(tmp_path / "in" / "noisy.wav", n=2001)
    recording(tmp_path / "in" / "other.wav", is_float=True, seed=2)
    (done,) = restore(asked(noisy, run.checkpoint, f"reference={noisy}"))
    made = read_wav(tmp_path / "in" / "noisy_restored.wav")
    assert (len(made.samples), made.rate, made.is_float) == (2001, 8000, False)
    assert done.values["nfe"] == 3  # a predictor and a corrector, and the last estimate
    assert done.values["si_sdr_input"] > 60  # of the reference itself
    stored = json.loads(noisy.with_name("noisy_restored.json").read_text())
    assert stored["recordings"][0]["si_sdr"] == done.values["si_sdr"]
    (tmp_path / "in" / "noisy_restored.wav").unlink()
    wavfile.write(tmp_path / "in" / "stereo.wav", 8000, np.zeros((9, 2), np.int16))
    with pytest.raises(UserError, match=r"1 of 3 images failed: .*stereo.wav"):
        restore(asked(tmp_path / "in", run.checkpoint, f"output={tmp_path / 'out'}"))
    assert read_wav(tmp_path / "out" / "other.wav").is_float
    assert np.array_equal(read_wav(tmp_path / "out" / "noisy.wav").samples, made.samples)  # the same seed
    assert "stereo.wav has 2 channels" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists: add overwrite=true"):
        restore(asked(tmp_path / "in", run.checkpoint, f"output={tmp_path / 'out'}"))


@pytest.mark.integration
def test_evaluate_says_what_measures_speech(run):
    with pytest.raises(UserError, match=r"restores speech: its quality is given by restore"):
        evaluate(composed("evaluate", f"ckpt={run.checkpoint}", "device=cpu"))


def test_what_speech_does_not_take_is_said_in_a_line(tmp_path, capsys):
    noisy = recording(tmp_path / "noisy.wav")
    for given, expected in (
        ([], "no model comes with the package: give ckpt="),
        (["task=denoise"], "is speech, whose damage its model has learnt: leave out task"),
        (["output=clean.png"], "its suffix must be '.wav'"),
        ([f"ckpt={tmp_path / 'none.ckpt'}"], "none.ckpt"),
    ):
        argv = [f"input={noisy}", *given]
        assert run_app("restore", "scoreexp.restore:run", schema=SCHEMA, provided=PROVIDED, argv=argv) == 1
        assert expected in capsys.readouterr().err
