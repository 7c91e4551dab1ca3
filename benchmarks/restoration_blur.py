"""A blur without a border by the Fourier transform and by torch's convolution: ``python -m benchmarks.restoration_blur``

Milliseconds of the processor, the least of five calls on one thread, for an image of three channels in float32, and the
largest difference of the two relative to the largest value.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.observations import Blur

REPEATS = 5


def milliseconds(run: Callable[[], Tensor]) -> float:
    """The least of some calls after one."""
    run()
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return 1e3 * min(taken)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 128, 256, 509])
    parser.add_argument("--kernels", type=int, nargs="+", default=[3, 7, 15, 31])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| side | kernel | A: FFT, ms | convolution | A^T: FFT, ms | convolution | difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for side in arguments.sides:
        for reach in (k for k in arguments.kernels if k < side):
            kernel = torch.rand(reach, reach)
            blur, x = Blur(kernel / kernel.sum(), side, "valid"), torch.randn(1, 3, side, side)
            weight = blur.kernel.flip(0, 1).float()[None, None]
            y = blur(x)
            pairs = (
                (lambda x=x, blur=blur: blur(x), lambda x=x, w=weight: F.conv2d(x[0][:, None], w)),
                (
                    lambda y=y, blur=blur: blur.adjoint(y),
                    lambda y=y, w=weight: F.conv_transpose2d(y[0][:, None], w),
                ),
            )
            times = [milliseconds(run) for pair in pairs for run in pair]
            differences = [(a() - b()[:, 0]).abs().max() / b().abs().max() for a, b in pairs]
            cells = [f"{ms:.2f}" for ms in times] + [f"{float(max(differences)):.0e}"]
            print(f"| {side} | {reach} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
