"""Solvers that were fitted to a checkpoint's model, kept beside it."""

import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scoreexp.core.errors import UserError
from scoreexp.denoisers import DenoiserBase
from scoreexp.samplers import Auto, NonStationary, Sampler, fit_solver
from scoreexp.samplers.labels import Label
from scoreexp.system.json_files import read_json, write_json

FORMAT = 2


class StoredSolver(NamedTuple):
    """A fitted solver, where it is kept, and what there is to say of it.

    Attributes:
        sampler: the solver, or ``Auto`` without a fit where that is nearer to the flow.
        path: the fitted solver's file.
        error: root of the mean squared distance to the end of the flow over held-out starts, in the units of the data.
        said: whether it was fitted now, and why, and whether it was not taken.
    """

    sampler: Sampler
    path: Path
    error: float
    said: str


def solver_beside(
    checkpoint: str | Path,
    model: DenoiserBase,
    auto: Auto,
    *,
    label: Label = None,
    settings: Mapping[str, Any] | None = None,
) -> StoredSolver:
    """The solver of ``auto.steps`` evaluations for the model of a checkpoint, read or else fitted and written.

    ``RUN_DIR/checkpoints/best.ckpt`` has its solver of 10 evaluations in ``best.auto-10.json``. The file says what it
    belongs to: the content of the checkpoint, the target, the label and ``settings``. A solver that was fitted to anything
    else is named and replaced. Where the fitted one is further from the flow at held-out starts than ``auto`` itself, that
    is said and ``auto`` is what is returned.

    Args:
        checkpoint: the file that ``model`` was loaded from.
        model: the denoiser, with its guidance.
        auto: how many evaluations, and what they aim at.
        label: as for ``sample``.
        settings: what else makes the model: ``weights`` and ``guidance``.

    Raises:
        UserError: the file is damaged; the remedy is to delete it.
    """
    checkpoint = Path(checkpoint).expanduser()
    path = checkpoint.with_name(f"{checkpoint.stem}.auto-{auto.steps}.json")
    belongs = {
        "format": FORMAT,
        "checkpoint": _digest(checkpoint),
        "evaluations": auto.steps,
        "denoise_last": auto.denoise_last,
        "label": label,
        **(settings or {}),
    }
    stored = read_json(path)
    if stored and stored.get("belongs") == belongs:
        return _better(auto, path, stored, "as fitted before")
    reason = "fitted"
    if stored:
        was = stored.get("belongs")
        differs = [key for key in belongs if not isinstance(was, dict) or was.get(key) != belongs[key]]
        reason = f"fitted again, for the one kept was of another {', '.join(differs)}"
    started = time.perf_counter()
    fitted = fit_solver(model, auto.steps, denoise_last=auto.denoise_last, label=label)
    sampler = fitted.sampler
    content = {
        "belongs": belongs,
        "error": fitted.error,
        "error_fitted": fitted.error_fitted,
        "base_error": fitted.base_error if math.isfinite(fitted.base_error) else None,
        "times": list(sampler.times),
        "coefficients": [list(c) for c in sampler.coefficients],
        "mean": sampler.mean.tolist(),
    }
    write_json(path, content)
    return _better(auto, path, content, f"{reason}, in {time.perf_counter() - started:.0f} s")


def _better(auto: Auto, path: Path, stored: Mapping[str, Any], said: str) -> StoredSolver:
    """The solver of a file, or ``auto`` where that has the smaller error."""
    try:
        solver = NonStationary(stored["times"], stored["coefficients"], torch.tensor(stored["mean"]))
        error, base_error = float(stored["error"]), stored["base_error"]
        if base_error is None or error <= base_error:
            return StoredSolver(solver, path, error, said)
        return StoredSolver(auto, path, base_error, f"{said}; {not_taken(error, base_error)}")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds no solver ({error}): delete the damaged file") from error


def not_taken(error: float, base_error: float) -> str:
    """Why a fitted solver is not used.

    >>> not_taken(0.5, 0.25)
    'not taken: over held-out starts its error is 0.5, that of unipc_velocity without a fit 0.25, which is used instead'
    """
    return (
        f"not taken: over held-out starts its error is {error:.3g}, that of unipc_velocity without a fit {base_error:.3g}, "
        "which is used instead"
    )


def _digest(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
