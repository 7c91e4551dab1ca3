r"""Inpainting: only some pixels are seen.

``y`` holds the seen values alone, ``[B, C, m]``, so a hole carries neither data nor noise and ``A A^T = I``;
``adjoint(y)`` is the image with zeros (mid grey) in the holes. The singular values are 1 and 0.
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import Probability
from scoreexp.observations.operators.base import SVD, LinearOperator, same
from scoreexp.observations.operators.sides import Size, require_sides, sides


class Mask(LinearOperator):
    """The seen pixels ``[B, C, m]`` of images ``[B, C, H, W]``, row by row, the same in all channels.

    >>> import torch
    >>> seen = torch.tensor([[True, False], [True, True]])
    >>> Mask(seen)(torch.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[0., 2., 3.]]])

    Args:
        seen: ``[H, W]``, true (or not 0) where a pixel is seen.

    Raises:
        ValueError: no pixel is seen, or all are, or an image has another size.
    """

    @checked
    def __init__(self, seen: Tensor) -> None:
        if seen.ndim != 2:
            raise ValueError(
                f"the mask has shape {tuple(seen.shape)}: give [H, W], the same for all channels"
            )
        self.seen = seen != 0
        count, total = int(self.seen.sum()), self.seen.numel()
        if count in (0, total):
            what, remedy = (
                ("all hole", "nothing is known") if count == 0 else ("without a hole", "use Identity()")
            )
            raise ValueError(f"the mask of {seen.shape[0]} x {seen.shape[1]} pixels is {what}: {remedy}")
        self._index = self.seen.flatten().nonzero().flatten()

    def __call__(self, x: Tensor) -> Tensor:
        require_sides(x, (self.seen.shape[0], self.seen.shape[1]), self)
        return x.flatten(-2)[..., self._index.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        if y.shape[-1] != len(self._index):
            raise ValueError(
                f"y has {y.shape[-1]} values, but {len(self._index)} pixels are seen: give those of the mask"
            )
        x = y.new_zeros(*y.shape[:-1], self.seen.numel())
        x = x.index_copy(-1, self._index.to(y.device), y)
        return x.unflatten(-1, self.seen.shape)

    def svd(self, like: Tensor) -> SVD:
        return SVD(self.seen.to(like), same, same, self.adjoint)


class RandomMask(Mask):
    """Each pixel is a hole with the same probability, for a seed.

    >>> RandomMask(size=8, hole=0.5).seen.shape
    torch.Size([8, 8])

    Args:
        size: pixels a side, or (height, width).
        hole: share of pixels that are not seen, exact to a pixel.
        seed: names the mask.

    Raises:
        ValueError: see ``Mask``.
    """

    @checked
    def __init__(self, size: Size, hole: Probability = 0.5, seed: int = 0) -> None:
        height, width = sides(size)
        order = torch.randperm(height * width, generator=generator(seed, "mask"))
        super().__init__((order >= round(hole * height * width)).reshape(height, width))


class BoxMask(Mask):
    """A box in the middle is not seen.

    >>> int((~BoxMask(size=8, hole=0.25).seen).sum())
    16

    Args:
        size: pixels a side, or (height, width).
        hole: share of the area that is not seen; each side of the box is its root of the image's, rounded to a pixel.

    Raises:
        ValueError: see ``Mask``.
    """

    @checked
    def __init__(self, size: Size, hole: Probability = 0.25) -> None:
        height, width = sides(size)
        seen = torch.ones(height, width, dtype=torch.bool)
        tall, wide = (round(side * hole**0.5) for side in (height, width))
        top, left = (height - tall) // 2, (width - wide) // 2
        seen[top : top + tall, left : left + wide] = False
        super().__init__(seen)


class DeadPixels(LinearOperator):
    """The living pixels ``[B, m]`` of images ``[B, C, H, W]`` with dead ones in each channel (band), channel by channel.

    >>> dead = torch.zeros(2, 2, 2)
    >>> dead[1, 0, 0] = 1
    >>> DeadPixels(dead)(torch.arange(8.0).reshape(1, 2, 2, 2))
    tensor([[0., 1., 2., 3., 5., 6., 7.]])

    Args:
        dead: ``[C, H, W]``, true (or not 0) where a pixel is dead; ``find_dead_pixels`` finds them.

    Raises:
        ValueError: no pixel lives, or the data have another shape.
    """

    @checked
    def __init__(self, dead: Tensor) -> None:
        if dead.ndim != 3:
            raise ValueError(
                f"dead pixels of shape {tuple(dead.shape)}: give [C, H, W], those of each channel"
            )
        self.dead = dead != 0
        if self.dead.all():
            raise ValueError(f"all pixels of {tuple(dead.shape)} are dead: nothing is known")
        self._index = (~self.dead).flatten().nonzero().flatten()

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.dead.shape:
            raise ValueError(
                f"images of shape {tuple(x.shape[1:])} for dead pixels of {tuple(self.dead.shape)}: give images of that size"
            )
        return x.flatten(1)[:, self._index.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        if y.shape[1:] != self._index.shape:
            raise ValueError(f"y has {y.shape[-1]} values, but {len(self._index)} pixels live: give those")
        x = y.new_zeros(len(y), self.dead.numel()).index_copy(1, self._index.to(y.device), y)
        return x.unflatten(1, self.dead.shape)

    def svd(self, like: Tensor) -> SVD:
        return SVD((~self.dead).to(like), same, same, self.adjoint)
