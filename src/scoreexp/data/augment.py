"""Random flips, rotations and gray batches, drawn for the place of a sample in the training stream.

The draw depends on (seed, place) only: the same batch comes out of 0, 1 or 4 worker processes, on 1 or 2
ranks and after a resume.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.streams import generator

_LUMA = (0.299, 0.587, 0.114)
_BLOCK = 1024  # places that share a generator, so that one is made per batch and not per image


@dataclass(frozen=True)
class Augmentation:
    """Horizontal flip with probability 1/2 and rotation by an angle uniform in [-rotation, rotation] degrees.

    Rotation is bilinear about the centre; what comes in at the corners is mirrored at the border.

    >>> ramp = torch.arange(4.0).expand(8, 1, 4, 4)
    >>> flipped = Augmentation(flip=True, rotation=0.0, seed=0)(ramp.clone(), np.arange(8))
    >>> sorted({tuple(row.tolist()) for row in flipped[:, 0, 0]})
    [(0.0, 1.0, 2.0, 3.0), (3.0, 2.0, 1.0, 0.0)]

    Args:
        flip: flip images left to right.
        rotation: largest angle in degrees; 0 leaves the pixels alone.
        seed: names the draws.
        gray_share: probability that a batch of colour images becomes one of a single channel, Rec. 601 luma.
        batch_size: places that share that draw, those of a batch over all devices.
    """

    flip: bool
    rotation: float
    seed: int
    gray_share: float = 0.0
    batch_size: int = 1

    def __call__(self, x: Tensor, places: np.ndarray) -> Tensor:
        """Augment ``x[B, C, H, W]``, which is changed; sample i is at ``places[i]`` of the training stream."""
        draws = self._uniform(places)
        if self.flip:
            pixels, flipped = x.numpy(), draws[:, 0].numpy() < 0.5
            pixels[flipped] = pixels[flipped, ..., ::-1]  # by numpy for the reason given in ``Split.samples``
        if self.rotation > 0:
            angle = (2 * draws[:, 1] - 1) * math.radians(self.rotation)
            x = _rotated(x, angle)
        if self.gray_share > 0 and x.shape[1] == 3:
            stream = generator(self.seed, "gray", int(places[0]) // self.batch_size)
            if torch.rand((), generator=stream) < self.gray_share:
                x = (x * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
        return x

    def _uniform(self, places: np.ndarray) -> Tensor:
        draws = torch.empty(len(places), 2)
        blocks, offsets = np.divmod(places, _BLOCK)
        for block in np.unique(blocks):
            inside = torch.from_numpy(blocks == block)
            table = torch.rand(_BLOCK, 2, generator=generator(self.seed, "augment", int(block)))
            draws[inside] = table[torch.from_numpy(offsets)[inside]]
        return draws


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # affine_grid works in coordinates that span [-1, 1] along both axes, whatever the aspect ratio.
    rows = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
