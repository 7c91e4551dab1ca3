"""Lightning's loop counters, in the one state that resumes exactly: between two steps.

Lightning writes its progress counters as they are at the moment of saving and guesses on restart where inside a step
that was. Depending on the hook, the batch index, the validation schedule or the logger's step come out shifted by one.
scoreexp saves only when a step and all that follows from it is over, so the counters can be written as exactly that.
"""

from typing import Any

_COUNTERS = ("ready", "started", "processed", "completed")


def _set(counters: dict[str, Any], n: int) -> None:
    for name in _COUNTERS:
        if name in counters:
            counters[name] = n


def completed_progress(loops: dict[str, Any], batches: int) -> None:
    """Rewrite ``checkpoint["loops"]`` in place to "``batches`` training batches are done, nothing is under way".

    Args:
        loops: the entry that ``Trainer.save_checkpoint`` made.
        batches: training batches completed since the start of the run (the run is one endless epoch).
    """
    fit = loops["fit_loop"]
    for key in ("total", "current"):
        _set(fit["epoch_loop.batch_progress"][key], batches)
        _set(fit["epoch_loop.val_loop.batch_progress"][key], 0)
    fit["epoch_loop.batch_progress"]["is_last_batch"] = False
    fit["epoch_loop.val_loop.batch_progress"]["is_last_batch"] = False
    for key in ("total", "current"):
        fit["epoch_progress"][key] = {
            name: (0 if name in ("processed", "completed") else 1) for name in fit["epoch_progress"][key]
        }
