"""How much memory a computation needs."""

import os
from collections.abc import Callable

import torch


def peak_memory(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes of tensors that exist at once while ``run`` runs, beyond those that exist before.

    Counted from the allocations of torch, so the same each time; work space inside a library's kernels is not counted.

    >>> import torch
    >>> peak_memory(lambda: torch.zeros(1000).clone())
    8000

    Args:
        run: what to measure; it runs once, slower than without the count.
        device: where it works.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
