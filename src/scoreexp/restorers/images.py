"""Restoring one image of any size, gray or colour, by a model of images of a certain size and number of channels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Identity, NoiseModel, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.tiling import apply_tiled
from scoreexp.samplers.labels import Label

WHOLE_SIDE, TILE = 512, 256  # pixels


@dataclass(frozen=True)
class Tiles:
    """How a large image is divided.

    Attributes:
        side: of the tiles in pixels; None is the whole image, ``"auto"`` whole images up to 512 pixels, 256 above.
        overlap: pixels that neighbouring tiles share.
    """

    side: int | str | None = "auto"
    overlap: int = 32

    def side_for(self, height: int, width: int) -> int | None:
        if self.side == "auto":
            return None if max(height, width) <= WHOLE_SIDE else TILE
        return None if self.side is None else int(self.side)


def restore_pixels(
    restorer: Restorer,
    model: DenoiserBase | None,
    pixels: np.ndarray,
    noise: NoiseModel,
    *,
    label: Label = None,
    seed: int = 0,
    keep: int = 0,
    tiles: Tiles = Tiles(),
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[np.ndarray]:
    """Denoise one image in memory.

    A gray image goes through a colour model as three equal channels whose mean is taken; a colour image goes
    through a gray model channel by channel.

    Args:
        restorer: what restores a tile.
        model: its prior, with event shape (C, h, w), or None for a restorer without one.
        pixels: ``[H, W, C]`` in [0, 1], C in {1, 3}, any H and W.
        noise: of the image, in the units of the model ([-1, 1]).
        label: class of the image, for a model with classes; None and ``"none"`` are the null label.
        seed: names the noise of restorers that draw any.
        keep: estimates on the way to return before the last, at most all that there are; those of tiles are blended as
            the result is.
        tiles: how a large image is divided.
        device: where a restorer without a model works; with one, that of the model.
        callback: called after each step of a tile, see ``Restorer``.
        progress: called with (tiles done, tiles in all).
        warn: told when tiles become smaller because memory has run out.

    Returns:
        The estimates kept and the restored image, each float32 ``[H, W, C]``, clipped to [0, 1].
    """
    multiple = 1 if model is None else model.downsampling_factor
    channels = model.event_shape[0] if model is not None and model.event_shape else pixels.shape[-1]
    observed = to_model(torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0))).float())
    batch = observed[:, None] if channels == 1 else observed.expand(channels, -1, -1)[None]
    batch = batch.to(device if model is None else model.device)
    cond = torch.full((len(batch),), label, device=batch.device) if isinstance(label, int) else None

    def run(part: Tensor, corner: tuple[int, int]) -> Tensor:
        streams = ImageStreams([stream_seed(seed, "denoise", *corner, i) for i in range(len(part))])
        result = restorer(
            Observation(part, Identity(), noise),
            model,
            streams=streams,
            cond=cond,
            keep=keep + 1 if keep else 0,
            callback=callback,
        )
        return torch.cat([*result.trajectory[:-1], result.x])

    side, overlap = tiles.side_for(*pixels.shape[:2]), tiles.overlap
    if side is not None:
        side = max(multiple, side // multiple * multiple)
        overlap = min(overlap, side - multiple)
    result = apply_tiled(
        run,
        batch,
        tile=side,
        overlap=overlap,
        multiple=multiple,
        progress=progress,
        on_out_of_memory=lambda side: (
            warn(f"out of memory: going on with tiles of {side} pixels") if warn else None
        ),
    )
    states = to_unit(result).reshape(-1, *batch.shape)
    states = states[:, :, 0] if channels == 1 else states[:, 0]
    if pixels.shape[-1] == 1 and channels != 1:
        states = states.mean(1, keepdim=True)
    return list(states.clamp(0, 1).movedim(1, -1).cpu().numpy().astype(np.float32))
