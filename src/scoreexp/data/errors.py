"""What goes wrong with data sets: one line that names the file and the remedy."""

from scoreexp.core.errors import UserError


class DataError(UserError, ValueError):
    """A data set, file or data key that cannot be used as asked."""
