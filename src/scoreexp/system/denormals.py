"""Numbers below the smallest normal one count as 0, where they would make training slow.

The momentum of a weight without a gradient, such as that of a unit that ReLU has shut for good, halves every few steps until
it is below 1.2e-38, where it stays. A processor computes with such numbers at a fraction of its speed, matrix products with
them at a hundredth (``findings/torch_momentum_of_dead_units_slows_training.sh``): with Muon, the steps of the bundled
prior's network took eight times as long after 4,000 of them as after 100.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_denormals() -> Iterator[None]:
    """Flush them to 0 in this thread, and in the threads that it starts; those that run already go on as they did.

    >>> with no_denormals():
    ...     flushed = torch.tensor(1e-39) * 1
    >>> bool(flushed == 0), bool(torch.tensor(1e-39) * 1 == 0)
    (True, False)

    Where the processor does not offer it nothing is changed.
    """
    before = bool(torch.tensor(1e-39) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
