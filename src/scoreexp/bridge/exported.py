"""Programs of ``torch.export`` with a stated convention, read only if they are nothing but tensor operations.

``torch.export.load`` unpickles, evaluates symbolic expressions and compiles guards as they stand in the file. So the archive
is checked and written anew in memory first, without guards, example inputs and traces: operations are those of ``aten`` on
tensors, sizes are simple expressions, and pickles name tensors alone.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.foreign import ForeignModel, is_shape
from scoreexp.bridge.inert import LARGEST, UnreadableError, require_plain
from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.system.untrusted import require_stored

_OPERATIONS = re.compile(
    r"torch\.ops\.aten\.[a-zA-Z0-9_]+\.[a-zA-Z0-9_]+|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|ge|gt|le|lt)"
)
_REFUSED = ("torch.ops.aten.from_file.",)  # reads and makes files
_SYMBOL = re.compile(r"Symbol\('[su]\d{1,6}'(, [a-z]+=True){0,4}\)")
_ARITHMETIC = re.compile(
    r"(Integer|Add|Mul|Mod|FloorDiv|Max|Min|Eq|Ge|Le|Gt|Lt|[su]\d{1,6}|\d{1,9}|[-+*(), ])*"
)
_RECORDS = re.compile(
    r"[^/]+/(models/model\.json|archive_format|archive_version|byteorder|\.data/\w+"
    r"|data/(weights|constants)/(\w+_\d+|model_\w+_config\.json)|data/sample_inputs/model\.pt)"
)


class ExportedNetwork(nn.Module):
    """A program ``F(x, c_noise)``, or ``F(x, c_noise, cond)`` of a model with labels, as a network; it stays on the CPU.

    Args:
        event_shape: (C, H, W) of one image.
        num_classes: of a model with labels.
        path: of the ``.pt2`` file.

    Raises:
        ForeignModelError: it holds more than tensor operations.
    """

    program: Callable[..., Tensor]

    @checked
    def __init__(
        self, *, event_shape: tuple[int, ...], num_classes: PositiveInt | None = None, path: str
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        with torch.device("cpu"):
            # no submodule: a program does not move between devices
            self.__dict__["program"] = torch.export.load(checked_program(Path(path))).module()

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F.

        Raises:
            UserError: the model needs a label and none is given, or the reverse.
        """
        from scoreexp.bridge.diffusers import require_label

        require_label(cond, self.num_classes)
        return self.program(x, c_noise) if cond is None else self.program(x, c_noise, cond)


def read_exported(path: Path, stated: Mapping[str, Any]) -> ForeignModel:
    """Read ``NAME.pt2`` with its convention in ``NAME.json``: preconditioning and schedule as configurations of ours.

    ``{"format": "torch_export", "event_shape": [3, 32, 32], "schedule": {"_target_": "scoreexp.schedules.VP"}, "precond":
    {"_target_": "scoreexp.bridge.Convention", "prediction": "epsilon", "label": {"_target_": "scoreexp.bridge.VPTime"}}}``

    Raises:
        ForeignModelError: the convention is not stated, or the file is no program of tensor operations alone.
    """
    beside = path.with_suffix(".json")
    for key in ("precond", "schedule", "event_shape"):
        if key not in stated:
            raise ForeignModelError(
                f"{beside} has no {key}: a program does not say what it predicts, see docs/bridge.md"
            )
    shape = stated["event_shape"]
    if not is_shape(shape):
        raise ForeignModelError(f"{beside}: event_shape is {shape!r}: allowed is such as [3, 32, 32]")
    for key in ("precond", "schedule"):
        if not (isinstance(stated[key], dict) and "_target_" in stated[key]):
            raise ForeignModelError(f"{beside}: {key} is {str(stated[key])[:60]!r}: it must have a _target_")
    classes = stated.get("num_classes")
    if classes is not None and not (isinstance(classes, int) and classes > 0):
        raise ForeignModelError(
            f"{beside}: num_classes is {classes!r}: allowed is a number of classes, or null"
        )
    network = {"_target_": "scoreexp.bridge.ExportedNetwork", "path": str(path)}
    sampler = stated.get("sampler")
    return ForeignModel(
        "torch_export", network, stated["precond"], stated["schedule"], tuple(shape), classes, {}, sampler
    )


def checked_program(path: Path) -> io.BytesIO:
    """The archive with its tensor operations alone.

    Raises:
        ForeignModelError: it holds anything else.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UnreadableError(f"it has {path.stat().st_size} bytes")
        require_stored(path)
        written = io.BytesIO()
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as clean:
            for name in archive.namelist():
                if not _RECORDS.fullmatch(name):
                    raise UnreadableError(f"it holds {name[:80]}")
                clean.writestr(name, _checked_record(name, archive.read(name)))
    except OSError as error:
        raise ForeignModelError(
            f"{path} cannot be read ({error.strerror}): give a file of torch.export.save"
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ForeignModelError(
            f"{path} is no program of tensor operations alone ({reason}): export it anew with torch.export.save"
        ) from error
    written.seek(0)
    return written


def _checked_record(name: str, data: bytes) -> bytes:
    if name.endswith("models/model.json"):
        return _checked_model(json.loads(data))
    if name.endswith("_config.json"):
        if any(entry.get("use_pickle") for entry in json.loads(data).get("config", {}).values()):
            raise UnreadableError("it holds pickled values")
    elif name.endswith(".pt"):
        require_plain(data)
    return data


def _checked_model(model: dict[str, Any]) -> bytes:
    model["guards_code"] = []
    for node in _mappings(model):
        if "target" in node and "inputs" in node:
            target = str(node["target"])
            if not _OPERATIONS.fullmatch(target) or target.startswith(_REFUSED):
                raise UnreadableError(f"it calls {target[:80]}")
            node["metadata"] = {}
        if "expr_str" in node:
            text = str(node["expr_str"])
            if len(text) > 500 or not _ARITHMETIC.fullmatch(_SYMBOL.sub("", text)):
                raise UnreadableError(f"it has a size {text[:60]}")
        if "as_custom_obj" in node or "as_operator" in node:
            raise UnreadableError("it holds an object that is no tensor")
    text = json.dumps(model)
    if "__enum__" in text:
        raise UnreadableError("it names an enumeration")
    return text.encode()


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        now = pending.pop()
        if isinstance(now, dict):
            yield now
            pending.extend(now.values())
        elif isinstance(now, list):
            pending.extend(now)
