"""Restoring speech: the image that a model restores is the compressed spectrogram of a recording."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.data.spectrogram import CompressedSTFT
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.images import Tiles, restore_observed


class RestoredSpeech(NamedTuple):
    """A restored recording.

    Attributes:
        wave: ``[n]``, in the amplitudes of the input, on its device.
        nfe: evaluations of the network for each tile.
        seconds: wall time of all tiles.
    """

    wave: Tensor
    nfe: int
    seconds: float


def restore_speech(
    restorer: Restorer,
    model: DenoiserBase,
    wave: Tensor,
    spectrogram: CompressedSTFT,
    *,
    seed: int = 0,
    tiles: Tiles | None = None,
    callback: Callback | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> RestoredSpeech:
    """Restore a noisy recording of any length with a model of pairs of spectrograms (``data.Speech``).

    The recording is scaled to a largest amplitude of 1, as in training, and scaled back. A long one goes through in tiles.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser, Wrapper
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.restorers import Conditioned
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import OUVE
    >>> class Halved(Wrapper):  # stands for a trained model, to which half of each coefficient is noise
    ...     def __call__(self, x_t, t, cond=None):
    ...         return self.model(x_t, t) - cond / 2
    >>> zero = torch.zeros(2, 64, 8)
    >>> model = Halved(OracleDenoiser(Gaussian(zero, zero), OUVE()))
    >>> wave, transform = torch.sin(torch.arange(250.0)), CompressedSTFT(window=126, hop=32)
    >>> restored = restore_speech(Conditioned(DDIM(UniformGrid(2))), model, wave, transform)
    >>> torch.allclose(restored.wave, wave / 4, atol=1e-5)  # amplitudes are compressed by their root
    True

    Args:
        restorer: such as ``Conditioned``.
        model: its network knows the kind of noise from its training.
        wave: ``[n]``, of the rate that the model was trained on.
        spectrogram: with which the model was trained.
        seed: names the noise that the restorer draws.
        tiles: how a long recording is divided, in frames and frequencies; None is the default.
        callback: called after each step of a tile, see ``Restorer``.
        progress: called with (tiles done, tiles in all).
        warn: told when tiles become smaller because memory has run out.

    Raises:
        ValueError: the recording is silent, shorter than half a window, or no channel.
    """
    if wave.ndim != 1:
        raise ValueError(f"wave has the shape {tuple(wave.shape)}: give one channel [n]")
    largest = wave.abs().max()
    if not largest > 0:
        raise ValueError("the recording is silent: there is nothing to restore")
    y = spectrogram((wave / largest)[None]).to(model.device)
    restored = restore_observed(
        restorer,
        model,
        Observation(y, Identity(), GaussianNoise(0.0)),  # a conditioned model does not look at the noise
        streams_of=lambda row, column: ImageStreams(
            [seed if row == column == 0 else stream_seed(seed, "speech", row, column)]
        ),
        tiles=Tiles() if tiles is None else tiles,
        callback=callback,
        progress=progress,
        warn=warn,
    )
    made = spectrogram.inverse(restored.x.to(wave), len(wave))[0] * largest
    return RestoredSpeech(made, restored.nfe, restored.seconds)
