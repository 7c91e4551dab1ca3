"""Broadcasting over the event shape and per-sample reductions.

A batch is ``[B, *]`` with any event shape: ``(C, H, W)`` for images, ``(2,)`` for points in the plane.
"""

from torch import Tensor


def expand_to(c: Tensor, x: Tensor) -> Tensor:
    """View per-sample coefficients ``c[B]`` as ``[B, 1, ..., 1]``, in the dtype and on the device of ``x[B, *]``.

    >>> import torch
    >>> alpha, x = torch.tensor([1.0, 0.5]), torch.ones(2, 3, 8, 8)
    >>> expand_to(alpha, x).shape
    torch.Size([2, 1, 1, 1])
    """
    return c.to(device=x.device, dtype=x.dtype, non_blocking=x.is_cuda).reshape(-1, *(1,) * (x.ndim - 1))


def mean_per_sample(x: Tensor) -> Tensor:
    """Mean over the event axes: ``[B, *] -> [B]``.

    >>> import torch
    >>> mean_per_sample(torch.tensor([[[1.0, 3.0]], [[4.0, 8.0]]]))
    tensor([2., 6.])
    """
    return x.flatten(1).mean(1)


def sum_per_sample(x: Tensor) -> Tensor:
    """Sum over the event axes: ``[B, *] -> [B]``.

    >>> import torch
    >>> sum_per_sample(torch.tensor([[[1.0, 3.0]], [[4.0, 8.0]]]))
    tensor([ 4., 12.])
    """
    return x.flatten(1).sum(1)
