"""scoreexp: controlled experiments with score-based diffusion models.

>>> import scoreexp as se
>>> dir(se)  # doctest: +ELLIPSIS
['Observation', 'denoise', 'denoisers', 'guidance', ...]
"""

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


# Public names and where they lie; a module stands for itself. All are imported when they are first used.
_PUBLIC = {
    "Observation": "observations:Observation",
    "denoise": "denoise",
    "denoisers": "denoisers",
    "guidance": "guidance",
    "load": "runs.model:load",
    "metrics": "metrics",
    "networks": "networks",
    "objectives": "objectives",
    "observations": "observations",
    "oracles": "numerics.oracles",
    "restore": "restore",
    "restorers": "restorers",
    "sample": "sample",
    "samplers": "samplers",
    "schedules": "schedules",
    "train": "train",
}

if TYPE_CHECKING:
    from scoreexp.numerics import oracles as oracles
    from scoreexp.observations import Observation as Observation
    from scoreexp.runs.model import load as load
else:

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'scoreexp' has no attribute {name!r}: it has {', '.join(_PUBLIC)}")
        module, _, attribute = _PUBLIC[name].partition(":")
        found = import_module(f"scoreexp.{module}")
        value = getattr(found, attribute) if attribute else found
        setattr(sys.modules[__name__], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted(_PUBLIC)

    __all__ = sorted(_PUBLIC)
