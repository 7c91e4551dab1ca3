"""``python -m scoreexp.doctor``: show what this machine offers, for a bug report or before a long run."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def findings() -> dict[str, str]:
    """Versions, devices, disk space and optional services, as lines of text."""
    import torch

    from scoreexp.app.conf_dir import conf_dir
    from scoreexp.app.wandb_logging import logged_in
    from scoreexp.runs.directory import PACKAGES, device_name, git_revision, package_version

    found = {name: package_version(name) or "missing" for name in PACKAGES}
    found["python"] = f"{sys.version.split()[0]} at {sys.executable}"
    found["revision"] = git_revision() or "not a checkout"
    found["configuration"] = str(conf_dir())
    found["processor"] = f"{os.cpu_count()} cores; {device_name(torch.device('cpu'))}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["CUDA devices"] = ", ".join(gpus) or "none (trainer=auto uses the CPU)"
    found["Apple GPU"] = "present, untested with scoreexp" if torch.backends.mps.is_available() else "none"
    found["free disk here"] = f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB"
    found["W&B"] = (
        "key found: logger=wandb is online" if logged_in() else "no key: logger=wandb writes offline runs"
    )
    return found


def main(words: Sequence[str] = ()) -> None:
    """Print the findings as a table; the command has no keys."""
    if words and words[0] not in ("--help", "-h"):
        sys.exit(f"error: {words[0]}: doctor takes nothing, run python -m scoreexp.doctor")
    if words:
        sys.stdout.write(f"usage: python -m scoreexp.doctor\n\nWhat{__doc__.partition(': show what')[2]}\n")
        return
    table = Table(show_header=False, box=None)
    for name, value in findings().items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
