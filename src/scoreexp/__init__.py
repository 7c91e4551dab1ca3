"""scoreexp: fair, controlled experiments with score-based diffusion models."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def on_first_use(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` (PEP 562) of a package that imports its modules when one of their names is first used.

    So ``--help`` answers without torch, and a model is read and run without Lightning.

    Args:
        package: its name.
        names: module of the package to the names that the package has of it.
    """
    module_of = {name: module for module, contained in names.items() for name in contained}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


if TYPE_CHECKING:
    from scoreexp.runs.model import load as load
else:
    __getattr__ = on_first_use(__name__, {"runs.model": ["load"]})
