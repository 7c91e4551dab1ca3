"""scoreexp: fair, controlled experiments with score-based diffusion models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoreexp.build import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch is imported on first use only, so that `--help` and `--cfg job` answer at once
    if name == "load":
        from scoreexp.build import load

        return load
    raise AttributeError(f"module 'scoreexp' has no attribute {name!r}")
