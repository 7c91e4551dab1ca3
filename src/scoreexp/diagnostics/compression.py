r"""Fewer bits for a trained denoiser: what it is calibrated on, and what that costs at each noise level.

A denoiser visits its noise levels along the reverse chain, with states that the network itself has made. Four sets of
pairs ``(x_t, t)`` are offered: ``random``, Gaussian noise of the size of ``x_t`` at uniform times; ``raw``, clean data at
uniform times; ``forward``, diffused data, and ``reverse``, states of the sampler, both at times drawn from a normal law
about ``0.4 t_max`` (standard deviation ``0.4 t_max``, cut off at the ends).

Reference: Y. Shang, Z. Yuan, B. Xie, B. Wu, Y. Yan, "Post-training Quantization on Diffusion Models", 2023,
https://arxiv.org/abs/2211.15736, section 3.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.construct import construct
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, sum_per_sample
from scoreexp.core.types import AtLeastTwo, PositiveInt
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.diagnostics.estimates import ByLevel, ratio_of
from scoreexp.diagnostics.fields import noisy, score
from scoreexp.networks.quantised import Bits, Quantised
from scoreexp.samplers import Sampler, draw, labels_for

Mode = Literal["random", "raw", "forward", "reverse"]
CENTRE = WIDTH = 0.4  # of the law of times, as shares of t_max


class CalibrationSet(NamedTuple):
    """Noisy data ``[N, *]``, their times ``[N]`` and labels ``[N]`` or None."""

    x_t: Tensor
    t: Tensor
    cond: Tensor | None


@checked
def calibration_set(
    model: Denoiser,
    mode: Mode,
    *,
    sampler: Sampler | None = None,
    data: Tensor | None = None,
    n: AtLeastTwo = 64,
    seed: int = 0,
) -> CalibrationSet:
    """What a denoiser is calibrated on.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.schedules import VP
    >>> model = Denoiser(MLP(event_shape=(2,), width=8), VPrediction(), VP())
    >>> calibration_set(model, "random", n=4).x_t.shape
    torch.Size([4, 2])

    Args:
        model: the denoiser.
        mode: see above.
        sampler: of ``reverse``.
        data: clean data ``[M, *]``, of ``raw`` and ``forward``; repeated where there are fewer than n.
        n: number of pairs.
        seed: names all that is drawn.

    Raises:
        ValueError: what the mode needs is not given.
    """
    stream, schedule = generator(seed, "calibration", mode), model.schedule
    if mode in ("raw", "forward") and (data is None or not len(data)):
        raise ValueError(f"calibration={mode} needs data: give data=NAME, or calibration=reverse")
    share = torch.rand(n, generator=stream, dtype=torch.float64)
    if mode in ("forward", "reverse"):  # a normal law cut off at 0 and 1, by its quantiles
        law = torch.distributions.Normal(*torch.tensor([CENTRE, WIDTH], dtype=torch.float64))
        low, high = law.cdf(torch.tensor([0.0, 1.0], dtype=torch.float64))
        share = law.icdf(low + share * (high - low)).clamp(0, 1)
    t = schedule.t_min + share * (schedule.t_max - schedule.t_min)
    z = torch.randn(n, *(model.event_shape or ()), generator=stream).to(model.device)
    cond = labels_for(range(seed, seed + n), model.record, device=model.device)
    alpha, sigma = (expand_to(v, z) for v in schedule(t))
    if mode == "random":
        return CalibrationSet(torch.hypot(alpha, sigma) * z, t, cond)
    if mode == "reverse":
        if sampler is None:
            raise ValueError("calibration=reverse needs a sampler: give sampler=ddim")
        drawn = draw(model, sampler, range(seed, seed + n), cond=cond, keep=64)
        states, times = drawn.trajectory[:-1], drawn.times[:-1]  # the last is the denoised result
        nearest = (times[:, None] - t[None]).abs().argmin(0)
        x_t = torch.stack([states[k][i] for i, k in enumerate(nearest.tolist())])
        return CalibrationSet(x_t, times[nearest], cond)
    assert data is not None  # refused above
    x = data[torch.randint(len(data), (n,), generator=stream)].to(z)
    return CalibrationSet(x if mode == "raw" else alpha * x + sigma * z, t, cond)


@checked
def quantise(
    model: Denoiser,
    node: dict[str, Any],
    calibration: CalibrationSet,
    *,
    bits: Bits = 8,
    batch: PositiveInt = 16,
) -> Denoiser:
    """The denoiser with ``bits`` bits in every layer; its ``record`` describes it, for a checkpoint.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.schedules import VP
    >>> node = {"_target_": "scoreexp.networks.MLP", "width": 8}
    >>> model = Denoiser(MLP(event_shape=(2,), width=8), VPrediction(), VP())
    >>> small = quantise(model, node, calibration_set(model, "random", n=4), bits=16)
    >>> type(small.network).__name__
    'Quantised'

    Args:
        model: the trained denoiser.
        node: the configuration of its network, with ``_target_``.
        calibration: see ``calibration_set``.
        bits: 2 to 16.
        batch: samples at once.

    Raises:
        ValueError: an argument is out of its range, or the network has weights that cannot be quantised, or none at all.
    """
    classes = model.record.get("num_classes")
    shape = tuple(model.event_shape or ())
    network = Quantised(
        event_shape=shape,
        network=construct({**node, "_partial_": True}, "network"),
        num_classes=classes,
        bits=bits,
    ).to(model.device)
    if all(value.is_floating_point() for value in network.state_dict().values()):
        raise ValueError(
            f"{type(model.network).__name__} has no convolution, linear layer or embedding to quantise: give a checkpoint "
            "of another network"
        )

    def run() -> None:
        for rows in torch.arange(len(calibration.t)).split(batch):
            cond = None if calibration.cond is None else calibration.cond[rows]
            model(calibration.x_t[rows], calibration.t[rows], cond)

    network.calibrate(model.network, run)
    found = Denoiser(network, model.preconditioning, model.schedule)
    found.event_shape = shape
    record = deepcopy(dict(model.record))
    new = {"_target_": "scoreexp.networks.Quantised", "bits": bits, "network": {**node, "_partial_": True}}
    record["config"] = {**record.get("config", {}), "network": new}
    found.record = record
    return found.eval().requires_grad_(False)


@torch.no_grad()
def compression_error(
    original: Denoiser, small: Denoiser, x: Tensor, levels: Sequence[float], *, seed: int = 0
) -> ByLevel:
    """``E |s' - s|^2 / E |s|^2`` of the scores of two models at each noise level, at ``u = x + r z``.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.schedules import VP
    >>> model = Denoiser(MLP(event_shape=(2,), width=8), VPrediction(), VP())
    >>> compression_error(model, model, torch.zeros(4, 2), [1.0])[1.0].value
    0.0
    """
    found = {}
    for level in levels:
        u = noisy(x, level, seed)
        exact = score(original, u, level)
        found[level] = ratio_of(
            sum_per_sample((score(small, u, level) - exact).square()), sum_per_sample(exact.square())
        )
    return found


def stored_bytes(model: Denoiser) -> int:
    """Bytes of a model's state, as a checkpoint stores them.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.schedules import VP
    >>> stored_bytes(Denoiser(torch.nn.Linear(2, 3), VPrediction(), VP()))
    36
    """
    return sum(v.numel() * v.element_size() for v in model.state_dict().values())
