"""Which of two values of a monitored metric is the better one."""

from scoreexp.core.errors import UserError
from scoreexp.metrics.catalogue import spec_of
from scoreexp.metrics.spec import Mode


def mode_of(monitored: str, mode: Mode | None, key: str) -> Mode:
    """Whether the larger or the smaller value is the better one: as its metric says.

    >>> mode_of("val/mse", None, "stop.mode"), mode_of("train/loss", "min", "stop.mode")
    ('min', 'min')

    Args:
        monitored: name of the logged value.
        mode: ``max`` or ``min`` of one that no metric describes, such as ``train/loss``; None asks the metric.
        key: of the mode in a configuration, such as ``stop.mode``.

    Raises:
        UserError: nothing says which, or the metric says the opposite of ``mode``.
    """
    spec = spec_of(monitored)
    better = mode if spec is None or spec.mode is None else spec.mode
    if better is None:
        raise UserError(
            f"no metric says which values of {monitored} are the better ones: set callbacks.{key}=max or =min"
        )
    if mode not in (None, better):
        extreme = "larger" if better == "max" else "smaller"
        raise UserError(
            f"callbacks.{key} is {mode!r}, but {monitored} is the better the {extreme}: set callbacks.{key}={better}"
        )
    return better
