"""What a command refuses before torch is imported, which takes seconds: files, folders and names that cannot be right."""

import re
from collections.abc import Sequence
from pathlib import Path

from scoreexp.core.errors import UserError
from scoreexp.data.suffixes import WRITABLE

USUAL_NUMBER = 16  # of samples
_DEVICES = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


def require_device_name(name: str) -> None:
    """Refuse a device that exists nowhere; whether it does here, ``choose_device`` says."""
    if not _DEVICES.fullmatch(name):
        raise UserError(f"device={name}: allowed are auto, cpu, cuda, cuda:N, mps and xpu")


def require_input(source: Path) -> None:
    """Refuse an input that is not there."""
    if not source.exists():
        raise UserError(f"input={source} does not exist: give a picture or a folder of pictures")


def require_output(source: Path, output: str | None) -> None:
    """Refuse an output for one picture whose name is not that of a picture."""
    if output is None or source.is_dir() or Path(output).expanduser().is_dir():
        return
    if Path(output).suffix.lower() not in WRITABLE:
        raise UserError(f"output={output}: its suffix must be one of {', '.join(WRITABLE)}")


def seeds_of(n: int | None, seeds: int | Sequence[int] | None) -> list[int]:
    """The seeds that ``n`` and ``seeds`` of a command name: ``n`` from the first, or those of a list.

    Raises:
        UserError: a list of other length than ``n``, or an empty one.
    """
    if seeds is None or isinstance(seeds, int):
        first = seeds or 0
        return list(range(first, first + (USUAL_NUMBER if n is None else n)))
    if not seeds:
        raise UserError("seeds=[] asks for no sample: give some, or leave seeds out")
    if n is not None and n != len(seeds):
        raise UserError(
            f"n={n} and seeds={list(seeds)} name {len(seeds)} samples: leave n out, or give {n} seeds or the first of them"
        )
    return [int(seed) for seed in seeds]
