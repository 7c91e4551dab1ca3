"""scoreexp: controlled experiments with score-based diffusion models.

>>> import scoreexp as se
>>> dir(se)  # doctest: +ELLIPSIS
['Observation', 'as_deepinv', 'bridge', 'denoise', ...]
"""

import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"


def on_first_use(package: str) -> None:
    """Make what a package imports ``if TYPE_CHECKING`` its public names, each imported when it is first used (PEP 562).

    So ``--help`` answers without torch, and a model is read and run without Lightning. These lines of the source are the
    only list: ``__all__``, ``dir()``, type checkers and the checker of ``_target_``s read it.

    Args:
        package: its name; called at the end of its ``__init__.py``.
    """
    module = sys.modules[package]

    @cache
    def origin() -> dict[str, str]:
        """Names, and the module from which each is imported."""
        import ast  # takes as long as all else here, and few programs ask for a name of every package

        source = module.__spec__.loader.get_source(package)  # type: ignore[union-attr]
        (block,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
        imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def public() -> list[str]:
        return sorted(origin())

    def get(name: str) -> Any:
        if name == "__all__":
            return public()
        if name not in origin():
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}: it has {', '.join(public())}"
            )
        if origin()[name] == package:  # a module of its own
            value = import_module(f"{package}.{name}")
        else:
            value = getattr(__import__(origin()[name], fromlist=[name]), name)
        setattr(module, name, value)
        return value

    vars(module).update(__getattr__=get, __dir__=public)


if TYPE_CHECKING:
    from scoreexp import bridge as bridge
    from scoreexp import denoise as denoise
    from scoreexp import denoisers as denoisers
    from scoreexp import editing as editing
    from scoreexp import guidance as guidance
    from scoreexp import metrics as metrics
    from scoreexp import networks as networks
    from scoreexp import objectives as objectives
    from scoreexp import observations as observations
    from scoreexp import restore as restore
    from scoreexp import restorers as restorers
    from scoreexp import sample as sample
    from scoreexp import samplers as samplers
    from scoreexp import schedules as schedules
    from scoreexp import train as train
    from scoreexp.bridge.deepinv import as_deepinv as as_deepinv
    from scoreexp.bridge.deepinv import from_deepinv as from_deepinv
    from scoreexp.numerics import oracles as oracles
    from scoreexp.observations import Observation as Observation
    from scoreexp.runs.model import load as load

on_first_use(__name__)
