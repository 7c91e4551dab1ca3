"""What goes wrong with data sets: one line that names the file and the remedy."""

from scoreexp.core.errors import UserError


class DataError(UserError, ValueError):
    """A data set, file or data key that cannot be used as asked.

    >>> from scoreexp.data import Photo
    >>> Photo(name="camera", path="mine.png")
    Traceback (most recent call last):
    scoreexp.data.errors.DataError: data.name=camera is a bundled image and data.path=mine.png your own: ...
    """
