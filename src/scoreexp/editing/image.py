"""What may be edited."""

from torch import Tensor

from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import UNIT_TOLERANCE
from scoreexp.denoisers import DenoiserBase


def require_editable(x_0: Tensor, model: DenoiserBase, name: str = "x_0") -> None:
    """Refuse what is no clean sample of the model.

    Raises:
        ValueError: it has another shape, is not floating point or finite, or is an image outside [-1, 1].
    """
    if model.event_shape is not None and tuple(x_0.shape[1:]) != tuple(model.event_shape):
        raise ValueError(
            f"{name} has samples of shape {tuple(x_0.shape[1:])}, the model {tuple(model.event_shape)}: they must agree"
        )
    if not x_0.is_floating_point() or not x_0.isfinite().all():
        raise ValueError(f"{name} of dtype {x_0.dtype} must be floating point and finite")
    if not isinstance(kind_of(x_0.shape[1:]), Images) or not x_0.numel():
        return
    low, high = (float(v) for v in x_0.aminmax())
    edge = 1 + 2 * UNIT_TOLERANCE
    if not -edge <= low <= high <= edge:
        raise ValueError(
            f"{name} has values in [{low:.4g}, {high:.4g}]; images must be in [-1, 1]: give 2 x - 1 of values in [0, 1], "
            "x / 127.5 - 1 of 8-bit values"
        )
