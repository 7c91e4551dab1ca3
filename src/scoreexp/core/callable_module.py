"""Modules that are run as ``python -m scoreexp.NAME`` and called as ``scoreexp.NAME(...)``."""

import sys
from types import ModuleType
from typing import Any

from scoreexp.core.construct import locate


class CallableModule(ModuleType):
    """A module whose call is that of a function, which is imported when it is first needed.

    >>> module = CallableModule("root")
    >>> module.function = "math.sqrt"
    >>> module(9)
    3.0
    """

    function: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return locate(self.function)(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:  # what ``inspect.signature`` and ``help`` look at
        return locate(self.function)


def make_callable(name: str, function: str) -> None:
    """Make the module of this name callable as the function of this dotted name.

    >>> sys.modules["root"] = ModuleType("root")
    >>> make_callable("root", "math.sqrt")
    >>> sys.modules.pop("root")(9)
    3.0
    """
    module = sys.modules[name]
    module.__class__ = CallableModule
    module.function = function  # type: ignore[attr-defined]
