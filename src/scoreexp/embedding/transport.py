r"""Score embedding: pre-computed image-plane scores moved into the pixel values of training images.

An image is read as a density on the unit square, its logarithm follows the Fokker-Planck equation (see
``scoreexp.numerics.fokker_planck``), and the gradient of the log-density on the image plane is the *image-plane score*:
two numbers per pixel. Score embedding steps the pixel values along one component of it by the transport
equation

.. math:: x^n = x^{n-1} - \tfrac12 g(t_n)^2 s(t_n) \Delta t \;(+\; c\, g(t_n) \sqrt{\Delta t}\, \xi),

which turns an image x_0 into a path of images x(t). A network then learns, by denoising score matching, the
*pixel-space score* of x(t) + sigma(t) z, that is the posterior mean E[x(t) | x(t) + sigma(t) z]; denoising runs
the time down to 0, where x(0) = x_0. The image-plane score is a modelling choice and not an approximation of the
pixel-space score: they have different numbers of components.

References:
    K. Lau, A. Na, J. Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov
    Projection", 2025, https://arxiv.org/abs/2511.17634;
    A. Na, W. Gao, M. Briazkalo, J. Wan, "Efficient Denoising using Score Embedding in Score-based Diffusion
    Models", 2024, https://arxiv.org/abs/2404.06661.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import NonNegativeFloat, PositiveInt
from scoreexp.data.errors import DataError
from scoreexp.numerics.fokker_planck import ScoreField, ScorePrecomputation
from scoreexp.numerics.fokker_planck.problem import StageClock

Component = Literal["row", "column"]


@checked
def embed_scores(
    x: Tensor,
    field: ScoreField,
    *,
    g: float | Callable[[float], float],
    dt: float,
    component: Component = "row",
    noise: Annotated[NonNegativeFloat, "0.1 as published"] = 0.0,
    clamp: bool = False,
    streams: ImageStreams | None = None,
) -> Tensor:
    r"""The path of images along the kept times of a score field.

    .. math:: x^k = x^{k-1} - \tfrac12 g(t_k)^2 s(t_k)\, dt + c\, g(t_k) \sqrt{dt}\, \xi,

    clamped to [0, 1] after each step if asked for. The noise is left out at the last of the field's N steps. A
    field per image moves all channels alike, a field per channel each channel by its own.

    >>> x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> precomputation = ScorePrecomputation(g=0.5, horizon=1.0, steps=4)
    >>> field = precomputation(x.permute(0, 2, 3, 1).numpy(), keep=[1, 2, 3, 4])
    >>> embed_scores(x, field, g=0.5, dt=0.25).shape
    torch.Size([4, 1, 1, 8, 8])

    Args:
        x: images ``[B, C, H, W]`` in [0, 1].
        field: image-plane score at K times, leading axes ``[B]`` or ``[B, C]``.
        g: diffusion coefficient, a number or a function of t, in units of the [0, 1] range.
        dt: length of one step.
        component: which derivative on the image plane moves the values: d/d row or d/d column.
        noise: c, >= 0.
        clamp: keep values in [0, 1].
        streams: one random stream per image; needed if ``noise > 0``.

    Returns:
        ``[K, B, C, H, W]`` in the dtype of ``x``; arithmetic in float64.

    Raises:
        ValueError: images outside [0, 1] or not finite, a field of other images, or noise without streams.
    """
    if noise > 0 and streams is None:
        raise ValueError(f"noise={noise} needs random streams: pass one per image, or noise=0")
    _require_images(x)
    score = torch.from_numpy(field.score[..., get_args(Component).index(component), :, :])
    if score.ndim == 4:
        score = score[:, :, None]
    if (
        score.shape[1] != x.shape[0]
        or score.shape[2] not in (1, x.shape[1])
        or score.shape[3:] != x.shape[2:]
    ):
        raise ValueError(
            f"score field of shape {tuple(field.score.shape)} does not belong to images of shape "
            f"{tuple(x.shape)}: solve it for these images"
        )
    steps = zip(field.kept.tolist(), field.times.tolist(), score)
    last = len(field.step_times)
    path = _transported(x, steps, last=last, g=g, dt=dt, noise=noise, clamp=clamp, streams=streams)
    return torch.stack(list(path))


def _transported(
    x: Tensor,
    steps: Iterable[tuple[int, float, Tensor]],
    *,
    last: int,
    g: float | Callable[[float], float],
    dt: float,
    noise: float,
    clamp: bool,
    streams: ImageStreams | None,
) -> Iterator[Tensor]:
    """The path of ``x`` one image after the other; ``steps`` are (n, t_n, s(t_n)) with s of [B, 1 or C, H, W]."""
    state = x.to(torch.float64, copy=True)
    for n, t, score in steps:
        g_t = float(g(t)) if callable(g) else float(g)
        state.sub_(score.double(), alpha=0.5 * g_t**2 * dt)  # of one type: half the time
        if noise > 0 and streams is not None and n < last:
            state += noise * g_t * math.sqrt(dt) * streams.normal(x).double()
        if clamp:
            state.clamp_(0, 1)
        yield state.to(x.dtype, copy=True)


def _require_images(x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"images have shape {tuple(x.shape)} and type {x.dtype}: give floating [B, C, H, W]")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):  # also true for NaN
        raise ValueError(
            f"images have values in [{float(x.min()):.4g}, {float(x.max()):.4g}]: give values in [0, 1]"
        )


class ImageEmbedding:
    """The pre-computation of score fields and the transport along them, as one configuration.

    The path has K images beside x_0; the k-th is given the time ``horizon k / K``. With all N steps of the
    precomputation kept (K = N) this is the solver's own time. The published single-image script keeps 10 of 100
    steps, ``n = int(linspace(1, N, K))``, but advances by T / N at each: its path is a tenth as long as the
    transport equation says, and its images are numbered, not timed.

    >>> embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=4), kept=2)
    >>> x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> field = embedding.precomputation(x.permute(0, 2, 3, 1).numpy(), keep=embedding.kept)
    >>> embedding.times, embedding(x, field, seeds=[0]).shape
    ([0.0, 0.5, 1.0], torch.Size([3, 1, 3, 8, 8]))

    Args:
        precomputation: initial density, solver, g, horizon and number of steps N.
        kept: number K of steps that are kept, at most N; None keeps all.
        component: which derivative on the image plane moves the values.
        noise: coefficient c of the noise g sqrt(dt) xi, without unit.
        clamp: keep the values in [0, 1].
        cache: folder of solved score fields; None solves them anew each time, as always where ``on_demand``.

    Raises:
        ValueError: if a value is outside its domain.
    """

    @checked
    def __init__(
        self,
        *,
        precomputation: ScorePrecomputation,
        kept: PositiveInt | None = None,
        component: Literal["row", "column"] = "row",
        noise: Annotated[NonNegativeFloat, "0.1 as published"] = 0.0,
        clamp: bool = False,
        cache: str | None = None,
    ) -> None:
        steps = len(precomputation.times) - 1
        if kept is not None and kept > steps:
            raise ValueError(f"kept={kept} of {steps} steps: choose 1..{steps}, or null for all")
        self.precomputation = precomputation
        self.kept = [int(n) for n in np.linspace(1, steps, kept or steps).astype(int)]
        self.component: Component = component
        self.noise = noise
        self.clamp = clamp
        self.cache = cache

    @property
    def on_demand(self) -> bool:
        """Whether fields are solved when they are wanted and never stored: where that costs less than to read them."""
        return self.precomputation.cheap

    @property
    def times(self) -> list[float]:
        """Times of the path ``[K + 1]``, from 0 (the image itself) to the horizon."""
        horizon, count = float(self.precomputation.times[-1]), len(self.kept)
        return [horizon * k / count for k in range(count + 1)]

    def __call__(self, x: Tensor, field: ScoreField, seeds: Sequence[int]) -> Tensor:
        """The path ``[K + 1, B, C, H, W]`` of images ``x[B, C, H, W]`` in [0, 1], x itself first.

        Args:
            x: the images.
            field: their score field at the kept steps.
            seeds: one per image, naming its noise.

        Raises:
            ValueError: as for ``embed_scores``.
        """
        path = embed_scores(x, field, component=self.component, **self._transport(seeds))
        return torch.cat([x[None], path])

    def along(self, x: Tensor, seeds: Sequence[int], seconds: dict[str, float]) -> Iterator[Tensor]:
        """The same path one image ``[B, C, H, W]`` after the other, its fields solved on the way and not kept.

        >>> embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=4))
        >>> x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> field = embedding.precomputation(x.permute(0, 2, 3, 1).numpy(), keep=embedding.kept, dtype=np.float32)
        >>> path = torch.stack(list(embedding.along(x, [0], {})))
        >>> torch.equal(path, embedding(x, field, [0]))
        True

        Args:
            x: the images in [0, 1].
            seeds: one per image, naming its noise.
            seconds: grows by those of ``initial_density`` and ``solve``.

        Raises:
            ValueError: as for ``embed_scores``.
            DataError: if a field is not finite.
        """
        _require_images(x)
        yield x
        last = len(self.precomputation.times) - 1
        yield from _transported(x, self._solved(x, seconds), last=last, **self._transport(seeds))

    def _solved(self, x: Tensor, seconds: dict[str, float]) -> Iterator[tuple[int, float, Tensor]]:
        component = get_args(Component).index(self.component)
        clock = StageClock(seconds)
        with clock("initial_density"):
            slices = self.precomputation.slices(x.permute(0, 2, 3, 1).numpy(), keep=self.kept)
        while True:
            with clock("solve"):
                if (piece := next(slices, None)) is None:
                    return
                score = torch.from_numpy(piece.component(component).astype(np.float32, order="C"))
            if not math.isfinite(score.sum().item()):
                raise DataError(
                    f"a score field has values that are not finite at time {piece.time:.4g}: take smaller steps or "
                    "another embedding.precomputation.solver"
                )
            yield piece.index, piece.time, score if score.ndim == 4 else score[:, None]

    def _transport(self, seeds: Sequence[int]) -> dict[str, Any]:
        times = self.precomputation.times
        return {
            "g": self.precomputation.g,
            "dt": float(times[-1] - times[0]) / (len(times) - 1),
            "noise": self.noise,
            "clamp": self.clamp,
            "streams": ImageStreams(seeds, "embedding") if self.noise > 0 else None,
        }


class EmbeddedImages:
    """Paths of images, looked up at any time: linear between their times, exact at them.

    >>> images = torch.tensor([0.0, 1.0, 3.0]).reshape(3, 1, 1, 1, 1)  # one image of one pixel at three times
    >>> embedded = EmbeddedImages([0.0, 0.5, 1.0], images)
    >>> embedded.at(index=torch.tensor([0, 0]), t=torch.tensor([0.5, 0.75])).flatten()
    tensor([1., 2.])

    Args:
        times: ``[K + 1]``, increasing from 0.
        images: ``[K + 1, N, *]``, the images themselves first; may be a memory-mapped file, of which a look-up
            reads no more than its own images.
        positions: ``[N]`` position of each image in its data set; 0, ..., N - 1 by default.

    Raises:
        ValueError: if times and images do not match.
    """

    @checked
    def __init__(
        self, times: Sequence[float], images: Tensor, positions: Sequence[int] | None = None
    ) -> None:
        self.times = torch.as_tensor(times, dtype=torch.float64)
        if len(self.times) < 2 or self.times[0] != 0 or not (self.times.diff() > 0).all():
            raise ValueError(f"times {self.times.tolist()}: give at least two, increasing from 0")
        if len(images) != len(self.times):
            raise ValueError(f"{len(images)} images per path for {len(self.times)} times: give one per time")
        self.images = images
        self.positions = list(range(images.shape[1])) if positions is None else [int(p) for p in positions]
        if len(self.positions) != images.shape[1] or min(self.positions, default=0) < 0:
            raise ValueError(
                f"{len(self.positions)} positions for {images.shape[1]} images: give one each, >= 0"
            )
        self._rows = torch.full((max(self.positions, default=0) + 1,), -1)
        self._rows[self.positions] = torch.arange(images.shape[1])

    def at(self, index: Tensor, t: Tensor) -> Tensor:
        """The images ``x(t)[B, *]``, on the device of the paths.

        Args:
            index: positions ``[B]`` in the data set.
            t: times ``[B]`` in [0, horizon].

        Raises:
            ValueError: a position that has no path, or a time outside the paths.
        """
        index, t = index.cpu(), t.to(device="cpu", dtype=torch.float64)
        known = (index >= 0) & (index < len(self._rows))
        rows = self._rows[index.where(known, 0)].where(known, -1)
        if (rows < 0).any():
            raise ValueError(
                f"image {int(index[rows < 0][0])} has no path among the {len(self.positions)} embedded ones: "
                "embed the images that are trained on"
            )
        horizon = self.times[-1].item()
        inside = (t >= 0) & (t <= horizon * (1 + 1e-6))  # a time rounded to float32 is still the horizon
        if not inside.all():
            raise ValueError(
                f"time t = {t[~inside][0].item():.6g} is outside the embedding's [0, {horizon:.6g}]: choose a "
                "schedule whose t_max is at most the precomputation's horizon"
            )
        t = t.clamp(max=horizon)
        right = torch.searchsorted(self.times, t).clamp(min=1)
        left = right - 1
        weight = (t - self.times[left]) / (self.times[right] - self.times[left])
        device = self.images.device
        before, after = (self.images[k.to(device), rows.to(device)] for k in (left, right))
        return torch.lerp(before, after, expand_to(weight.to(device=device, dtype=before.dtype), before))
