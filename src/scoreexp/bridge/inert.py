"""Files of weights that others wrote, read without running anything that they hold.

A pickle is a program: ``pickle.load`` calls what it names. Here its instructions are read one by one
(``pickletools.genops``, which only decodes) and carried out on plain data: tensors, numbers, text, lists, tuples, sets and
dictionaries are rebuilt. Everything else, whatever its name, becomes an ``Inert`` record of that name and of what it would
have been called with. Nothing is imported or called on a file's word, and nothing is allocated beyond a file's own size.
"""

import io
import json
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.system.untrusted import require_stored

LARGEST = 2**34
"""Bytes of the largest file that is read."""

_MOST_INSTRUCTIONS = 5_000_000
_DEEPEST = 64  # storages that are pickled within pickles
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before 1.6
_HEADER_LIMIT = 100 << 20  # bytes of a safetensors header, the limit of its specification
_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "Untyped": torch.uint8,
}  # fmt: skip
_SAFE_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class UnreadableError(ValueError):
    """Bytes that are no file of weights."""


@dataclass(eq=False)
class Inert:
    """An object that was not made: its dotted name, what it would have been called with, and its state.

    >>> read_pickle(b"cos\\nsystem\\n(S'true'\\ntR.")
    Inert(name='os.system', args=('true',), state=None)
    """

    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None

    def __repr__(self) -> str:  # contents may hold themselves
        return f"Inert(name={self.name!r}, args={_brief(self.args)}, state={_brief(self.state)})"


def _brief(value: Any) -> str:
    plain = value is None or (
        isinstance(value, tuple) and all(isinstance(item, str | int | float | None) for item in value)
    )
    return repr(value) if plain else f"<{type(value).__name__}>"


class _Storage(NamedTuple):
    """Values in a file, and how they are read from it; None before the file's layout is known."""

    dtype: torch.dtype
    numel: int
    data: Tensor | None


@dataclass
class _Machine:
    """The state of a pickle that is read: its stack, its marks and its memo."""

    storage: Callable[[Any], Any]
    depth: int
    only_known: bool = False
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    unpacked: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # by identity: each is read once

    def pop(self) -> Any:
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise UnreadableError("its instructions take more than they left")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise UnreadableError("its instructions take more than they left")
        return self.stack[-1]

    def items(self) -> list[Any]:
        if not self.marks:
            raise UnreadableError("it ends what it did not begin")
        start = self.marks.pop()
        found, self.stack[start:] = self.stack[start:], []
        return found


def read_pickle(data: bytes, storage: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """What a pickle holds, as plain data, tensors and ``Inert`` records.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"a": [1, (2.5, None)], "b": {3}}))
    {'a': [1, (2.5, None)], 'b': {3}}

    Args:
        data: the pickle; what follows it is left alone.
        storage: what a persistent id stands for, such as the storage of a tensor.
        depth: of pickles within pickles.

    Raises:
        UnreadableError: it is no pickle, or of more than five million instructions.
    """
    return _read_pickle(io.BytesIO(data), storage or (lambda _: Inert("persistent")), depth)


def _read_pickle(
    file: io.BytesIO, storage: Callable[[Any], Any], depth: int, only_known: bool = False
) -> Any:
    if depth > _DEEPEST:
        raise UnreadableError("it holds files within files")
    machine = _Machine(storage, depth, only_known)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > _MOST_INSTRUCTIONS:
                raise UnreadableError(f"it has more than {_MOST_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            _carry_out(machine, opcode.name, argument)
    except UnreadableError:
        raise
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise UnreadableError(f"it is no intact pickle ({type(error).__name__})") from error
    raise UnreadableError("it ends before its last instruction")


_VALUES = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT",
        "BINFLOAT", "BYTEARRAY8",
    )
)  # fmt: skip
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list, "EMPTY_DICT": dict,
    "EMPTY_SET": set, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_IGNORED = frozenset(("PROTO", "FRAME", "NEXT_BUFFER", "READONLY_BUFFER"))


_KNOWN_NAMES = re.compile(
    r"collections\.OrderedDict|torch\.([A-Z]\w*Storage|Size|float\d+|bfloat16|int\d+|bool)"
    r"|torch\._utils\._rebuild_(tensor_v2|tensor|parameter)|torch\.storage\.UntypedStorage|torch\.serialization\._get_layout"
)


def _carry_out(m: _Machine, name: str, argument: Any) -> None:
    if name in _VALUES:
        m.stack.append(argument)
    elif name in _CONSTANTS:
        m.stack.append(_CONSTANTS[name]())
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        m.memo[len(m.memo) if name == "MEMOIZE" else int(argument)] = m.top()
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        m.stack.append(m.memo[int(argument)])
    elif name == "MARK":
        m.marks.append(len(m.stack))
    elif name == "POP_MARK":
        m.items()
    elif name == "POP":
        if m.marks and m.marks[-1] == len(m.stack):
            m.marks.pop()
        else:
            m.pop()
    elif name == "DUP":
        m.stack.append(m.top())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        m.stack.append(tuple([m.pop() for _ in range(int(name[-1]))][::-1]))
    elif name in ("TUPLE", "LIST"):
        m.stack.append((tuple if name == "TUPLE" else list)(m.items()))
    elif name in ("DICT", "FROZENSET"):
        items = m.items()
        m.stack.append(set(map(_key, items)) if name == "FROZENSET" else _paired(items))
    elif name in ("APPEND", "APPENDS"):
        _extend(m, [m.pop()] if name == "APPEND" else m.items())
    elif name in ("SETITEM", "SETITEMS"):
        _set_items(m, [m.pop(), m.pop()][::-1] if name == "SETITEM" else m.items())
    elif name == "ADDITEMS":
        items = m.items()
        if isinstance(m.top(), set):
            m.top().update(map(_key, items))
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        parts = [m.pop(), m.pop()][::-1] if name == "STACK_GLOBAL" else str(argument).split(" ", 1)
        named = ".".join(str(part) if isinstance(part, str) else "?" for part in parts)
        if m.only_known and not _KNOWN_NAMES.fullmatch(named):
            raise UnreadableError(f"it names {named[:80]}")
        m.stack.append(Inert(named))
    elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
        if name == "NEWOBJ_EX":
            m.pop()  # keyword arguments
        args, made = m.pop(), m.pop()
        m.stack.append(_reduced(m, made, args))
    elif name in ("INST", "OBJ", "EXT1", "EXT2", "EXT4") and m.only_known:
        raise UnreadableError(f"it has an instruction {name}")
    elif name in ("INST", "OBJ"):
        items = m.items()
        made = Inert(str(argument).replace(" ", ".")) if name == "INST" else items.pop(0)
        m.stack.append(_reduced(m, made, tuple(items)))
    elif name == "BUILD":
        state, made = m.pop(), m.top()
        if isinstance(made, Inert):
            made.state = state
    elif name in ("BINPERSID", "PERSID"):
        m.stack.append(m.storage(m.pop() if name == "BINPERSID" else argument))
    elif name in ("EXT1", "EXT2", "EXT4"):
        m.stack.append(Inert(f"copyreg.{argument}"))
    elif name not in _IGNORED:
        raise UnreadableError(f"it has an instruction {name}")


def _key(value: Any) -> Any:
    """A key or member: only what has a cheap hash, which tuples of tuples do not."""
    if isinstance(value, tuple) and all(isinstance(item, str | int | float | bool | None) for item in value):
        return value
    return (
        value
        if isinstance(value, str | int | float | bool | bytes | None)
        else f"<{type(value).__name__} {id(value)}>"
    )


def _paired(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise UnreadableError("it has a key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2])}


def _extend(m: _Machine, items: list[Any]) -> None:
    if isinstance(m.top(), list):
        m.top().extend(items)


def _set_items(m: _Machine, items: list[Any]) -> None:
    pairs, target = _paired(items), m.top()
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Inert):
        target.state = {**target.state, **pairs} if isinstance(target.state, dict) else pairs


def _reduced(m: _Machine, made: Any, args: Any) -> Any:
    """The plain value that ``made(*args)`` stands for where it is known, else a record of it."""
    if not isinstance(made, Inert) or not isinstance(args, tuple):
        raise UnreadableError("it calls what is no name")
    name = made.name
    if name in ("collections.OrderedDict", "builtins.dict", "collections.defaultdict", "__builtin__.dict"):
        given = args[-1] if args else None
        if isinstance(given, list):
            given = {
                _key(pair[0]): pair[1] for pair in given if isinstance(pair, list | tuple) and len(pair) == 2
            }
        return dict(given) if isinstance(given, dict) else {}
    if name in ("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"):
        return set(map(_key, args[0])) if args and isinstance(args[0], list | tuple | set) else set()
    if name == "torch.Size" and len(args) == 1 and isinstance(args[0], tuple | list):
        return tuple(args[0])
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor") and len(args) >= 4:
        return _tensor(*args[:4])
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state") and args:
        return args[0]
    if name == "torch.nn.parameter.Parameter" and args:
        return args[0]
    if name == "torch.storage._load_from_bytes" and len(args) == 1 and isinstance(args[0], bytes | bytearray):
        inner = args[0]
        if id(inner) not in m.unpacked:
            m.unpacked[id(inner)] = (inner, _torch_bytes(bytes(inner), m.depth + 1))
        return m.unpacked[id(inner)][1]
    return Inert(name, args)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise UnreadableError("it has a tensor without values")
    if not (
        isinstance(size, tuple | list) and isinstance(stride, tuple | list) and len(size) == len(stride) <= 16
    ):
        raise UnreadableError("it has a tensor of an impossible shape")
    if not all(type(number) is int and 0 <= number < 2**48 for number in (offset, *size, *stride)):
        raise UnreadableError("it has a tensor of an impossible shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if count else offset - 1
    if last >= storage.numel or count > max(storage.numel, 1):
        raise UnreadableError("it has a tensor that is larger than its values")
    if storage.data is None:
        return None
    return storage.data.as_strided(tuple(size), tuple(stride), offset)


def _storage_kind(identity: Any) -> tuple[torch.dtype, str, int]:
    """dtype, key and length of ``("storage", class, key, location, length)``."""
    if not (isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"):
        raise UnreadableError("it refers to something other than a tensor's values")
    kind, key, numel = identity[1], identity[2], identity[4]
    name = kind.name.rsplit(".", 1)[-1].removesuffix("Storage") if isinstance(kind, Inert) else ""
    if name not in _DTYPES or type(numel) is not int or numel < 0 or not isinstance(key, str | int):
        raise UnreadableError(f"it has values of a kind {name or '?'} that is not read")
    return _DTYPES[name], str(key), numel


def _values(data: bytes | bytearray, dtype: torch.dtype, numel: int) -> Tensor:
    if len(data) < numel * dtype.itemsize:
        raise UnreadableError("it has fewer values than it states")
    if numel == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[: numel * dtype.itemsize].view(dtype)


def _torch_zip(file: Any, depth: int = 0, only_known: bool = False) -> Any:
    """What ``torch.save`` has written since 1.6."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (pickled,) = [name for name in names if name.endswith("/data.pkl")] or [""]
        if not pickled:
            raise UnreadableError("it is an archive without data.pkl")
        folder = pickled.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise UnreadableError("it was written on a machine of another byte order")
        known: dict[str, _Storage] = {}

        def storage(identity: Any) -> _Storage:
            dtype, key, numel = _storage_kind(identity)
            if key not in known:
                known[key] = _Storage(
                    dtype, numel, _values(archive.read(f"{folder}data/{key}"), dtype, numel)
                )
            return known[key]

        return _read_pickle(io.BytesIO(archive.read(pickled)), storage, depth, only_known)


def _torch_bytes(data: bytes, depth: int) -> Any:
    """What ``torch.save`` writes, in memory."""
    if data[:4] == b"PK\x03\x04":
        return _torch_zip(io.BytesIO(data), depth)
    return _torch_legacy(data, depth)


def _torch_legacy(data: bytes, depth: int = 0) -> Any:
    """What ``torch.save`` wrote before 1.6: three headers, the object, the keys of its storages, and their values."""
    file = io.BytesIO(data)
    nothing = lambda _: Inert("persistent")  # noqa: E731
    if _read_pickle(file, nothing, depth) != _MAGIC or _read_pickle(file, nothing, depth) != _PROTOCOL:
        raise UnreadableError("it is no file of torch")
    _read_pickle(file, nothing, depth)
    begin, kinds = file.tell(), {}

    def announced(identity: Any) -> _Storage:
        dtype, key, numel = _storage_kind(identity)
        kinds[key] = _Storage(dtype, numel, None)
        return kinds[key]

    _read_pickle(file, announced, depth)
    keys = _read_pickle(file, nothing, depth)
    if not isinstance(keys, list) or len(keys) > len(kinds):
        raise UnreadableError("it lists values that nothing refers to")
    known: dict[str, _Storage] = {}
    for key in map(str, keys):
        if key not in kinds:
            raise UnreadableError("it lists values that nothing refers to")
        dtype, numel, _ = kinds[key]
        (length,) = struct.unpack("<q", file.read(8))
        if length != numel:
            raise UnreadableError("it states two lengths for the same values")
        known[key] = _Storage(dtype, numel, _values(file.read(numel * dtype.itemsize), dtype, numel))

    def read(identity: Any) -> _Storage:
        return known[_storage_kind(identity)[1]]

    file.seek(begin)
    return _read_pickle(file, read, depth)


def read_safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    >>> header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    >>> read_safetensors(struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.0))
    {'w': tensor([2.])}

    Raises:
        UnreadableError: it is damaged.
    """
    if len(data) < 8:
        raise UnreadableError("it is too short")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_HEADER_LIMIT, len(data) - 8):
        raise UnreadableError("its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + length])
        body, found = memoryview(data)[8 + length :], {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (start, end) = _SAFE_DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or end > len(body):
                raise UnreadableError(f"the tensor {name[:60]!r} lies outside the file")
            if end - start != math.prod(shape) * dtype.itemsize:
                raise UnreadableError(f"the tensor {name[:60]!r} has another size than its shape")
            found[name] = _values(bytes(body[start:end]), dtype, math.prod(shape)).reshape(shape)
    except UnreadableError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError(f"its header is damaged ({type(error).__name__})") from error
    if sum(tensor.nbytes for tensor in found.values()) > len(body):
        raise UnreadableError("its tensors overlap")
    return found


def read_weights(path: Path) -> Any:
    """What a file of weights holds: safetensors, ``torch.save`` of any version, or a bare pickle.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"w": torch.ones(2)}, f"{folder}/a.pth")
    ...     read_weights(Path(folder, "a.pth"))
    {'w': tensor([1., 1.])}

    Raises:
        ForeignModelError: it is missing, damaged, too large, or something else.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ForeignModelError(f"{path} has {size} bytes: files of weights up to {LARGEST} are read")
        with path.open("rb") as file:
            begin = file.read(16)
            if begin[:4] == b"PK\x03\x04":
                require_stored(path)
                return _torch_zip(path)
            file.seek(0)
            data = file.read()
        if begin[8:9] == b"{":
            return read_safetensors(data)
        if begin[:1] != b"\x80":
            raise UnreadableError("it begins like none of safetensors, torch and pickle")
        first = read_pickle(data)
        return _torch_legacy(data) if first == _MAGIC else first
    except ForeignModelError:
        raise
    except OSError as error:
        raise ForeignModelError(
            f"{path} cannot be read ({error.strerror}): give a file of weights"
        ) from error
    except (
        UnreadableError,
        ValueError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        struct.error,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise ForeignModelError(
            f"{path} cannot be read as weights ({reason}): download it again, or save it anew with "
            "torch.save(model.state_dict())"
        ) from error


def state_dict_of(value: Any, where: str) -> dict[str, Tensor]:
    """``value`` as names and tensors; other entries are left out.

    >>> state_dict_of({"w": torch.ones(1), "step": 3}, "a.pt")
    {'w': tensor([1.])}

    Raises:
        ForeignModelError: it holds no tensor.
    """
    found = (
        {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
        if isinstance(value, dict)
        else {}
    )
    if not found:
        kind = value.name if isinstance(value, Inert) else type(value).__name__
        raise ForeignModelError(
            f"{where} holds no weights but a {kind}: give a file of torch.save(model.state_dict())"
        )
    return found


def require_plain(data: bytes) -> None:
    """Refuse bytes of ``torch.save`` that name anything but tensors and their parts, whatever becomes of it.

    >>> require_plain(b"PK")
    Traceback (most recent call last):
    scoreexp.bridge.inert.UnreadableError: it is no file of torch

    Raises:
        UnreadableError: it does, or is damaged.
    """
    if data[:4] != b"PK\x03\x04":
        raise UnreadableError("it is no file of torch")
    try:
        _torch_zip(io.BytesIO(data), only_known=True)
    except (ValueError, KeyError, RuntimeError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"it is damaged ({type(error).__name__})") from error
