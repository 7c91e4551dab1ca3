"""From plain data to objects: a mapping with ``_target_`` names a class or function and its arguments."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from scoreexp.core.moves import current_name


def locate(name: str) -> Any:
    """What a dotted name stands for: a module, or something that a module holds.

    >>> locate("math.sqrt")(9)
    3.0

    Raises:
        ImportError: there is no such module, or it holds no such thing.
    """
    parts = current_name(name).split(".")
    found: Any = import_module(parts[0])
    for i, part in enumerate(parts[1:], start=1):
        if not hasattr(found, part):
            try:
                import_module(".".join(parts[: i + 1]))
            except ModuleNotFoundError as error:
                raise ImportError(f"{name}: {'.'.join(parts[:i])} has no {part}") from error
        found = getattr(found, part)
    return found


def construct(node: Any, where: str = "", **provided: Any) -> Any:
    """What ``node`` describes: mappings with ``_target_`` are called with their other items, innermost first; one with
    ``_partial_: true`` becomes a function of the items that it does not give.

    >>> construct({"_target_": "fractions.Fraction", "numerator": 3}, denominator=4)
    Fraction(3, 4)

    Args:
        node: plain data; what is no such mapping is returned as it is.
        where: its key, named in errors.
        provided: further arguments of the outermost call, before those of ``node``.

    Raises:
        ValueError: a constructor refused a value, or a class lacks a method of its base; with the key before the message.
        TypeError: a constructor refused a type; the same.
        ImportError: a ``_target_`` does not exist.
    """
    if isinstance(node, Mapping):
        items = {
            str(key): construct(value, f"{where}.{key}" if where else str(key))
            for key, value in node.items()
            if key not in ("_target_", "_partial_")
        }
        if "_target_" not in node:
            return items
        target = locate(str(node["_target_"]))
        if node.get("_partial_"):
            return partial(target, **{**items, **provided})
        try:
            if missing := getattr(target, "__abstractmethods__", None):
                raise ValueError(
                    f"{target.__qualname__} does not define {', '.join(sorted(missing))}: write it"
                )
            return target(**{**items, **provided})
        except (ValueError, TypeError) as error:
            if type(error) not in (ValueError, TypeError) or not where:
                raise
            raise type(error)(f"{where}: {error}") from error
    if isinstance(node, (list, tuple)):
        return [construct(value, f"{where}[{i}]") for i, value in enumerate(node)]
    return node
