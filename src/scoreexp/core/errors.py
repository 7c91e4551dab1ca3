"""Errors that the user can mend."""


class UserError(ValueError):
    """A wrong argument, file or folder: one line that names the value, what is allowed and the remedy.

    The entry points print only the message, without a traceback, and exit with code 1.
    """
