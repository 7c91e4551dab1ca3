"""What an annotation allows is what a public class or function accepts: nobody repeats a range by hand, or forgets it."""

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import scoreexp

MADE_BY_THE_PROGRAM = {"Plan", "Problem", "SharedPreconditioner"}  # from choices that were checked before
STEP = {">": 0, ">=": -1, "<": 0, "<=": 1}  # from a bound to a value outside


def public() -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Classes and functions of the package, and what takes their arguments."""
    for found in pkgutil.walk_packages(scoreexp.__path__, "scoreexp."):
        for name, value in vars(import_module(found.name)).items():
            if name.startswith("_") or getattr(value, "__module__", None) != found.name:
                continue
            if inspect.isfunction(value):
                yield value, value
            elif inspect.isclass(value) and inspect.isfunction(vars(value).get("__init__")):
                yield value, vars(value)["__init__"]


def outside(hint: Any) -> list[Any]:
    """A value beyond each bound of an annotation, and one that is none of its choices."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return [bound + STEP[symbol] for symbol, bound in filter(_is_bound, arguments[1:])]
    if origin is Literal:
        return ["none of them"] if any(isinstance(choice, str) for choice in arguments) else []
    if origin in (tuple, list, Sequence):
        fixed = origin is tuple and Ellipsis not in arguments
        return [(bad,) * (len(arguments) if fixed else 1) for bad in outside(arguments[0])]
    if any(getattr(argument, "_is_protocol", False) for argument in arguments):
        return []  # which objects have a protocol cannot be told
    return [] if origin is None else [bad for argument in arguments for bad in outside(argument)]


def _is_bound(mark: Any) -> bool:
    return isinstance(mark, tuple)


def answer(called: Callable[..., Any], arguments: dict[str, Any]) -> str:
    try:
        # an abstract class is constructed by its subclasses
        called.__init__(None, **arguments) if inspect.isabstract(called) else called(**arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def test_a_value_outside_its_range_is_refused_by_name():
    count, wrong = 0, []
    for called, function in public():
        for name, hint in get_type_hints(function, include_extras=True).items():
            for bad in outside(hint) if name != "return" else ():
                if isinstance(bad, str) and (called is function or called.__name__ in MADE_BY_THE_PROGRAM):
                    continue
                count += 1
                said = answer(called, {name: bad})
                owner = "NoneType" if inspect.isabstract(called) else called.__name__
                if not said.startswith(f"ValueError: {owner}: {name}={bad!r} must be ") or "\n" in said:
                    wrong.append((called.__qualname__, name, bad, said))
    assert wrong == []
    assert count > 200, "the walk finds the ranges"
