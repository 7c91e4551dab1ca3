"""Random streams as functions of a key.

A stream is named by what it is for, ``(seed, purpose, step or image index)``, and never by what was drawn before. A
resumed run therefore draws what the uninterrupted one would have drawn with nothing to save, and a seed names an
image whatever the batch size or the number of devices.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream_seed(*key: int | str) -> int:
    """A 63-bit seed from ``key``: the BLAKE2b hash of its parts, the same on every platform and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for the stream ``key``."""
    return torch.Generator(device).manual_seed(stream_seed(*key))


class ImageStreams:
    """One CPU generator per image, so that an image's noise does not depend on its neighbours in the batch.

    Args:
        seeds: one seed per image.
        purpose: what the draws are for; the same seed under another purpose gives independent draws.
    """

    def __init__(self, seeds: Sequence[int], purpose: str = "sampling") -> None:
        self.seeds = tuple(int(seed) for seed in seeds)
        self._generators = [generator(seed, purpose) for seed in self.seeds]

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, like: Tensor) -> Tensor:
        """The next standard normal draw of every image: shape, dtype and device of ``like[B, *]``.

        Raises:
            ValueError: if ``like`` does not hold one sample per seed.
        """
        if like.shape[0] != len(self):
            raise ValueError(f"{like.shape[0]} samples for {len(self)} image seeds: give one seed per sample")
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        draws = [torch.randn(like.shape[1:], generator=g, dtype=dtype) for g in self._generators]
        stacked = torch.stack(draws) if draws else torch.empty(like.shape, dtype=dtype)
        return stacked.to(device=like.device, dtype=like.dtype)
