"""The size of the images that an operator is made for."""

from torch import Tensor

Size = int | tuple[int, int]


def sides(size: Size) -> tuple[int, int]:
    """``(height, width)`` in pixels of a size, one number for square images.

    Raises:
        ValueError: a side is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size={size}: choose at least 1 pixel a side")
    return int(height), int(width)


def require_sides(x: Tensor, expected: tuple[int, int], operator: object) -> None:
    """Refuse images ``[B, C, H, W]`` of another height or width.

    Raises:
        ValueError: the message has both sizes.
    """
    if tuple(x.shape[-2:]) != expected:
        raise ValueError(
            f"{type(operator).__name__} takes {expected[0]} x {expected[1]} values here, not "
            f"{' x '.join(str(n) for n in x.shape[-2:])}: make it for this size"
        )
