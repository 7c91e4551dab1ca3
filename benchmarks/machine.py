"""The ceiling of the machine: the fastest floating-point rate that torch reaches here on two plain kernels.

The ceiling is the better of a float32 product of two 2048 x 2048 matrices and a 3x3 convolution of ``[16, 128, 32, 32]``
with 128 output channels, forward, in the channels_last memory format. On a machine that other jobs share, the ceiling
changes from second to second: probe it beside each measurement, and compare a measurement with its own probes only.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

MATRIX = 2048
CONV_BATCH, CONV_CHANNELS, CONV_SIZE = 16, 128, 32


def seconds(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Mean wall-clock seconds of one call over ``repeats`` calls, after the device has finished them."""
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _synchronise(device)
    return (time.perf_counter() - start) / repeats


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class CeilingProbe:
    """Measures the ceiling in FLOP/s; one call takes about 0.3 s on two CPU cores."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)

        self.device = device
        self.matrices = draw(MATRIX, MATRIX), draw(MATRIX, MATRIX)
        self.images, self.kernel = (
            draw(*shape).contiguous(memory_format=torch.channels_last)
            for shape in (
                (CONV_BATCH, CONV_CHANNELS, CONV_SIZE, CONV_SIZE),
                (CONV_CHANNELS, CONV_CHANNELS, 3, 3),
            )
        )
        self()  # warm up

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """FLOP/s of each kernel and of the better one: keys ``matrix_product``, ``convolution``, ``ceiling``."""
        repeats = 3 if self.device.type == "cpu" else 50
        product = 2 * MATRIX**3 / seconds(lambda: torch.mm(*self.matrices), repeats, self.device)
        conv_flops = 2 * CONV_BATCH * CONV_SIZE**2 * 9 * CONV_CHANNELS**2
        convolve = lambda: torch.conv2d(self.images, self.kernel, padding=1)  # noqa: E731
        convolution = conv_flops / seconds(convolve, 3 * repeats, self.device)
        return {"matrix_product": product, "convolution": convolution, "ceiling": max(product, convolution)}
