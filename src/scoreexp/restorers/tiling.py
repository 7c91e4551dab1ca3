"""Images of any size through a function that wants a certain multiple of pixels and a bounded memory.

An image is mirrored at its bottom and right edges up to the next multiple. If it is larger than a tile, the
function is applied to overlapping tiles and their results are blended: at an edge that a tile shares with a
neighbour, the outer quarter of the overlap is context only (weight 0) and the middle half is a linear ramp;
weights sum to 1 at every pixel. So for a function whose result depends on pixels up to a distance r, tiles
give what the whole image gives everywhere if ``r <= overlap // 4``, and outside the bands of overlap if
``r <= overlap``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeInt, PositiveInt

TileFunction = Callable[[Tensor, tuple[int, int]], Tensor]


@checked
def apply_tiled(
    function: TileFunction,
    x: Tensor,
    *,
    tile: PositiveInt | None,
    overlap: NonNegativeInt = 64,
    multiple: PositiveInt = 1,
    progress: Callable[[int, int], None] | None = None,
    on_out_of_memory: Callable[[int], None] | None = None,
) -> Tensor:
    """Apply ``function`` to images, in tiles if they are larger than ``tile``: ``[N, C, H, W]``.

    When a tile does not fit in memory, everything starts again with tiles of half the size, down to twice
    the overlap.

    Args:
        function: ``(tile[B, C, h, w], (row, column)) -> [N, C, h, w]``, the same N for all tiles; row and column in
            pixels say where the tile's upper left corner lies, so that noise can be cut from one field that covers the
            image. h, w, row and column are divisible by ``multiple``.
        x: ``[B, C, H, W]``, any H and W from 1.
        tile: side of the square tiles in pixels, divisible by ``multiple``; None: the whole image at once.
        overlap: pixels that neighbouring tiles share at least, in [0, tile - multiple].
        multiple: h and w must be divisible by it, as a network's ``downsampling_factor``.
        progress: called with (tiles done, tiles in all) after each tile.
        on_out_of_memory: called with the new side of the tiles before each new start.

    Raises:
        ValueError: a size above is out of its domain, or the function returns another shape.
        MemoryError: the smallest tile does not fit in memory.
    """
    _check(x, tile, overlap, multiple)
    height, width = x.shape[-2:]
    padded = mirror_to_multiple(x, multiple)
    largest = max(padded.shape[-2:])
    smallest = min(_round_up(overlap + max(overlap, multiple), multiple), largest)
    side = largest if tile is None else tile
    while True:
        result = _try_tiles(function, padded, side, overlap, multiple, progress)
        if result is not None:
            return result[..., :height, :width]
        side = min(side, largest)
        if side <= smallest:
            raise MemoryError(
                f"a tile of {side} pixels does not fit in memory and is the smallest for an overlap of "
                f"{overlap}: use a smaller overlap, a smaller batch or a device with more memory"
            )
        side = max(smallest, _round_up(side // 2, multiple))
        if x.is_cuda:
            torch.cuda.empty_cache()
        if on_out_of_memory is not None:
            on_out_of_memory(side)


def _try_tiles(
    function: TileFunction,
    x: Tensor,
    side: int,
    overlap: int,
    multiple: int,
    progress: Callable[[int, int], None] | None,
) -> Tensor | None:
    """The blended result, or None if memory ran out."""
    rows = _windows(x.shape[-2], side, overlap, multiple)
    columns = _windows(x.shape[-1], side, overlap, multiple)
    count = len(rows) * len(columns)
    try:
        result = x
        done = 0
        for row, row_weight in rows:
            for column, column_weight in columns:
                part = x[..., row : row + len(row_weight), column : column + len(column_weight)]
                value = function(part, (row, column))
                if value.shape[1:] != part.shape[1:] or (done and len(value) != len(result)):
                    raise ValueError(
                        f"the function turned a tile of shape {tuple(part.shape)} into {tuple(value.shape)}; it must keep "
                        "channels, height and width, and give as many of each"
                    )
                if count == 1:
                    result = value
                else:
                    if not done:
                        result = value.new_zeros(len(value), *x.shape[1:])
                    weight = (row_weight[:, None] * column_weight).to(value)
                    result[..., row : row + len(row_weight), column : column + len(column_weight)] += (
                        value * weight
                    )
                done += 1
                if progress is not None:
                    progress(done, count)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        return None
    return result


def _windows(length: int, side: int, overlap: int, multiple: int) -> list[tuple[int, Tensor]]:
    """Starts of the tiles along an axis and weights[side] of their pixels, which sum to 1 at every pixel."""
    if length <= side:
        return [(0, torch.ones(length, dtype=torch.float64))]
    stride = (side - overlap) // multiple * multiple
    starts = [*range(0, length - side, stride), length - side]
    margin = overlap // 4
    ramp = ((torch.arange(side, dtype=torch.float64) + 0.5 - margin) / max(overlap - 2 * margin, 1)).clamp(
        0, 1
    )
    if overlap == 0:
        ramp = torch.ones_like(ramp)
    weights = []
    for start in starts:
        weight = torch.ones(side, dtype=torch.float64)
        if start > 0:
            weight *= ramp
        if start < length - side:
            weight *= ramp.flip(0)
        weights.append(weight)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    return [
        (start, weight / total[start : start + side]) for start, weight in zip(starts, weights, strict=True)
    ]


def mirror_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Mirror at the bottom and right edges (edge pixels are not doubled), as often as is needed."""
    for axis in (-2, -1):
        length = x.shape[axis]
        if length % multiple:
            period = max(2 * (length - 1), 1)
            index = torch.arange(_round_up(length, multiple), device=x.device) % period
            x = x.index_select(axis, torch.minimum(index, period - index) if length > 1 else index)
    return x


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _is_out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in message for text in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _check(x: Tensor, tile: int | None, overlap: int, multiple: int) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"images have shape {tuple(x.shape)}; it must be [B, C, H, W] with no empty axis")
    if tile is None:
        return
    if tile % multiple:
        raise ValueError(f"tile={tile} must be divisible by {multiple}: use {_round_up(tile, multiple)}")
    if tile - overlap < multiple:
        raise ValueError(
            f"overlap={overlap} leaves no step between tiles of {tile} pixels; "
            f"it must be at most {tile - multiple}"
        )
