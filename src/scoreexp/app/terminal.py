"""What a command says on stdout."""

import logging
import os
import sys
import warnings

from scoreexp.system.processes import is_first_process

LABEL_WIDTH = 15
# Lightning's remarks that no user can act on
_IGNORED = (
    ".*does not have many workers.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*in eval mode at the start of training.*",
    ".*GPU available but not used.*",
    ".*sync_dist=True.*",  # what is logged is the same on all devices, or the first one's time
    ".*``compute`` method of metric .* was called before.*",  # a process without an image to validate on
)


def say(text: str) -> None:
    """A line, at once, also where stdout is a file."""
    print(text, flush=True)


def say_labelled(label: str, text: str) -> None:
    """A line ``label  text``, with the texts of several below each other."""
    say(f"{label:<{LABEL_WIDTH}}{text}")


def quiet_training() -> None:
    """Keep off the terminal what other processes say too, and Lightning's remarks that no user can act on."""
    if not is_first_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in _IGNORED:
        warnings.filterwarnings("ignore", message)
