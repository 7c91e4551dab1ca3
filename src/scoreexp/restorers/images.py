"""Restoring images of any size, gray or colour, by a model of images of a certain size and number of channels."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.observations import (
    Blur,
    ChannelMix,
    Compose,
    FourierMask,
    Identity,
    LinearOperator,
    Mask,
    NoiseModel,
    Observation,
    Operator,
    Radon,
    Separable,
)
from scoreexp.restorers.base import Callback, Restoration, Restorer
from scoreexp.restorers.proximal import known_svd
from scoreexp.restorers.tiling import apply_tiled, mirror_to_multiple
from scoreexp.samplers.labels import Label

WHOLE_SIDE, TILE = 512, 256  # pixels
PIXELWISE = (Identity, ChannelMix, Mask)  # a value of y tells of one pixel
SAME_IN_ALL_CHANNELS = (Identity, Mask, Blur, Separable, Radon, FourierMask)


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


class RestoredPixels(NamedTuple):
    """One restored image.

    Attributes:
        states: the estimates kept and the restored image, each float32 ``[H, W, C]``, clipped to [0, 1].
        nfe: evaluations of the network for each tile.
        seconds: wall time of all tiles.
    """

    states: list[np.ndarray]
    nfe: int
    seconds: float


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
) -> RestoredPixels:
    """Denoise one image in memory: ``restore_image`` of pixels ``[H, W, C]``, C in {1, 3}, any H and W.

    A large image is brought into the units of the model tile by tile, so that beside it only the states are held.

    Args:
        pixels: floating point, nominally in [0, 1].
        noise: of the image, in the units of the model ([-1, 1]).

    Returns:
        The estimates kept and the restored image, each float32 ``[H, W, C]``, clipped to [0, 1].
    """
    started = time.perf_counter()
    multiple = 1 if model is None else model.downsampling_factor
    side, overlap = tiles.side_for(*pixels.shape[:2]), tiles.overlap
    if side is not None:
        side = max(multiple, side // multiple * multiple)
        overlap = min(overlap, side - multiple)
    counts: list[int] = []

    def run(part: Tensor, corner: tuple[int, int]) -> Tensor:
        restored = restore_image(
            restorer,
            model,
            Observation(to_model(part), Identity(), noise),
            streams_of=lambda row, column, count: ImageStreams(
                [stream_seed(seed, "denoise", corner[0] + row, corner[1] + column, i) for i in range(count)]
            ),
            label=label,
            keep=keep,
            tiles=Tiles(None, overlap),
            device=device,
            callback=callback,
            warn=warn,
        )
        counts.append(restored.nfe)
        return torch.stack([torch.from_numpy(state).movedim(-1, 0) for state in restored.states])

    states = apply_tiled(
        run,
        torch.from_numpy(np.ascontiguousarray(pixels, np.float32)).movedim(-1, 0)[None],
        tile=side,
        overlap=overlap,
        multiple=multiple,
        progress=progress,
    )
    found = [state.movedim(0, -1).numpy() for state in states]
    return RestoredPixels(found, max(counts), time.perf_counter() - started)


def as_observed(pixels: np.ndarray) -> Tensor:
    """``[1, C, H, W]`` in the units of the model of pixels ``[H, W, C]`` in [0, 1]."""
    return to_model(torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0))).float())[None]


def image_streams(seed: int, row: int, column: int, count: int) -> ImageStreams:
    """Those of a tile; the first channel of the first tile has the stream that a whole image has in ``se.restore``."""
    return ImageStreams(
        [
            seed if row == column == i == 0 else stream_seed(seed, "restore", row, column, i)
            for i in range(count)
        ]
    )


def restore_image(
    restorer: Restorer,
    model: DenoiserBase | None,
    observation: Observation,
    *,
    streams_of: Callable[[int, int, int], ImageStreams],
    label: Label = None,
    keep: int = 0,
    tiles: Tiles = Tiles(),
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> RestoredPixels:
    """Restore one image from an observation in its own channels.

    A gray image goes through a colour model as three equal channels whose mean is taken; a colour image goes
    through a gray model channel by channel. Both need an operator that does the same in all channels.

    Args:
        restorer: what restores a tile.
        model: its prior, with event shape (C, h, w), or None for a restorer without one.
        observation: ``y [1, *]``, in the units of the model ([-1, 1]), of an image of any height and width.
        streams_of: random streams of the tile at (row, column), as many as the third argument says.
        label: class of the image, for a model with classes; None and ``"none"`` are the null label.
        keep: estimates on the way to return before the last, at most all that there are; those of tiles are blended as
            the result is.
        tiles: how a large image is divided, where the operator allows it.
        device: where a restorer without a model works; with one, that of the model.
        callback: called after each step of a tile, see ``Restorer``.
        progress: called with (tiles done, tiles in all).
        warn: told when tiles become smaller because memory has run out, or cannot be used.

    Raises:
        ValueError: the model has another number of channels than the image and the operator mixes them.
    """
    y, operator = observation.y, observation.operator
    own = operator.matrix.shape[1] if isinstance(operator, ChannelMix) else y.shape[1]
    channels = model.event_shape[0] if model is not None and model.event_shape else own
    if channels != own:
        if not isinstance(operator, SAME_IN_ALL_CHANNELS) or 1 not in (channels, own):
            raise ValueError(
                f"the model makes images of {channels} channels, and {type(operator).__name__} takes one of {own}: give a "
                f"model of {own} channels"
            )
        y = y.transpose(0, 1) if channels == 1 else y.expand(-1, channels, *y.shape[2:])
    y = y.to(device if model is None else model.device)
    cond = torch.full((len(y),), label, device=y.device) if isinstance(label, int) else None
    restored = restore_observed(
        restorer,
        model,
        replace(observation, y=y),
        streams_of=lambda row, column: streams_of(row, column, len(y)),
        cond=cond,
        keep=keep + 1 if keep else 0,
        tiles=tiles,
        callback=callback,
        progress=progress,
        warn=warn,
    )
    states = to_unit(torch.stack([*restored.trajectory[:-1], restored.x]))  # [states, B, C, H, W]
    states = states[:, :, 0] if channels == 1 else states[:, 0]
    if own == 1 and channels != 1:
        states = states.mean(1, keepdim=True)
    pixels = list(states.clamp(0, 1).movedim(1, -1).cpu().numpy().astype(np.float32))
    return RestoredPixels(pixels, restored.nfe, restored.seconds)


def restore_observed(
    restorer: Restorer,
    model: DenoiserBase | None,
    observation: Observation,
    *,
    streams_of: Callable[[int, int], ImageStreams],
    cond: Tensor | None = None,
    keep: int = 0,
    tiles: Tiles = Tiles(None),
    callback: Callback | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Restoration:
    """Restore a batch of images of one size, whatever the size that the model was trained on.

    The unknown is padded to what the model's sides must be divisible by. Nothing is observed of the padding, but for
    operators that work pixel by pixel, where the observation is mirrored. Where the operator would lose its decomposition
    by that (a periodic blur), the unknown keeps its size, and the network alone sees it mirrored. Data that are no images,
    and operators that are not linear, are handed on as they are.

    Args:
        restorer: what restores.
        model: the prior, or None.
        observation: what is known, in the channels of the model.
        streams_of: random streams of the tile at (row, column), one per sample.
        cond: class labels ``[B]``, or None.
        keep: estimates on the way to return.
        tiles: how large images are divided, where the operator allows it.
        callback: called after each step of a tile.
        progress: called with (tiles done, tiles in all).
        warn: told when tiles become smaller or cannot be used.

    Returns:
        The estimate, the evaluations for each tile, the seconds of all tiles, and the estimates kept.
    """
    shape = _shape_of_unknown(observation)
    if shape is None:
        streams = streams_of(0, 0)
        return restorer(observation, model, streams=streams, cond=cond, keep=keep, callback=callback)
    height, width = shape[-2:]
    multiple = 1 if model is None else model.downsampling_factor
    whole = _padded(observation, (height, width), multiple)
    operator = observation.operator
    assert isinstance(operator, LinearOperator)
    if isinstance(whole.operator, Compose) and known_svd(operator, observation.y) is not None:
        assert model is not None  # which alone asks for a multiple
        model, whole, multiple = _Mirrored(model), observation, 1
    counts: list[int] = []

    def run(part: Tensor, corner: tuple[int, int]) -> Tensor:
        piece = whole if part.shape == canvas.shape else _cut(observation, whole, part, *corner)
        result = restorer(
            piece,
            _of_size(model, part),
            streams=streams_of(*corner),
            cond=cond,
            keep=keep,
            callback=callback,
        )
        counts.append(result.nfe)
        return torch.cat([*result.trajectory[:-1], result.x])

    started = time.perf_counter()
    canvas = observation.y.new_zeros(len(observation.y), shape[0], *(_up(n, multiple) for n in shape[-2:]))
    side, overlap = tiles.side_for(height, width), tiles.overlap
    reach = _reach(operator)
    if side is not None:
        side = max(multiple, side // multiple * multiple)
        if reach is not None and 8 * reach > side:
            reach = None  # more than half of each tile would be overlap
        # the outer quarter of the overlap does not count: what does has all its observations within the tile
        overlap = min(max(overlap, 4 * (reach or 0)), side - multiple)
    if reach is None:
        if side is not None and side < max(height, width) and warn is not None:
            warn(f"{type(operator).__name__} sees beyond a tile: the whole image goes through at once")
        states = run(canvas, (0, 0))[..., :height, :width]
    else:
        states = apply_tiled(
            run,
            canvas,
            tile=side,
            overlap=overlap,
            multiple=multiple,
            progress=progress,
            on_out_of_memory=lambda side: (
                warn(f"out of memory: going on with tiles of {side} pixels") if warn else None
            ),
        )[..., :height, :width]
    parts = list(states.split(len(canvas)))
    return Restoration(parts[-1], max(counts), time.perf_counter() - started, parts if keep else [])


class _OfSize(Wrapper):
    """The model for images of another size, which its network takes where its factor divides the sides."""

    def __init__(self, model: DenoiserBase, event_shape: tuple[int, ...]) -> None:
        super().__init__(model)
        self.event_shape = event_shape

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.model(x_t, t, cond)


class _Mirrored(Wrapper):
    """The model for images of any side: what its factor asks for is mirrored at their right and bottom, and cut off."""

    @property
    def downsampling_factor(self) -> int:
        return 1

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        height, width = x_t.shape[-2:]
        return self.model(mirror_to_multiple(x_t, self.model.downsampling_factor), t, cond)[
            ..., :height, :width
        ]


def _of_size(model: DenoiserBase | None, like: Tensor) -> DenoiserBase | None:
    if model is None:
        return None
    own = model.event_shape
    wanted = (own[0] if own else like.shape[1], *like.shape[-2:])
    return model if own == wanted else _OfSize(model, wanted)


def _shape_of_unknown(observation: Observation) -> tuple[int, int, int] | None:
    """(C, H, W) of ``x``, or None where it is no image or the operator does not tell."""
    operator, y = observation.operator, observation.y
    if not isinstance(operator, LinearOperator):
        return None
    shape = tuple(operator.adjoint(y[:1]).shape[1:])
    return shape if isinstance(kind_of(shape), Images) else None  # type: ignore[return-value]


def _padded(observation: Observation, size: tuple[int, int], multiple: int) -> Observation:
    """The observation of an image that is continued at its bottom and right edges up to the next multiple."""
    (height, width), operator = size, observation.operator
    tall, wide = _up(height, multiple), _up(width, multiple)
    if (tall, wide) == size:
        return observation
    if isinstance(operator, (Identity, ChannelMix)):
        return replace(observation, y=mirror_to_multiple(observation.y, multiple))
    return replace(observation, operator=_continued(operator, size, (tall, wide)))


def _continued(operator: Operator, size: tuple[int, int], larger: tuple[int, int]) -> LinearOperator:
    """The operator for larger images of which it sees the upper left part; it keeps its decomposition if it can."""
    (height, width), (tall, wide) = size, larger
    if isinstance(operator, Mask):
        return Mask(F.pad(operator.seen.byte(), (0, wide - width, 0, tall - height)))
    if isinstance(operator, Separable):
        return Separable(F.pad(operator.rows, (0, tall - height)), F.pad(operator.columns, (0, wide - width)))
    assert isinstance(operator, LinearOperator)
    return Compose(operator, Separable(torch.eye(height, tall), torch.eye(width, wide)))


def _reach(operator: Operator) -> int | None:
    """How far from a pixel the values lie that tell of it, in pixels; None where tiles do not divide the operator."""
    if isinstance(operator, Blur) and operator.border == "valid":
        return max(operator.kernel.shape) // 2
    return 0 if isinstance(operator, PIXELWISE) else None


def _cut(observation: Observation, whole: Observation, part: Tensor, row: int, column: int) -> Observation:
    """What is observed of a tile of the size of ``part`` alone.

    Args:
        observation: of the image.
        whole: of the padded image.
        part: the tile.
        row: of its upper left corner.
        column: of its upper left corner.
    """
    height, width = part.shape[-2:]
    operator = observation.operator
    if isinstance(operator, Blur):  # valid: the values whose kernel lies in the tile
        size = (min(height, operator.size[0] - row), min(width, operator.size[1] - column))
        blur = Blur(operator.kernel, size, "valid")
        seen_rows, seen_columns = (n - k + 1 for n, k in zip(size, blur.kernel.shape, strict=True))
        y = observation.y[..., row : row + seen_rows, column : column + seen_columns]
        same_size = size == (height, width)
        return replace(
            observation, y=y, operator=blur if same_size else _continued(blur, size, (height, width))
        )
    place = (..., slice(row, row + height), slice(column, column + width))
    if not isinstance(operator, Mask):
        return replace(whole, y=whole.y[place])
    assert isinstance(whole.operator, Mask)
    seen, values = whole.operator.seen[place], whole.operator.adjoint(whole.y)[place]
    if not seen.any():
        raise ValueError(
            f"a hole hides a whole tile of {height} x {width} pixels: choose larger tiles, or null for none"
        )
    if seen.all():
        return replace(whole, y=values, operator=Identity())
    mask = Mask(seen)
    return replace(whole, y=mask(values), operator=mask)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
