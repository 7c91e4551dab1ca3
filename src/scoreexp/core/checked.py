"""Arguments compared with their annotations where a constructor or function is called.

The annotation is the only description of an argument's type and range (``core.types``); the checker of yaml files reads it
from the source text.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, wraps
from itertools import chain
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from scoreexp.core.types import COMPARISONS

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

# what is wrong with a value: None is nothing, ValueError its range, TypeError its type
Test = Callable[[Any], type[Exception] | None]

_SCALARS: Mapping[Any, tuple[tuple[type, ...], str]] = {
    int: ((Integral,), "an int"),
    float: ((Real,), "a number"),
    bool: ((bool,), "True or False"),
    str: ((str, PathLike), "a string"),  # paths too: a yaml file has them as strings
    NoneType: ((NoneType,), "None"),
}


@overload
def checked(function: C) -> C: ...
@overload
def checked(function: Callable[P, R]) -> Callable[P, R]: ...
def checked(function: Any) -> Any:
    """Refuse arguments that are not of their annotated type, or out of its range.

    Decorates ``__init__``, a function, or a dataclass (above ``@dataclass``). Told apart are numbers, strings, None, choices
    (``Literal``), collections of these, callables and classes; any other annotation allows everything. An argument that is
    left out is not checked. NumPy's numbers and tensors without axes are numbers; True is no number.

    >>> from scoreexp.core.types import PositiveFloat
    >>> @checked
    ... def decay(rate: PositiveFloat, form: Literal["exp", "lin"] = "exp") -> float: return rate
    >>> decay(0)
    Traceback (most recent call last):
    ValueError: decay: rate=0 must be a number > 0
    >>> decay("fast")
    Traceback (most recent call last):
    TypeError: decay: rate='fast' must be a number > 0
    >>> decay(2.0, form="quad")
    Traceback (most recent call last):
    ValueError: decay: form='quad' must be 'exp' or 'lin'

    Raises:
        ValueError: a value is out of its range, or none of the choices; names the class, the argument, the value and what is
            allowed.
        TypeError: a value is of another type; the message has the same form.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        positional, tests = _tests(function)
        for name, value in chain(zip(positional, args), kwargs.items()):
            test = tests.get(name)
            if test is not None and (error := test(value)) is not None:
                owner = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
                hint = get_type_hints(function, include_extras=True)[name]
                raise error(
                    f"{owner}: {name}={_shown(value)} must be {_described(hint)}{_remedy(hint, value)}"
                )
        return function(*args, **kwargs)

    return call


@cache  # of the first call: annotations may use names that are defined after the function
def _tests(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Test]]:
    """Names of the positional parameters, and the tests of those that have one."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    tests = {p.name: _test(hints[p.name]) for p in named if p.name in hints}
    positional = tuple(p.name for p in named if p.kind is not p.KEYWORD_ONLY)
    return positional, {name: test for name, test in tests.items() if test is not None}


def _test(hint: Any) -> Test | None:
    """The test of a value for an annotation; None where everything is allowed."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_range(_test(arguments[0]), [mark for mark in arguments[1:] if isinstance(mark, tuple)])
    if origin in (Union, UnionType):
        return _any_of([_test(argument) for argument in arguments])
    if origin is Literal:
        return _one_of(arguments)
    if hint in _SCALARS:
        return _scalar(*_SCALARS[hint][0])
    kind = hint if origin is None else origin
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return None
    if issubclass(kind, Mapping):
        return _instance(Mapping)
    return _collection(kind, arguments) if _is_collection(kind) else _instance(kind)


def _is_collection(kind: Any) -> bool:
    abstract = kind.__module__ == "collections.abc" and issubclass(kind, Collection)
    return kind in (tuple, list, set, frozenset) or abstract


def _in_range(test: Test | None, bounds: list[tuple[str, float]]) -> Test | None:
    pairs = [(COMPARISONS[symbol], bound) for symbol, bound in bounds]

    def ranged(value: Any) -> type[Exception] | None:
        if test is not None and (error := test(value)) is not None:
            return error
        return None if all(compare(value, bound) for compare, bound in pairs) else ValueError

    return ranged if pairs else test


def _any_of(tests: list[Test | None]) -> Test | None:
    known = [test for test in tests if test is not None]

    def alternative(value: Any) -> type[Exception] | None:
        errors = [test(value) for test in known]
        return None if None in errors else ValueError if ValueError in errors else TypeError

    return alternative if len(known) == len(tests) else None


def _one_of(choices: tuple[Any, ...]) -> Test:
    kinds = tuple({type(choice) for choice in choices})

    def choice(value: Any) -> type[Exception] | None:
        value = _plain(value)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return None
        return ValueError if isinstance(value, kinds) else TypeError

    return choice


def _scalar(*kinds: type) -> Test:
    def scalar(value: Any) -> type[Exception] | None:
        value = _plain(value)
        if isinstance(value, bool) and bool not in kinds:
            return TypeError
        return None if isinstance(value, kinds) else TypeError

    return scalar


def _instance(kind: type) -> Test:
    return lambda value: None if isinstance(value, kind) else TypeError


def _collection(kind: type, arguments: tuple[Any, ...]) -> Test:
    """For ``tuple[X, X]`` and ``tuple[X, ...]``, ``list[X]`` and so on; any collection will do, as yaml knows lists only."""
    fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
    tests = [_test(argument) for argument in arguments if argument is not Ellipsis]

    def collection(value: Any) -> type[Exception] | None:
        if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
            return TypeError
        if getattr(value, "ndim", 1) == 0:
            return TypeError
        if fixed and len(value) != len(tests):
            return ValueError
        if not tests:
            return None
        each = zip(tests if fixed else tests * len(value), value)
        errors = {test(item) for test, item in each if test is not None}
        return TypeError if TypeError in errors else ValueError if ValueError in errors else None

    return collection


def _plain(value: Any) -> Any:
    """The number in a NumPy number, or in an array or tensor without axes."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


# ---------------------------------------------------------------------------------------------- in words


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    if " at 0x" in text:  # which object it is says nothing
        return f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _described(hint: Any) -> str:
    """What an annotation allows: ``an int >= 1 or None``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [" and ".join(f"{mark[0]} {mark[1]}" for mark in arguments[1:] if isinstance(mark, tuple))]
        advice = [f"({mark})" for mark in arguments[1:] if isinstance(mark, str)]
        return " ".join(filter(None, [_described(arguments[0]), *ranges, *advice]))
    if origin in (Union, UnionType):
        return " or ".join(map(_described, arguments))
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(map(repr, arguments[:-1])), repr(arguments[-1])]))
    if hint in _SCALARS:
        return _SCALARS[hint][1]
    kind = hint if origin is None else origin
    name = getattr(kind, "__name__", str(kind))
    article = "an" if name[0] in "AEIOUaeiou" else "a"
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a tuple of {len(arguments)}: {', '.join(map(_described, arguments))}"
    if arguments and _is_collection(kind) and not issubclass(kind, Mapping):
        return f"{article} {name.lower()}, each {_described(arguments[0])}"
    return f"{article} {name}"


def _remedy(hint: Any, value: Any) -> str:
    """``, such as UniformGrid(20)`` where an object of the class is made of such a value alone."""
    for kind in _concrete(hint) if isinstance(hint, type) else ():
        init = getattr(kind.__init__, "__wrapped__", None)
        if init is None:
            continue
        required = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
        test = _tests(init)[1].get(required[0]) if len(required) == 1 else None
        if test is not None and test(value) is None:
            return f", such as {kind.__name__}({_shown(value)})"
    return ""


def _concrete(kind: Any) -> Iterator[Any]:
    if not inspect.isabstract(kind):
        yield kind
    for each in kind.__subclasses__():
        yield from _concrete(each)
