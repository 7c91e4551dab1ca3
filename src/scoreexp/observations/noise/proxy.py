r"""The noise of a sensor learned from its dark frames by small networks, with the photons of its photon-transfer line.

.. math:: y = x + K n_u + G_p(z_{ij}) + G_r(z_i) + s_f z, \qquad n_u = \mathrm{Poisson}(u / K) - u / K, \quad u = x + 1 ,

where ``G_p`` and ``G_r`` make pixel and row noise of standard normal variables. Dark frames are divided into these parts by
averages (``calibration.dark_parts``). Each network is fitted to its part by the distance of sorted samples, which is the
1-Wasserstein distance in one dimension, exactly:

.. math:: W_1 = \frac1n \sum_k | G(z)_{(k)} - e_{(k)} | .

The mean of a row holds ``1 / W`` of the variance of its pixels too, so ``G_r(z) + N(0, sigma_p^2 / W)`` is compared with it.
A frame's offset is a normal variable: there are too few frames to learn its law.

``log_likelihood`` and ``posterior_mean`` are those of a Gaussian of the same mean and covariance.

Reference: H. Feng, L. Wang, Y. Huang, Y. Wang, L. Zhu, H. Huang, "Physics-guided Noise Neural Proxy for Practical Low-light
Raw Image Denoising", 2023,
https://arxiv.org/abs/2310.09126.
"""

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_unit
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat, PositiveFloat, PositiveInt
from scoreexp.observations.noise.anscombe import Anscombe, normal_law, sum_law
from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.calibration import dark_parts, photon_transfer, require_frames
from scoreexp.observations.noise.lines import Lines, log_density, require_lines
from scoreexp.observations.noise.poisson import BRIGHTEST, intensity
from scoreexp.system.network_files import read_network, write_network

NODES, FARTHEST = 481, 8.0  # of the moments of a generator
NODES_OF_PIXELS, NODES_OF_ROWS, NODES_OF_FRAMES = 121, 15, 7  # of the stabilising transform


class Generator(nn.Module):
    """Noise of one part, a function of a standard normal variable whose mean is 0; it begins as the identity.

    >>> z = torch.linspace(-2, 2, 5)
    >>> torch.allclose(Generator(8)(z), z, atol=1e-6)
    True

    Args:
        width: of the two hidden layers.
    """

    nodes: Tensor
    weights: Tensor

    @checked
    def __init__(self, width: PositiveInt = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]
        self.tail = nn.Parameter(torch.zeros(()))  # what a perceptron, linear far out, has not
        nodes = torch.linspace(-FARTHEST, FARTHEST, NODES)
        weights = torch.exp(-(nodes**2) / 2)
        self.register_buffer("nodes", nodes, persistent=False)
        self.register_buffer("weights", weights / weights.sum(), persistent=False)

    def raw(self, z: Tensor) -> Tensor:
        """Before its mean is taken off; any shape."""
        made: Tensor = z + self.tail * z**3 + self.layers(z.unsqueeze(-1)).squeeze(-1)
        return made

    def forward(self, z: Tensor) -> Tensor:
        """``z`` of any shape -> noise of that shape."""
        return self.raw(z) - self.weights @ self.raw(self.nodes)

    def variance(self) -> Tensor:
        """Of the noise, by quadrature over ``z``."""
        return self.weights @ self(self.nodes) ** 2


class NoiseProxy(nn.Module):
    """The generators and levels of one sensor; ``fit_noise_proxy`` trains one.

    >>> proxy = NoiseProxy(gain=0.0, pixel=0.1, row=0.02)
    >>> [round(value, 6) for value in proxy.variances()]
    [0.01, 0.0004, 0.0]

    Args:
        gain: ``K`` in the units of the model, 0 where photons are left out.
        pixel: scale of the noise of pixels.
        row: scale of the noise of rows.
        frame: ``s_f``.
        width: of the networks.
    """

    @checked
    def __init__(
        self,
        gain: FiniteNonNegativeFloat,
        pixel: FinitePositiveFloat,
        row: FiniteNonNegativeFloat = 0.0,
        frame: FiniteNonNegativeFloat = 0.0,
        width: PositiveInt = 32,
    ) -> None:
        super().__init__()
        self.sizes = {
            "gain": float(gain),
            "pixel": float(pixel),
            "row": float(row),
            "frame": float(frame),
            "width": int(width),
        }
        self.gain, self.pixel, self.row, self.frame = float(gain), float(pixel), float(row), float(frame)
        self.of_pixel, self.of_row = Generator(width), Generator(width)

    def variances(self) -> tuple[float, float, float]:
        """Of pixels, rows and frames."""
        with torch.no_grad():
            of_pixel, of_row = (float(part.variance()) for part in (self.of_pixel, self.of_row))
        return self.pixel**2 * of_pixel, self.row**2 * of_row, self.frame**2


class ProxyNoise(NoiseModel):
    """See the module's formulas.

    >>> noise = ProxyNoise(NoiseProxy(gain=0.01, pixel=0.1))
    >>> noise.sample(torch.zeros(1, 1, 8, 8), ImageStreams([0])).shape
    torch.Size([1, 1, 8, 8])

    Args:
        proxy: a trained one, from ``fit_noise_proxy`` or ``load_proxy``.

    Raises:
        ValueError: on a call, an intensity is negative where there is a gain, or the data are no images where rows or
            frames have noise.
    """

    @checked
    def __init__(self, proxy: NoiseProxy) -> None:
        self.proxy = proxy.eval().requires_grad_(False)
        self.gain = proxy.gain
        self.of_pixel, self.of_row, self.of_frame = proxy.variances()

    def __str__(self) -> str:
        pixel, row = (sigma_to_unit(part**0.5) for part in (self.of_pixel, self.of_row))
        light = f"{2 / self.gain:.3g} electrons at white" if self.gain else "no photons"
        return f"learned sensor noise, {light}, read-out sigma {pixel:.3g}, rows {row:.3g}"

    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        y = self.gain * streams.poisson(2 / self.gain * intensity(x)) - 1 if self.gain else x
        proxy = self.proxy.to(x.device)
        y = y + proxy.pixel * proxy.of_pixel(streams.normal(x).float()).to(x)
        if proxy.row or proxy.frame:
            require_lines(x, "the row noise of ProxyNoise")
            y = y + proxy.row * proxy.of_row(streams.normal(x[..., :1]).float()).to(x)
            y = y + proxy.frame * streams.normal(x[..., :1, :1])
        return y

    @property
    def lines(self) -> Lines | None:
        if not self.of_row:
            return None
        without = copy.copy(self.proxy)
        without.row = 0.0
        return Lines(self.of_row**0.5, "rows", ProxyNoise(without))

    def variance(self, x: Tensor) -> Tensor:
        return self._of_pixels(x) + self.of_row + self.of_frame

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        if x.ndim < 3:
            return torch.distributions.Normal(x, self.variance(x).sqrt()).log_prob(y).flatten(1).sum(1)
        return log_density(y - x, self._of_pixels(x), self.of_row, self.of_frame)

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        x = y + self._of_pixels(y.clamp(min=-1) if self.gain else y) * score
        if x.ndim > 2:
            x = x + self.of_row * score.sum(-1, keepdim=True)
            x = x + self.of_frame * score.sum((-1, -2), keepdim=True)
        return x

    def stabilise(self, y: Tensor) -> Tensor:
        if not self.gain:  # the noise is the same everywhere
            return y / self._reading
        return self._transform((y + 1) / self.gain)

    def unstabilise(self, z: Tensor) -> Tensor:
        return self.gain * self._transform.back(z) - 1 if self.gain else z * self._reading

    @property
    def _reading(self) -> float:
        return math.sqrt(self.of_pixel + self.of_row + self.of_frame)

    @cached_property
    def _transform(self) -> Anscombe:
        return Anscombe(BRIGHTEST * 2 / self.gain, self._reading / self.gain, self._reading_law)

    def _reading_law(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights of all noise but the photons', in units of its standard deviation."""
        parts, proxy = [], self.proxy
        for count, scale, made in (
            (NODES_OF_PIXELS, proxy.pixel, proxy.of_pixel),
            (NODES_OF_ROWS, proxy.row, proxy.of_row),
            (NODES_OF_FRAMES, proxy.frame, nn.Identity()),
        ):
            nodes, weights = normal_law(count if scale else 1)
            parts.append((scale * made(nodes.to(proxy.of_pixel.nodes)).to(nodes.device).double(), weights))
        return sum_law(parts)

    def _of_pixels(self, x: Tensor) -> Tensor:
        """The variance that no pixel shares."""
        if not self.gain:
            return torch.full_like(x, self.of_pixel)
        return 2 * self.gain * intensity(x) + self.of_pixel


def sorted_distance(made: Tensor, real: Tensor) -> Tensor:
    """The 1-Wasserstein distance of two samples ``[n]`` of one size, differentiable in both.

    >>> sorted_distance(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 3.0]))
    tensor(0.5000)
    """
    return (made.sort().values - real.sort().values).abs().mean()


@checked
def fit_noise_proxy(
    darks: Tensor,
    flats: Sequence[Tensor] = (),
    *,
    steps: PositiveInt = 600,
    batch_size: PositiveInt = 4096,
    width: PositiveInt = 32,
    lr: PositiveFloat = 3e-3,
    seed: int = 0,
) -> NoiseProxy:
    """Learn the noise of a sensor from its dark frames, and its gain from flat ones.

    >>> darks = -1 + 0.1 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> proxy = fit_noise_proxy(darks, steps=2)
    >>> round(ProxyNoise(proxy).of_pixel, 2)
    0.01

    Args:
        darks: ``[N, C, H, W]``, in the units of the model, not clipped at black.
        flats: a stack of frames for each exposure, as of ``calibrate``; none leaves the photons out.
        steps: of the optimiser for each network.
        batch_size: values that are sorted in a step.
        width: of the networks.
        lr: learning rate of Adam, which falls to a tenth.
        seed: of the first weights and of the draws.

    Raises:
        ValueError: the frames differ in size, are too few, or are all the same.
    """
    require_frames(darks, flats)
    parts = dark_parts(darks)
    of_pixel = float(parts.pixels.square().mean())
    if not of_pixel > 0:
        raise ValueError("the dark frames are all the same: give frames that are not clipped at black")
    shared = of_pixel / darks.shape[-1]
    of_row = max(float(parts.rows.square().mean()) - shared, 0.0)
    of_frame = max(float(parts.frames.square().mean()) - (of_row + shared) / darks.shape[-2], 0.0)
    gain = photon_transfer(flats, darks).gain if flats else 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        proxy = NoiseProxy(gain, of_pixel**0.5, of_row**0.5, of_frame**0.5, width)
    random = generator(seed, "noise proxy")
    fit = (proxy.of_pixel, parts.pixels, proxy.pixel, 0.0), (proxy.of_row, parts.rows, proxy.row, shared**0.5)
    for network, values, scale, beside in fit:
        if scale:
            _fit(network, (values / scale).flatten().float(), beside / scale, steps, batch_size, lr, random)
    return proxy.eval().requires_grad_(False)


def _fit(
    network: Generator,
    values: Tensor,
    beside: float,
    steps: int,
    batch_size: int,
    lr: float,
    random: torch.Generator,
) -> None:
    """Adam on the distance of ``network(z)``, plus normal noise of the standard deviation ``beside``, to the values."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / steps))
    count = min(batch_size, len(values))
    for _ in range(steps):
        real = values[torch.randint(len(values), (count,), generator=random)]
        z, other = torch.randn(2, count, generator=random)
        loss = sorted_distance(network(z) + beside * other, real)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def save_proxy(proxy: NoiseProxy, path: str | Path) -> None:
    """Write a proxy, whole or not at all."""
    write_network(path, "noise_proxy", proxy, proxy.sizes)


def load_proxy(path: str | Path) -> NoiseProxy:
    """Read a proxy that ``save_proxy`` wrote; tensors and plain data only are read.

    Raises:
        UserError: the file is missing, or no such proxy.
    """
    remedy = "write one with scoreexp.observations.save_proxy"
    return read_network(path, "noise_proxy", NoiseProxy, "proxy of sensor noise", remedy)
