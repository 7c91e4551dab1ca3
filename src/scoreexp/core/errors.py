"""Errors that the user can mend."""


class UserError(ValueError):
    """A wrong argument, file or folder: one line that names the value, what is allowed and the remedy.

    The entry points print only the message, without a traceback, and exit with code 1.

    >>> def require_folder(path):
    ...     if not path:
    ...         raise UserError("data.root is not set: give the folder of the data set")
    >>> require_folder("")
    Traceback (most recent call last):
    scoreexp.core.errors.UserError: data.root is not set: give the folder of the data set
    """
