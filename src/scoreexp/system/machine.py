"""What the machine is."""

import platform
from pathlib import Path


def processor() -> str:
    """The name of the processor; its architecture where the system says no more.

    >>> len(processor()) > 0
    True
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
