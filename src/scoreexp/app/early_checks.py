"""What a command refuses before torch is imported, which takes seconds: files, folders and names that cannot be right."""

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoreexp.app.signatures import resolve
from scoreexp.core.errors import UserError
from scoreexp.data.suffixes import WRITABLE, scan_format, suffix_of
from scoreexp.runs.checkpoint_path import require_model_path

USUAL_NUMBER = 16  # of samples
_DEVICES = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")


def require_device_name(name: str) -> None:
    """Refuse a device that exists nowhere; whether it does here, ``choose_device`` says."""
    if not _DEVICES.fullmatch(name):
        raise UserError(f"device={name}: allowed are auto, cpu, cuda, cuda:N, mps and xpu")


def require_data(*nodes: Mapping[str, Any]) -> None:
    """Refuse data whose files are not there, all missing ones at once.

    Args:
        nodes: the ``data`` configuration of each job; its ``path``, and its ``root`` where nothing is downloaded or
            prepared elsewhere, must exist.
    """
    missing: dict[str, str] = {}
    for node in nodes:
        for key in ("path", "root"):
            value = node.get(key)
            elsewhere = key == "root" and (node.get("download") or node.get("cache"))
            if not isinstance(value, str) or value == "???" or elsewhere:
                continue
            if not Path(value).expanduser().exists():
                missing[f"data.{key}={value}"] = _how_to_get(node) if key == "root" else ""
    if missing:
        verb = "does" if len(missing) == 1 else "do"
        remedies = [remedy for remedy in dict.fromkeys(missing.values()) if remedy]
        remedy = remedies[0] if len(missing) == len(remedies) == 1 else "correct the paths"
        raise UserError(f"{', '.join(missing)} {verb} not exist: {remedy}")


def _how_to_get(node: Mapping[str, Any]) -> str:
    """What a data set's class says of where its files come from, read from its source where it stands there as it is."""
    definition = resolve(str(node["_target_"])) if "_target_" in node else None
    body = getattr(definition.node, "body", []) if definition is not None else []
    for statement in body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "how_to_get" for target in statement.targets
        ):
            with contextlib.suppress(ValueError):  # put together when the class is made
                return str(ast.literal_eval(statement.value))
    if definition is None:
        return ""
    from scoreexp.core.construct import construct  # imports torch: an error may take that long

    with contextlib.suppress(ValueError, TypeError, ImportError):
        return str(getattr(construct(node, "data"), "how_to_get", ""))
    return ""


def require_model(ckpt: str | None) -> None:
    """Refuse a checkpoint that cannot be one; None is the bundled prior."""
    if ckpt is not None:
        require_model_path(ckpt)


def require_one_model(cfg: Mapping[str, Any]) -> None:
    """Refuse to convert nothing, or two models at once."""
    if (cfg["in"] is None) == (cfg["ckpt"] is None):
        raise UserError("give one model: in=MODEL of another library, or ckpt=RUN_DIR/checkpoints/best.ckpt")
    require_model_path(cfg["in"] or cfg["ckpt"])


def require_input(source: str | Path) -> Path:
    """The input, refused where it is not there."""
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"input={source} does not exist: give an image or a folder of images")
    return path


def is_speech(source: str | Path) -> bool:
    """Whether the input is a WAV file, or a folder with one at its top."""
    path = Path(source).expanduser()
    return path.suffix.lower() == ".wav" or (
        path.is_dir() and any(inside.suffix.lower() == ".wav" for inside in path.iterdir())
    )


def require_task(cfg: Mapping[str, Any]) -> None:
    """Refuse to restore what is damaged in no known way."""
    if not cfg.get("task") and not is_speech(cfg["input"]):
        raise UserError(
            "task is required: add what damaged the picture, such as task=deblur (--help lists all)"
        )


def require_files(cfg: Mapping[str, Any], *keys: str) -> None:
    """Refuse a further input that is named by one of these keys and is not there."""
    for key in keys:
        if cfg[key] is not None and not Path(cfg[key]).expanduser().exists():
            raise UserError(f"{key}={cfg[key]} does not exist: correct its name")


def require_output(source: Path, output: str | None) -> None:
    """Refuse an output for one file whose name is not that of such a file."""
    if output is None or source.is_dir() or Path(output).expanduser().is_dir():
        return
    if scan_format(source) is not None:
        if suffix_of(Path(output)) != suffix_of(source):
            raise UserError(
                f"output={output}: a scan is written as what it was, so its suffix must be {suffix_of(source)!r}"
            )
    elif is_speech(source):
        if not is_speech(output):
            raise UserError(
                f"output={output}: speech is written as what it was, so its suffix must be '.wav'"
            )
    elif Path(output).suffix.lower() not in WRITABLE:
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
