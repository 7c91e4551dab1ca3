"""Speech: the compressed spectrogram and its inverse, WAV files, and the noise of pairs."""

import pickle
import re
import struct

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from scoreexp.core.streams import generator
from scoreexp.data import CompressedSTFT, DataError, Speech
from scoreexp.data.speech import SpeechNoise
from scoreexp.data.wav import Wav, WavError, read_wav, write_wav


def wave(n, seed=0, dtype=torch.float32):
    return torch.randn(n, generator=generator(seed, "wave"), dtype=dtype) / 8


@pytest.mark.parametrize("n", [256, 1000, 128 * 9])
def test_the_inverse_is_exact_to_rounding(n):
    transform, x = CompressedSTFT(), wave(n, dtype=torch.float64)[None]
    spectrogram = transform(x)
    assert spectrogram.shape == (1, 2, 256, 1 + n // 128)
    torch.testing.assert_close(transform.inverse(spectrogram, n), x, rtol=0, atol=1e-13)
    silence = torch.zeros_like(x)
    assert torch.equal(transform.inverse(transform(silence), n), silence)


def test_a_coefficient_is_the_published_one():
    # of frame 10 and frequency 33, by the definition: 0.15 |c|^(1/2) e^(i angle)
    x = wave(4000, dtype=torch.float64).numpy()
    n = np.arange(510)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 510)
    c = (window * x[10 * 128 - 255 + n] * np.exp(-2j * np.pi * 33 * n / 510)).sum()
    real, imaginary = CompressedSTFT()(torch.from_numpy(x)[None])[0, :, 33, 10].tolist()
    assert complex(real, imaginary) == pytest.approx(
        0.15 * abs(c) ** 0.5 * np.exp(1j * np.angle(c)), rel=1e-12
    )


def test_windows_that_leave_gaps_and_signals_shorter_than_one_are_refused():
    with pytest.raises(ValueError, match=r"hop=256 of windows of 510 samples loses .*: give at most 255"):
        CompressedSTFT(hop=256)
    with pytest.raises(ValueError, match="255 samples are at most half of a window of 510"):
        CompressedSTFT()(torch.zeros(1, 255))


def test_wav_files_keep_their_format_and_their_values(tmp_path):
    whole = np.array([0, 1, -32768, 32767], np.int16)
    wavfile.write(tmp_path / "whole.wav", 8000, whole)
    wav = read_wav(tmp_path / "whole.wav")
    assert write_wav(tmp_path / "again.wav", wav) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()
    assert write_wav(tmp_path / "loud.wav", wav._replace(samples=2 * wav.samples)) == 2
    assert wavfile.read(tmp_path / "loud.wav")[1].tolist() == [0, 2, -32768, 32767]
    floating = Wav(np.array([0.1, -3.0], np.float32), 16000, True)
    write_wav(tmp_path / "float.wav", floating)
    again = read_wav(tmp_path / "float.wav", rate=16000)
    assert again.is_float
    assert np.array_equal(again.samples, floating.samples)


def test_recordings_that_cannot_be_used_are_refused_in_a_line_with_the_remedy(tmp_path):
    path = tmp_path / "a.wav"
    for rate, values, expected in (
        (16000, np.zeros((9, 2), np.int16), "has 2 channels: give a file of one"),
        (
            16000,
            np.zeros(9, np.int32),
            "holds int32 values: 16-bit PCM and 32-bit floating point can be read",
        ),
        (16000, np.full(9, np.nan, np.float32), "holds values that are not finite: find their origin"),
        (8000, np.zeros(9, np.int16), "has 8000 samples per second, but 16000 are asked for: resample it"),
    ):
        wavfile.write(path, rate, values)
        with pytest.raises(WavError, match=re.escape(str(path)) + f" .*{expected}"):
            read_wav(path, rate=16000)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4) + b"JUNK")
    with pytest.raises(WavError, match=r"a.wav is no WAV file .*: convert it to 16-bit PCM"):
        read_wav(path)


@pytest.fixture
def folder(tmp_path):
    for name in range(4):
        samples = wave(64 * 63 if name else 64 * 70, name).numpy()
        write_wav(tmp_path / f"{name}.wav", Wav(samples, 8000, True))
    return tmp_path


def speech(folder, **given):
    return Speech(root=str(folder), spectrogram=CompressedSTFT(254, 64), rate=8000, frames=64, **given)


def power_ratio(data, x, y):
    clean, noisy = (data.spectrogram.inverse(part.double(), data.length) for part in (x, y))
    return 10 * torch.log10(clean.square().mean(1) / (noisy - clean).square().mean(1)), noisy


@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_the_noise_of_pairs_has_the_asked_ratio_to_the_recording(folder, colour):
    data = speech(folder, snr=(7.0, 7.0), colour=colour, batch_size=3, val_fraction=0.25)
    split = data.split("train")
    alone = [
        i for i, name in enumerate(split.names) if split.names.count(name) == 1
    ]  # of files of one segment
    x, y = split.pairs(np.array(alone))
    ratio, noisy = power_ratio(data, x, y)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 7.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(noisy.abs().amax(1), torch.ones(len(alone)).double(), rtol=0, atol=1e-5)


def test_pink_noise_loses_half_of_its_power_from_octave_to_octave():
    noise = SpeechNoise((0.0, 0.0), colour=1.0).draw(1 << 17, np.float32(1.0), generator(0, "noise"))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[1 << k : 2 << k].mean() for k in range(9, 16)]
    assert np.diff(np.log2(octaves)) == pytest.approx(-np.ones(6), abs=0.15)


def test_training_noise_is_named_by_the_place_and_validation_noise_by_the_segment(folder):
    data = speech(folder, batch_size=2, val_fraction=0.25)
    split = data.split("train")
    at = np.array([0, 0])
    _, y = split.pairs(at, np.array([3, 4]))
    assert not torch.equal(y[0], y[1])
    assert torch.equal(split.pairs(at[:1], np.array([4]))[1][0], y[1])
    first, second = (next(iter(data.val_dataloader())) for _ in range(2))
    assert torch.equal(first.y, second.y)
    assert torch.equal(pickle.loads(pickle.dumps(split)).pairs(at)[1], split.pairs(at)[1])


def test_noise_of_recordings_is_a_piece_of_them(folder, tmp_path):
    (tmp_path / "noise").mkdir()
    tone = np.sin(np.arange(9000) * 2 * np.pi / 50).astype(np.float32)
    write_wav(tmp_path / "noise" / "tone.wav", Wav(tone, 8000, True))
    data = speech(folder, snr=(0.0, 0.0), noise_root=str(tmp_path / "noise"), val_fraction=0.25)
    x, y = data.split("train").pairs(np.array([0]))
    clean, noisy = (data.spectrogram.inverse(part.double(), data.length)[0] for part in (x, y))
    power = torch.fft.rfft((noisy - clean)[:4000]).abs().square()
    assert power[80] / power.sum() > 0.999


def test_speech_that_does_not_suffice_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match=r"0.wav has 8000 samples per second, but 16000 are asked for"):
        Speech(root=str(folder)).split("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no WAV file in .*empty: set data.root"):
        speech(tmp_path / "empty").split("train")
    with pytest.raises(DataError, match=r"data.snr=\[3, 1\]: give two finite ratios"):
        speech(folder, snr=(3, 1))
    with pytest.raises(DataError, match="are for images, not speech"):
        speech(folder, augment=True)
    for name in "123":
        (folder / f"{name}.wav").unlink()
    with pytest.raises(DataError, match="1 recordings are too few"):
        speech(folder).split("train")
