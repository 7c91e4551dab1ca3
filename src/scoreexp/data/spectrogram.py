"""Speech as images: the complex spectrogram, its amplitudes compressed, with real and imaginary part as channels."""

from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo, FinitePositiveFloat, PositiveInt


class CompressedSTFT:
    r"""The short-time Fourier transform with compressed amplitudes, and its inverse.

    .. math:: \tilde c = b\, |c|^a e^{i \angle c}, \qquad c = (|\tilde c| / b)^{1/a} e^{i \angle \tilde c},

    of the coefficients ``c`` under a periodic Hann window, frames centred at every ``hop``-th sample, the signal mirrored at
    its ends. The defaults are the published ones, for speech of 16 kHz whose largest amplitude is 1: windows of 510 samples
    (32 ms, 256 frequencies) every 128 (8 ms), ``a = 1/2``, ``b = 0.15``, which brings most coefficients into [-1, 1]. The
    inverse is exact to rounding.

    Reference: J. Richter, S. Welker, J.-M. Lemercier, B. Lay, T. Gerkmann, "Speech Enhancement and Dereverberation with
    Diffusion-Based Generative Models", 2023, https://arxiv.org/abs/2208.05830, section V.

    >>> transform = CompressedSTFT()
    >>> wave = torch.sin(torch.arange(1000.0))[None]
    >>> transform(wave).shape
    torch.Size([1, 2, 256, 8])
    >>> bool((transform.inverse(transform(wave), length=1000) - wave).abs().max() < 1e-5)
    True

    Args:
        window: samples of the window, which has ``window // 2 + 1`` frequencies.
        hop: samples from frame to frame, at most ``window // 2``, so that each sample lies in two.
        exponent: ``a``, in (0, 1].
        factor: ``b``, > 0.

    Raises:
        ValueError: an argument is outside its domain.
    """

    @checked
    def __init__(
        self,
        window: AtLeastTwo = 510,
        hop: PositiveInt = 128,
        exponent: Annotated[float, (">", 0), ("<=", 1)] = 0.5,
        factor: FinitePositiveFloat = 0.15,
    ) -> None:
        if hop > window // 2:
            raise ValueError(
                f"hop={hop} of windows of {window} samples loses samples between them: give at most {window // 2}"
            )
        self.window, self.hop, self.exponent, self.factor = window, hop, exponent, factor

    @property
    def frequencies(self) -> int:
        """Rows of a spectrogram."""
        return self.window // 2 + 1

    def length(self, frames: int) -> int:
        """The least number of samples that has so many frames."""
        return (frames - 1) * self.hop

    def __call__(self, wave: Tensor) -> Tensor:
        """``[B, n]`` -> ``[B, 2, frequencies, 1 + n // hop]``, real and imaginary part.

        Raises:
            ValueError: the signal is shorter than half a window.
        """
        if wave.shape[-1] <= self.window // 2:
            raise ValueError(
                f"{wave.shape[-1]} samples are at most half of a window of {self.window}: give more than {self.window // 2}"
            )
        found = torch.stft(
            wave, self.window, self.hop, window=self._hann(wave), center=True, return_complex=True
        )
        return torch.view_as_real(self.factor * _power(found, self.exponent)).movedim(-1, 1)

    def inverse(self, spectrogram: Tensor, length: int) -> Tensor:
        """``[B, 2, frequencies, frames]`` -> ``[B, length]``; frames that contradict each other are averaged."""
        found = torch.view_as_complex(spectrogram.movedim(1, -1).contiguous()) / self.factor
        found = _power(found, 1 / self.exponent)
        return torch.istft(
            found, self.window, self.hop, window=self._hann(spectrogram), center=True, length=length
        )

    def _hann(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.window, dtype=like.dtype, device=like.device)


def _power(values: Tensor, exponent: float) -> Tensor:
    """``|c|^a e^(i angle)``; 0 stays 0."""
    size = values.abs()
    return values * size.pow(exponent - 1).where(size > 0, torch.zeros_like(size))
