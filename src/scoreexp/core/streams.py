"""Random streams as functions of a key.

A stream is named by what it is for, ``(seed, purpose, step or image index)``, and never by what was drawn before. A
resumed run therefore draws what the uninterrupted one would have drawn with nothing to save, and a seed names an
image whatever the batch size or the number of devices.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def stream_seed(*key: int | str) -> int:
    """A 63-bit seed from ``key``: the BLAKE2b hash of its parts, the same on every platform and in every process.

    >>> stream_seed(0, "noise", 7) == stream_seed(0, "noise", 7) != stream_seed(0, "noise", 8)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for the stream ``key``.

    >>> first, again = (torch.randn(3, generator=generator(0, "noise", 7)) for _ in range(2))
    >>> torch.equal(first, again)
    True
    """
    return torch.Generator(device).manual_seed(stream_seed(*key))


class ImageStreams:
    """One CPU generator per image, so that an image's noise does not depend on its neighbours in the batch.

    >>> alone = ImageStreams([7]).normal(torch.zeros(1, 3, 8, 8))
    >>> beside_another = ImageStreams([3, 7]).normal(torch.zeros(2, 3, 8, 8))
    >>> torch.equal(alone[0], beside_another[1])
    True

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
            ValueError: if ``like`` does not hold one sample per seed (as in all draws).
        """
        return self._drawn(like, lambda one, g: torch.randn(one.shape, generator=g, dtype=one.dtype))

    def poisson(self, rate: Tensor) -> Tensor:
        """Counts of mean ``rate[B, *] >= 0``, in its shape, dtype and device."""
        return self._drawn(rate, lambda one, g: torch.poisson(one, generator=g))

    def binomial(self, count: Tensor, share: float) -> Tensor:
        """How many of ``count[B, *]`` are taken, each with the probability ``share``, in its shape, dtype and device."""
        return self._drawn(
            count, lambda one, g: torch.binomial(one, torch.full_like(one, share), generator=g)
        )

    def gamma(self, like: Tensor, shape: float) -> Tensor:
        """Gamma variables of ``shape`` > 0 and scale 1, in the shape, dtype and device of ``like[B, *]``."""
        # torch.distributions.Gamma draws by the same function but takes no generator
        return self._drawn(
            like, lambda one, g: torch._standard_gamma(torch.full_like(one, shape), generator=g)
        )

    def _drawn(self, like: Tensor, draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        """Each image's draw, made in float32 or float64 on the CPU."""
        if like.shape[0] != len(self):
            raise ValueError(f"{like.shape[0]} samples for {len(self)} image seeds: give one seed per sample")
        given = like.detach().to("cpu", torch.float64 if like.dtype == torch.float64 else torch.float32)
        draws = [draw(one, g) for one, g in zip(given, self._generators, strict=True)]
        stacked = torch.stack(draws) if draws else torch.empty_like(given)
        return stacked.to(device=like.device, dtype=like.dtype)
