"""The closure that torch lets a step of an optimiser take."""

from collections.abc import Callable
from typing import Any

import torch


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What it returns, with gradients, or None without one.

    >>> evaluated(None), evaluated(torch.is_grad_enabled)
    (None, True)
    """
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
