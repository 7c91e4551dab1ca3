"""Where a run begins: anew, where it was left, where another run was, or with another run's weights."""

import contextlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.construct import locate
from scoreexp.core.errors import UserError
from scoreexp.lit import ScoreModule
from scoreexp.lit.callbacks import RunCallback
from scoreexp.lit.checkpoint import CheckpointError, newest_intact, read_checkpoint
from scoreexp.lit.csv_logger import CSVLogger
from scoreexp.runs.directory import RunDirectory, shown
from scoreexp.runs.model import MODEL_PARTS, model_weights
from scoreexp.system.atomic import atomic_write
from scoreexp.system.json_files import read_json

# An optimiser's stored state would overrule a changed one.
_TRAINED_BY = ("objective", "time_law", "optimizer", "model")


def starting_point(
    run: RunDirectory, ckpt: str | None, record: dict[str, Any], table: CSVLogger, is_first: bool
) -> Path | None:
    """The checkpoint to go on from, or None; the metrics table is cut to its step.

    Args:
        run: the run, opened.
        ckpt: another run's checkpoint, which a new run begins with.
        record: what the run's model is made of.
        table: the run's metrics.
        is_first: whether this is the process that writes files.

    Raises:
        UserError: no checkpoint of the run is intact, or it is of another model.
    """
    path = own_checkpoint(run, record)
    if path is None and ckpt is not None:
        path = run.checkpoints / "last.ckpt"  # the others read it when they have met the first one
        if is_first:
            adopt(Path(ckpt), path)
    if path is None:
        if run.continued:
            say_labelled("resumed", "no checkpoint was saved before: starts at step 0")
    elif is_first:
        step = read_checkpoint(path)["global_step"]
        table.continue_from(int(step))
        say_labelled("resumed", f"from step {step}, {shown(path if run.continued else Path(str(ckpt)))}")
    return path


def over_already(
    run: RunDirectory, start: Path, callbacks: Sequence[RunCallback], max_steps: int
) -> str | None:
    """Why there is nothing left to do for ``run``, or None: neither a step nor its conclusion is missing."""
    concluded = read_json(run.path / "metrics.json").get("step")
    if concluded is None or (saved := read_checkpoint(start))["global_step"] != concluded:
        return None
    for callback in callbacks:
        if callback.state_key in saved["callbacks"]:
            callback.load_state_dict(saved["callbacks"][callback.state_key])
        if callback.reason:
            return callback.reason
    if 0 <= max_steps <= saved["global_step"]:
        return f"it has trained {saved['global_step']} of trainer.max_steps={max_steps} steps"
    return None


def own_checkpoint(run: RunDirectory, record: dict[str, Any]) -> Path | None:
    """The checkpoint with which a run goes on, or None where it has saved none.

    Raises:
        UserError: none is intact, or it is of another model.
    """
    if not run.continued:
        return None
    path, problems = newest_intact(run.checkpoints)
    for problem in problems:
        say(f"warning: {problem}")
    if path is None:
        if problems:
            raise UserError(
                f"run_dir {run.path} holds no intact checkpoint: start again with another run_dir"
            )
        return None
    _require_same_model(read_checkpoint(path), record, f"run_dir {run.path}", "give another run_dir")
    return path


def require_further_steps(ckpt: Path, record: dict[str, Any], max_steps: int) -> None:
    """Refuse another run's checkpoint that this run cannot go on from.

    Raises:
        CheckpointError: it cannot be read.
        UserError: it is of another model, or has all of the run's steps behind it.
    """
    saved = read_checkpoint(ckpt)
    _require_same_model(
        saved, record, f"ckpt {ckpt}", "take its weights only, with init_from instead of ckpt"
    )
    if 0 <= max_steps <= saved["global_step"]:
        raise UserError(
            f"ckpt {ckpt} has trained {saved['global_step']} steps: set trainer.max_steps above that to go on"
        )


def _require_same_model(saved: dict[str, Any], record: dict[str, Any], where: str, else_: str) -> None:
    stored = saved["scoreexp"]
    config = stored["config"] | stored["config"].get("asked", {})  # of a model that was trained elsewhere
    for part in (*MODEL_PARTS, *_TRAINED_BY):
        if _settings(config, part) != _settings(record["config"], part):
            raise UserError(
                f"{where} was trained with another {part}: repeat the configuration beside it (config.yaml) to go on with "
                f"it, or {else_}"
            )
    if stored["event_shape"] != record["event_shape"]:
        raise UserError(
            f"{where} was trained on samples of shape {stored['event_shape']}, the data now have "
            f"{record['event_shape']}: repeat its data configuration, or {else_}"
        )


def _settings(config: dict[str, Any], part: str) -> Any:
    """The settings of a part but those that change nothing but speed; those that it did not have yet as they were then."""
    node = config.get(part)
    if not isinstance(node, dict):
        return node
    has_classes = bool((config.get("data") or {}).get("classes"))
    then = {"label_dropout": 0} if part == "model" else {}
    left_out = {"compile"} if has_classes else {"compile", "label_dropout"}
    return {key: value for key, value in {**then, **node}.items() if key not in left_out}


def adopt(ckpt: Path, last: Path) -> None:
    """Begin a run as a copy of the one that ``ckpt`` belongs to, as it was then: write ``last``, its first checkpoint.

    The table of metrics and the best checkpoint come along where they lie beside ``ckpt``.
    """
    step = int(read_checkpoint(ckpt)["global_step"])
    _copy(ckpt.parent.parent / "metrics.csv", last.parent.parent / "metrics.csv")
    best = ckpt.with_name("best.ckpt")
    with contextlib.suppress(CheckpointError):  # missing or damaged
        if read_checkpoint(best)["global_step"] <= step:
            _copy(best, last.with_name("best.ckpt"))
    _copy(ckpt, last)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)


def take_weights(module: ScoreModule, path: str | Path) -> None:
    """Begin with the weights of a checkpoint, the averaged ones if it has an average.

    Another preconditioning gives the network's output another meaning, which is said; consistency tuning means it so.

    Raises:
        CheckpointError: it cannot be read, or its network is another one.
    """
    checkpoint = read_checkpoint(path)
    weights = model_weights(checkpoint)
    theirs = locate(checkpoint["scoreexp"]["config"]["precond"]["_target_"]).__name__
    mine = type(module.denoiser.preconditioning).__name__
    if theirs != mine and (theirs, mine) != ("EDMPrediction", "ConsistencyPrediction"):
        say_labelled("warning", f"init_from: its network was trained for {theirs}, this run has {mine}")
    for denoiser in (module.denoiser, module.averaged):
        if denoiser is None:
            continue
        try:
            denoiser.load_state_dict(weights)
        except RuntimeError as error:
            reason = in_words(str(error).strip().splitlines()[-1].strip())
            raise CheckpointError(
                f"init_from {path} does not fit this run's network ({reason}): give the network configuration of its run"
            ) from error


def in_words(said: str) -> str:
    """The last line that ``load_state_dict`` says, without its list of all names."""
    if found := re.match(r'(Missing|Unexpected) key\(s\) in state_dict: "([^"]+)"', said):
        return f"it {'lacks' if found[1] == 'Missing' else 'has'} {found[2]}"
    return said[:160].rstrip(".")
