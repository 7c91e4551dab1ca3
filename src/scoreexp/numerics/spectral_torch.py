r"""The exact Fokker-Planck solution on a torch device, by fast Fourier transforms.

The method is that of ``scoreexp.numerics.fokker_planck.spectral``: without drift and flux the cosine transform of
type I diagonalises the Laplacian of the pixel grid, and with p = exp(m)

.. math:: p(t) = \mathrm{IDCT}[e^{\lambda_{kl} \int_0^t g^2 / 2}\, \mathrm{DCT}[p_0]], \qquad m = \log p .

Here the transform is the real FFT of the evenly extended signal, for all images at once and on any device.
Everything else (checks, score, caches) is shared: ``TorchSpectral`` is a solver like the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.numerics.fokker_planck.problem import Boundary, Problem, StageClock, Step
from scoreexp.numerics.fokker_planck.spectral import laplacian_eigenvalues

Precision = Literal["float32", "float64"]


def cosine_sums(x: Tensor) -> Tensor:
    r"""DCT-I over the last two axes: along each, ``X_k = x_0 + (-1)^k x_{n-1} + 2 sum x_i cos(pi i k/(n-1))``.

    It is its own inverse up to the factor ``2 (n - 1)`` per axis.

    >>> import torch
    >>> x = torch.arange(12.0).reshape(3, 4)
    >>> torch.allclose(cosine_sums(cosine_sums(x)) / (4 * 2 * 3), x)
    True

    Args:
        x: ``[..., H, W]``, sides of at least 2.
    """
    for _ in range(2):
        n = x.shape[-1]
        even = torch.cat([x, x[..., 1 : n - 1].flip(-1)], dim=-1)
        x = torch.fft.rfft(even, dim=-1).real.transpose(-1, -2)
    return x


@checked
@dataclass(frozen=True)
class TorchSpectral:
    """Exact-in-time cosine-transform solver on a torch device; see the module docstring.

    Round-off is held to the bounds of the exact solution as in ``Spectral``. In float32 the density carries an
    error of about 1e-6 of its maximum, and log p that error divided by p / max p.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> log_p0 = -8 * np.linspace(-1, 1, 9)[:, None] ** 2 * np.ones(9)
    >>> arguments = {"log_p0": log_p0, "g": 0.5, "times": [0.0, 0.1]}
    >>> field, other = solve_log_density(**arguments, solver=TorchSpectral("cpu")), solve_log_density(**arguments)
    >>> field.solver, np.allclose(field.log_p, other.log_p)
    ('spectral_torch', True)

    Args:
        device: ``auto`` takes CUDA where there is one, otherwise the CPU.
        precision: of the transforms.

    Raises:
        ValueError: an unknown precision, or a device that torch does not know or have.
    """

    device: str = "auto"
    precision: Literal["float32", "float64"] = "float64"

    name: ClassVar[str] = "spectral_torch"
    boundaries: ClassVar[tuple[Boundary, ...]] = ("neumann",)
    supports_drift: ClassVar[bool] = False
    exact_in_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            chosen = torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r} is unknown: choose auto, cpu or cuda") from error
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: torch finds no CUDA device, choose auto or cpu")

    def _chosen(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        dtype, device = getattr(torch, self.precision), self._chosen()
        with clock("solve"):
            rows, columns = (torch.from_numpy(axis) for axis in laplacian_eigenvalues(problem.grid))
            decay = (rows[:, None] + columns).to(device, dtype)
            half_variance = torch.from_numpy(problem.variances).cumsum(0) / 2
            start = torch.from_numpy(problem.log_p0).to(device, dtype)
            peak = start.amax(dim=(1, 2), keepdim=True)
            density = (start - peak).exp()
            floor = density.amin(dim=(1, 2), keepdim=True).clamp(min=4 * torch.finfo(dtype).eps)
            height, width = problem.grid.shape
            modes = cosine_sums(density) / (4 * (height - 1) * (width - 1))
        for index in sorted(problem.wanted - {0}):
            with clock("solve"):
                p = cosine_sums(modes * (decay * half_variance[index - 1].item()).exp())
                log_p = (torch.maximum(p, floor).log() + peak).double().cpu().numpy()
            yield Step(index, log_p)
