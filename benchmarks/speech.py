"""SGMSE+ on synthetic speech in pink noise: ``python -m benchmarks.speech --folder DIR``

espeak-ng reads random sentences in several voices (the package espeakng-loader has it). ``experiment=speech_ouve`` is
trained on some voices and restores recordings of others, whose sentences and noise it has not seen. SI-SDR by torchmetrics,
beside the Wiener filter that is told the spectrum of the noise. ``--doc`` writes the table to docs/restoration.md.
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from benchmarks.cells import Cells
from benchmarks.pages import DOCS, write_table
from scoreexp.core.streams import generator
from scoreexp.data import CompressedSTFT
from scoreexp.data.speech import SpeechNoise
from scoreexp.data.wav import Wav, read_wav, write_wav
from scoreexp.denoisers import DenoiserBase
from scoreexp.restorers import Conditioned, restore_speech
from scoreexp.runs.model import load
from scoreexp.samplers import DDIM, PredictorCorrector, UniformGrid

RATE = 8000
TRAINED = ("en-us+m1", "en-us+f1", "en+m3", "en+f2", "en-us+m5", "en+f4")
HELD_OUT = ("en-us+f3", "en+m7")
WORDS = (
    "about above again answer autumn bottle bridge bright butter candle carry castle cheese "
    "circle cloud corner cotton daughter distant early empty engine evening family feather "
    "finger forest garden gentle golden harbour heavy hollow island journey kitchen ladder "
    "lantern letter little market meadow middle mirror morning mountain narrow never number "
    "ocean orange paper pencil people pillow planet pocket quiet rabbit river round sailor "
    "school second shadow silver simple sister smooth spring station stone summer table thunder "
    "tower travel under valley village visit water weather whisper window winter yellow "
)
RATIOS = (0.0, 5.0, 10.0)  # dB
SPECTROGRAM = CompressedSTFT(254, 64)


@cache
def reader() -> Callable[[str, str], np.ndarray]:
    """``read(text, voice)`` -> float32 ``[n]`` of 8 kHz by espeak-ng, which can be initialised once in a process."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    synchronous = (
        2  # samples are handed over, not played, before the call returns; the other mode can wait for ever
    )
    rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    pieces: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples, count, events):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(take)

    def read(text: str, voice: str) -> np.ndarray:
        pieces.clear()
        if library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice}")
        said = text.encode()
        library.espeak_Synth(said, len(said) + 1, 0, 1, 0, 1, None, None)
        samples = np.frombuffer(b"".join(pieces), np.int16) / 32768
        made = resample_poly(samples, 160, 441) if rate == 22050 else resample_poly(samples, RATE, rate)
        return (0.5 * made / np.abs(made).max()).astype(np.float32)

    read.library, read.take = library, take  # type: ignore[attr-defined]  # the callback must outlive this call
    return read


def make_speech(folder: Path, voices: Sequence[str], count: int) -> list[Path]:
    """``count`` sentences of eight words, read in turn by the voices, as WAV files; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.wav" for number in range(count)]
    read = None if all(path.exists() for path in paths) else reader()
    for number, path in enumerate(paths):
        if read is not None and not path.exists():
            words = WORDS.split()
            chosen = torch.randint(len(words), (8,), generator=generator("sentence", *voices, number))
            text = " ".join(words[i] for i in chosen.tolist())
            write_wav(path, Wav(read(text, voices[number % len(voices)]), RATE))
    return paths


def wiener(noisy: Tensor, noise_power: Tensor) -> Tensor:
    """The filter ``max(1 - N / |Y|^2, 0.01)`` in the same windows, with the mean power ``N`` of the noise by frequency."""
    linear = CompressedSTFT(SPECTROGRAM.window, SPECTROGRAM.hop, exponent=1.0, factor=1.0)
    y = linear(noisy[None])
    gain = (1 - noise_power[:, None] / y.square().sum(1, keepdim=True).clamp(min=1e-12)).clamp(min=0.01)
    return linear.inverse(gain * y, len(noisy))[0]


def noise_power_of(noise: SpeechNoise) -> Tensor:
    """Mean power by frequency of the noise of speech whose root mean square is 1, of a minute of it."""
    linear = CompressedSTFT(SPECTROGRAM.window, SPECTROGRAM.hop, exponent=1.0, factor=1.0)
    drawn = torch.from_numpy(noise.draw(60 * RATE, np.float32(1), generator("power of the noise")))
    return linear(drawn[None]).square().sum(1)[0].mean(1)


def methods(model: DenoiserBase) -> dict[str, Conditioned]:
    """The rows: a posterior mean in one evaluation, and draws."""
    return {
        "one evaluation": Conditioned(DDIM(UniformGrid(1))),
        "DDIM, 10 steps": Conditioned(DDIM(UniformGrid(10))),
        "predictor and corrector, 30 steps": Conditioned(
            PredictorCorrector(UniformGrid(30), "euler", snr=0.5, step_size="sigma")
        ),
    }


def measure(model: DenoiserBase, recordings: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Mean SI-SDR of each method by ratio, and its evaluations."""
    values: dict[str, dict[float, list[float]]] = {}
    nfe = {}

    def note(method: str, ratio: float, estimate: Tensor, clean: Tensor) -> None:
        found = float(scale_invariant_signal_distortion_ratio(estimate, clean))
        values.setdefault(method, {}).setdefault(ratio, []).append(found)

    for ratio in RATIOS:
        noise = SpeechNoise((ratio, ratio), colour=1.0)
        power = noise_power_of(noise)
        for number, path in enumerate(recordings):
            clean = read_wav(path, RATE).samples
            level = np.float32(np.sqrt(np.mean(np.square(clean, dtype=np.float64))))
            drawn = noise.draw(len(clean), level, generator("test noise", number))
            x, y = torch.from_numpy(clean), torch.from_numpy(clean + drawn)
            note("noisy", ratio, y, x)
            note("Wiener filter, noise known", ratio, wiener(y, float(level) ** 2 * power), x)
            for name, restorer in methods(model).items():
                restored = restore_speech(restorer, model, y, SPECTROGRAM, seed=number)
                nfe[name] = restored.nfe
                note(name, ratio, restored.wave, x)
    return {
        name: {f"{ratio:g} dB": statistics.mean(found) for ratio, found in by_ratio.items()}
        | {"nfe": nfe.get(name, 0)}
        for name, by_ratio in values.items()
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    columns = [f"{ratio:g} dB" for ratio in RATIOS]
    lines = [
        f"| method | NFE | {' | '.join(f'SI-SDR at {c}' for c in columns)} |",
        f"| --- | ---: | {' | '.join('---:' for _ in columns)} |",
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['nfe']:.0f} | {' | '.join(f'{row[c]:.2f}' for c in columns)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="of the speech and the run")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--recordings", type=int, default=6, help="that are restored")
    parser.add_argument("--ckpt", type=Path, help="of an earlier run on this speech, instead of training")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "speech.json")
    parser.add_argument("--doc", action="store_true", help="write the table into docs/restoration.md")
    options = parser.parse_args()
    cells = Cells(options.json)
    cells.require_settings(parser, options, ("folder", "ckpt", "json", "doc"))
    torch.set_num_threads(1)

    def cell() -> dict[str, object]:
        make_speech(options.folder / "train", TRAINED, options.sentences)
        recordings = make_speech(options.folder / "test", HELD_OUT, options.recordings)
        ckpt = options.ckpt
        if ckpt is None:
            run = options.folder / "run"
            arguments = [f"data.root={options.folder / 'train'}", "trainer.accelerator=cpu", f"run_dir={run}"]
            subprocess.run(
                [sys.executable, "-m", "scoreexp.train", "experiment=speech_ouve", *arguments], check=True
            )
            ckpt = run / "checkpoints" / "best.ckpt"
        return {"rows": measure(load(ckpt), recordings)}

    found = cells.measured("speech_ouve", cell)
    print(table(found["rows"]))
    if options.doc:
        write_table(DOCS / "restoration.md", "speech", table(found["rows"]))


if __name__ == "__main__":
    main()
