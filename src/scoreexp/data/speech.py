"""Pairs of clean and noisy speech, as compressed spectrograms."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import AtLeastTwo, FiniteNonNegativeFloat, PositiveInt, Probability
from scoreexp.data.augment import Augmentation
from scoreexp.data.corpus import FileCorpus, part_of
from scoreexp.data.errors import DataError
from scoreexp.data.image_io import walk
from scoreexp.data.module import Samples
from scoreexp.data.order import Draw
from scoreexp.data.spectrogram import CompressedSTFT
from scoreexp.data.split import Split, SplitName
from scoreexp.data.wav import SUFFIX, WavError, read_wav


@dataclass(frozen=True)
class SpeechNoise:
    """Noise for speech: of a Gaussian law whose power falls with the frequency as ``f^-colour``, or of recordings.

    >>> noise = SpeechNoise(snr=(10.0, 10.0), colour=1.0)
    >>> added = noise.draw(800, np.float32(0.1), generator(0, "noise"))
    >>> round(float(20 * np.log10(0.1 / np.sqrt(np.mean(added**2)))), 3)  # dB below speech of RMS 0.1
    10.0

    Args:
        snr: least and greatest ratio of the power of a whole recording to that of the noise, dB; drawn uniformly.
        colour: 0 is white noise, 1 pink, 2 brown.
        recordings: noise ``[n]`` to take pieces of instead.
    """

    snr: tuple[float, float]
    colour: float = 0.0
    recordings: np.ndarray | None = None

    def draw(self, length: int, level: np.floating[Any], stream: torch.Generator) -> np.ndarray:
        """Float32 ``[length]`` for speech whose root mean square is ``level``."""
        low, high = self.snr
        snr = low + (high - low) * torch.rand((), generator=stream, dtype=torch.float64).item()
        if self.recordings is None:
            noise = _coloured(torch.randn(length, generator=stream).numpy(), self.colour)
        else:
            starts = len(self.recordings) - length + 1
            start = int(torch.randint(starts, (), generator=stream))
            noise = self.recordings[start : start + length]
        rms = np.sqrt(np.mean(np.square(noise, dtype=np.float64)))
        return (noise * (level * 10 ** (-snr / 20) / max(rms, 1e-12))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class SpeechSplit(Split):
    """Segments of clean recordings ``values [N, n]`` in the amplitudes of their files, with what makes pairs of them.

    >>> wave = np.sin(np.arange(1280, dtype=np.float32))[None]
    >>> split = SpeechSplit(wave, levels=np.full(1, 0.7, np.float32), noise=SpeechNoise((0.0, 0.0)))
    >>> [part.shape for part in split.pairs(np.array([0]))]
    [torch.Size([1, 2, 256, 11]), torch.Size([1, 2, 256, 11])]

    Args:
        levels: root mean square of each segment's whole recording ``[N]``.
        transform: to spectrograms.
        noise: that is added.
        key: names the noise.
    """

    levels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    transform: CompressedSTFT = field(default_factory=CompressedSTFT)
    noise: SpeechNoise = SpeechNoise((0.0, 0.0))
    key: tuple[int | str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def samples(self, positions: np.ndarray) -> Tensor:
        return self.pairs(positions)[0]

    def pairs(self, positions: np.ndarray, places: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Clean and noisy spectrograms ``[B, 2, F, T]`` of segments scaled by the largest amplitude of the noisy one.

        Args:
            positions: of the segments.
            places: in the training stream, which name the noise; None for noise that is always the same.
        """
        clean = np.asarray(self.values[positions], np.float32)
        names = (
            [("position", int(i)) for i in positions]
            if places is None
            else [("place", int(i)) for i in places]
        )
        noise = [
            self.noise.draw(clean.shape[1], self.levels[position], generator(*self.key, *name))
            for position, name in zip(positions, names, strict=True)
        ]
        noisy = clean + np.stack(noise) if noise else clean
        largest = np.abs(noisy).max(1, keepdims=True, initial=1e-12)
        both = self.transform(torch.from_numpy(np.concatenate([clean / largest, noisy / largest])))
        x, y = both.split(len(clean))
        return x, y


class SpeechSamples(Samples):
    """Pairs of a split: ``Batch.x`` is clean and ``Batch.y`` noisy; each place of the training stream has fresh noise.

    >>> split = SpeechSplit(np.ones((3, 300), np.float32), levels=np.ones(3, np.float32))
    >>> batch = SpeechSamples(split, positions=np.arange(3))[Draw(np.array([0, 2]))]
    >>> batch.y.shape == batch.x.shape, batch.index
    (True, tensor([0, 2]))
    """

    split: SpeechSplit

    def __getitem__(self, draw: Draw) -> Batch:
        positions = self.positions[draw.elements]
        x, y = self.split.pairs(positions, draw.places)
        return Batch(x=x, y=y, index=torch.from_numpy(positions))


class Speech(FileCorpus):
    """Every WAV file below ``root`` with noise added, cut into segments of ``frames`` frames, as pairs of spectrograms.

    The files are clean speech, 16-bit PCM or floating point, of one channel and ``rate`` samples per second. Each belongs to
    one split, by the hash of its name; its last segment is filled up with silence. Noise is added at a ratio to the power of
    the whole file that is drawn anew for each segment, and anew each time that a segment is trained on. Segments are scaled
    by the largest amplitude of the noisy one.

    >>> import tempfile
    >>> from scoreexp.data.wav import Wav, write_wav
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for n in range(3):
    ...         _ = write_wav(Path(root, f"{n}.wav"), Wav(np.sin(np.arange(9000, dtype=np.float32)), 8000))
    ...     data = Speech(root=root, rate=8000, frames=32, batch_size=2)
    ...     batch = next(iter(data.train_dataloader()))
    >>> batch.x.shape, batch.y.shape
    (torch.Size([2, 2, 256, 32]), torch.Size([2, 2, 256, 32]))

    Args:
        spectrogram: how recordings become images.
        rate: samples per second that the files must have.
        frames: of a segment.
        snr: least and greatest ratio of speech to noise, dB.
        colour: of Gaussian noise, whose power falls as ``f^-colour``: 0 is white, 1 pink, 2 brown.
        noise_root: folder of WAV files of noise to add instead; all splits draw from them.
        val_fraction, test_fraction: shares of the files.
        common: the keys of ``DataModule``.

    Raises:
        DataError: there are too few files, one cannot be used, or a key of images is given.
    """

    how_to_get = (
        "set data.root to a folder of WAV files of clean speech, 16-bit or floating point, of one channel"
    )

    @checked
    def __init__(
        self,
        *,
        spectrogram: CompressedSTFT | None = None,
        rate: PositiveInt = 16000,
        frames: AtLeastTwo = 256,
        snr: tuple[float, float] = (0.0, 20.0),
        colour: FiniteNonNegativeFloat = 0.0,
        noise_root: str | None = None,
        val_fraction: Probability = 0.1,
        test_fraction: Probability = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if self.augment or self.rotation or self.gray_share:
            raise DataError(
                "data.augment, data.rotation and data.gray_share are for images, not speech: leave them"
            )
        if not val_fraction + test_fraction < 1:
            raise DataError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}: "
                "give shares that leave something for training"
            )
        low, high = snr
        if not -float("inf") < low <= high < float("inf"):
            raise DataError(f"data.snr={[low, high]}: give two finite ratios in dB, the least first")
        self.spectrogram = CompressedSTFT() if spectrogram is None else spectrogram
        self.length = self.spectrogram.length(frames)
        if self.length <= self.spectrogram.window // 2:
            raise DataError(
                f"data.frames={frames}: {self.length} samples are less than half a window: give more"
            )
        self.rate, self.frames, self.snr, self.colour = rate, frames, (float(low), float(high)), float(colour)
        self.noise_root = None if noise_root is None else Path(noise_root).expanduser()
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2, self.spectrogram.frequencies, self.frames)

    def open_split(self, name: SplitName) -> Split:
        files = _wav_files(self.folder, self.how_to_get)
        chosen = part_of(files, name, self.val_fraction, self.test_fraction)
        if len(files) < 2 or not chosen:
            raise DataError(
                f"{len(files)} recordings are too few to hold some out: add files to {self.folder}"
            )
        segments, levels, names = [], [], []
        for path in chosen:
            found = self._recording(path)
            count = -(-len(found) // self.length)
            segments.append(np.pad(found, (0, count * self.length - len(found))).reshape(count, self.length))
            levels.append(np.full(count, np.sqrt(np.mean(np.square(found, dtype=np.float64))), np.float32))
            names += [path.name] * count
        return SpeechSplit(
            np.concatenate(segments),
            names=names,
            levels=np.concatenate(levels),
            transform=self.spectrogram,
            noise=SpeechNoise(self.snr, self.colour, self._noise_recordings()),
            key=(self.seed, "speech noise", name),
        )

    def _noise_recordings(self) -> np.ndarray | None:
        if self.noise_root is None:
            return None
        how = "set data.noise_root to a folder of WAV files of noise, or to null"
        if not self.noise_root.is_dir():
            raise DataError(f"data.noise_root={self.noise_root} is not a folder: {how}")
        found = np.concatenate([self._recording(path) for path in _wav_files(self.noise_root, how)])
        if len(found) < self.length:
            raise DataError(
                f"data.noise_root={self.noise_root} holds {len(found)} samples, and a segment has {self.length}: add noise"
            )
        return found

    def _recording(self, path: Path) -> np.ndarray:
        try:
            found = read_wav(path, self.rate).samples
        except WavError as error:
            raise DataError(str(error)) from error
        if not found.any():
            raise DataError(f"{path} is silent: take it out of the folder")
        return found

    def _samples(
        self, split: Split, positions: np.ndarray, augmentation: Augmentation | None = None
    ) -> Samples:
        return SpeechSamples(split, positions)


def _wav_files(folder: Path, how_to_get: str) -> list[Path]:
    found = sorted(path for path in walk(folder) if path.suffix.lower() == SUFFIX)
    if not found:
        raise DataError(f"no WAV file in {folder}: {how_to_get}")
    return found


def _coloured(white: np.ndarray, colour: float) -> np.ndarray:
    """White noise ``[n]`` with its power scaled by ``f^-colour``; without its mean where that would be infinite."""
    if colour == 0:
        return white
    spectrum = np.fft.rfft(white)
    frequency = np.arange(len(spectrum), dtype=np.float64)
    spectrum[0] = 0
    spectrum[1:] *= frequency[1:] ** (-colour / 2)
    return np.fft.irfft(spectrum, len(white))
