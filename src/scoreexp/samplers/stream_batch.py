"""A stream of samples: one call of the network moves all that are under way, each at its own time."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.grids import TimeGrid


@torch.no_grad()
def stream_batch(
    model: DenoiserBase,
    starts: Iterable[Tensor],
    grid: TimeGrid,
    *,
    t_start: float | None = None,
    cond: Tensor | None = None,
) -> Iterator[Tensor]:
    r"""Deterministic DDIM of a stream of starts, which gives one sample for each call of the network once it is full.

    With the times :math:`t_1 > ... > t_N` of the grid and :math:`t_{N+1}` the end, the buffer holds the states of N samples,
    the i-th at :math:`t_i`. A call denoises them all; then each goes on to its next time,

    .. math:: x_{i+1} = \alpha_{i+1} \hat x_0 + \sigma_{i+1} \hat\epsilon ,

    the last one is given out as :math:`\hat x_0`, and the next start takes the first place. A sample costs N evaluations as
    ever, and there are :math:`n + N - 1` calls for n samples, of 1 to N rows, in place of :math:`n N` of one row. The
    samples are those of ``DDIM(grid)``, up to rounding. Guidance that remembers a trajectory wants one time for all
    samples and refuses; classifier-free guidance works.

    Reference: A. Kodaira, C. Xu, T. Hazama, T. Yoshimoto, K. Ohno, S. Mitsuhori, S. Sugano, H. Cho, Z. Liu, K. Keutzer,
    "StreamDiffusion: A Pipeline-Level Solution for Real-Time Interactive Generation", 2023, https://arxiv.org/abs/2312.12491,
    section 3.1.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> frames = (torch.full((2,), float(i)) for i in range(3))  # may come one by one, as from a camera
    >>> [tuple(x.shape) for x in stream_batch(model, frames, UniformGrid(4))]
    [(2,), (2,), (2,)]

    Args:
        model: the denoiser; put a network into evaluation mode first.
        starts: states ``[*]`` at ``t_start``, asked for one at a time; all of one shape.
        grid: the times visited.
        t_start: their time; the schedule's ``t_max`` by default.
        cond: one label ``[1]`` or image ``[1, C', H, W]`` that the model is conditioned on, for the whole stream, or None.

    Yields:
        ``E[x_0 | x_t]`` at the last time, ``[*]``, for each start in turn.

    Raises:
        ValueError: if the starts differ in shape, the grid has equal times, or ``cond`` holds more than one.
    """
    times = grid(model.schedule, t_start=t_start)
    if not (times.diff() < 0).all():
        raise ValueError(
            "stream batch: the grid has equal times: choose times that fall, such as UniformGrid(4)"
        )
    if cond is not None and len(cond) != 1:
        raise ValueError(f"cond of {len(cond)} for a stream: give one for all, [1] or [1, C', H, W]")
    alpha, sigma = model.schedule(times)
    model, coming = model.begin(), iter(starts)
    shape: torch.Size | None = None
    states: list[Tensor] = []  # the oldest first
    places: list[int] = []  # of their times
    while True:
        start = next(coming, None)
        if start is not None:
            if shape is not None and start.shape != shape:
                raise ValueError(
                    f"a start of shape {tuple(start.shape)} after {tuple(shape)}: give all one shape"
                )
            shape = start.shape
            states, places = [*states, start], [*places, 0]
        elif not states:
            return
        x, at = torch.stack(states), torch.tensor(places)
        x0_hat = model(x, times[at], None if cond is None else cond.expand(len(x), *cond.shape[1:]))
        if places[0] == len(times) - 1:
            yield x0_hat[0]
            x, x0_hat, at = x[1:], x0_hat[1:], at[1:]
        eps_hat = (x - expand_to(alpha[at], x) * x0_hat) / expand_to(sigma[at], x)
        x = expand_to(alpha[at + 1], x) * x0_hat + expand_to(sigma[at + 1], x) * eps_hat
        states, places = list(x), (at + 1).tolist()
