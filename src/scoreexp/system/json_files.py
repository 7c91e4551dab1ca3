"""JSON files that any reader takes (RFC 8259): what is no finite number is null, with the reason beside it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scoreexp.core.errors import UserError
from scoreexp.system.atomic import atomic_write

NOT_FINITE = "not_finite"  # JSON pointers (RFC 6901) of the numbers that are null, and what they are
REASONS = {"infinite": math.inf, "minus infinite": -math.inf, "not a number": math.nan}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` as JSON, whole or not at all; ``read_json`` gives it back.

    Numbers that are infinite or NaN are written as null, and ``not_finite`` says which they are:
    ``{"metrics": {"val/psnr": null}, "not_finite": {"/metrics/val~1psnr": "infinite"}}``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "metrics.json"), {"psnr": math.inf})
    ...     json.loads(Path(folder, "metrics.json").read_text())
    {'psnr': None, 'not_finite': {'/psnr': 'infinite'}}
    """
    reasons: dict[str, str] = {}
    plain = _finite(data, "", reasons)
    if reasons:
        plain[NOT_FINITE] = reasons
    with atomic_write(path) as temporary:
        text = json.dumps(plain, indent=2, default=str, allow_nan=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "metrics.json"), {"psnr": math.inf})
    ...     read_json(Path(folder, "metrics.json")), read_json(Path(folder, "none.json"))
    ({'psnr': inf}, {})

    Raises:
        UserError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): delete the damaged file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object: delete the damaged file")
    reasons = content.pop(NOT_FINITE, {})
    for pointer, reason in reasons.items() if isinstance(reasons, dict) else ():
        _put_back(content, pointer, REASONS.get(reason) if isinstance(reason, str) else None)
    return content


def _finite(node: Any, pointer: str, reasons: dict[str, str]) -> Any:
    """A copy of plain data in which numbers that are not finite are None; notes the reason of each."""
    if isinstance(node, Mapping):
        return {key: _finite(value, f"{pointer}/{_escaped(key)}", reasons) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(value, f"{pointer}/{i}", reasons) for i, value in enumerate(node)]
    if isinstance(node, float) and not math.isfinite(node):
        reasons[pointer] = (
            "not a number" if math.isnan(node) else "infinite" if node > 0 else "minus infinite"
        )
        return None
    return node


def _put_back(content: Any, pointer: str, value: float | None) -> None:
    """Set the number that a pointer names, where it names one that is null."""
    try:
        *parents, last = _parts(pointer)
        for part in parents:
            content = content[int(part) if isinstance(content, list) else part]
        key: Any = int(last) if isinstance(content, list) else last
        if content[key] is None and value is not None:
            content[key] = value
    except (KeyError, IndexError, TypeError, ValueError):  # another program has changed the file
        return


def _escaped(key: Any) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _parts(pointer: str) -> Iterator[str]:
    yield from (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
