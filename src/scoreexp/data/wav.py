"""WAV files of one channel, 16-bit PCM or floating point."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import wavfile

from scoreexp.core.errors import UserError
from scoreexp.system.atomic import atomic_write

SUFFIX = ".wav"
_FULL = 32768  # the value of 16 bits that is 1


class WavError(UserError):
    """A WAV file cannot be used; the message names the file, what is allowed and the remedy.

    >>> read_wav(Path("speech.mp3"))
    Traceback (most recent call last):
    scoreexp.data.wav.WavError: speech.mp3 is no WAV file that can be read (...): convert it to 16-bit PCM of one channel
    """


class Wav(NamedTuple):
    """A recording.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_wav(Path(folder, "a.wav"), Wav(np.array([0.25, -1.0], np.float32), 8000))
    ...     read_wav(Path(folder, "a.wav"))
    Wav(samples=array([ 0.25, -1.  ], dtype=float32), rate=8000, is_float=False)

    Attributes:
        samples: float32 ``[n]``, nominally in [-1, 1].
        rate: samples per second.
        is_float: whether the file holds 32-bit floating point values, and not 16-bit whole ones.
    """

    samples: np.ndarray
    rate: int
    is_float: bool = False


def read_wav(path: Path, rate: int | None = None) -> Wav:
    """Read a recording.

    Args:
        path: of the file.
        rate: that it must have, or None for any.

    Raises:
        WavError: it is no such file, has several channels, other values, another rate, or values that are not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no sound
            found, values = wavfile.read(path)
    except Exception as error:  # scipy raises several types for a damaged file
        raise WavError(
            f"{path} is no WAV file that can be read ({error}): convert it to 16-bit PCM of one channel"
        ) from error
    if values.ndim != 1:
        raise WavError(f"{path} has {values.shape[1]} channels: give a file of one, such as their mean")
    if values.dtype not in (np.int16, np.float32):
        raise WavError(
            f"{path} holds {values.dtype} values: 16-bit PCM and 32-bit floating point can be read, convert it"
        )
    if rate is not None and found != rate:
        raise WavError(
            f"{path} has {found} samples per second, but {rate} are asked for: resample it, or use a model of its rate"
        )
    is_float = values.dtype == np.float32
    if is_float and not np.isfinite(values).all():
        raise WavError(f"{path} holds values that are not finite: find their origin")
    samples = values if is_float else values.astype(np.float32) / np.float32(_FULL)
    return Wav(samples, int(found), is_float)


def write_wav(path: Path, wav: Wav) -> int:
    """Write a recording in its format; returns how many samples of 16 bits were clipped to [-1, 1).

    Raises:
        WriteError, FileNotFoundError, FileExistsError: as ``atomic_write``.
    """
    samples, clipped = wav.samples, 0
    if not wav.is_float:
        scaled = np.rint(samples.astype(np.float64) * _FULL)
        samples = scaled.clip(-_FULL, _FULL - 1).astype(np.int16)
        clipped = int((samples != scaled).sum())
    with atomic_write(path) as temporary:
        wavfile.write(temporary, wav.rate, samples)
    return clipped
