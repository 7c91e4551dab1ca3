"""What cannot be read or written for another library."""

from scoreexp.core.errors import UserError


class ForeignModelError(UserError, ValueError):
    """A model of another library cannot be read or written; the message names the remedy.

    >>> raise ForeignModelError("unet/config.json: _class_name is 'VQModel': allowed is UNet2DModel")
    Traceback (most recent call last):
    scoreexp.bridge.errors.ForeignModelError: unet/config.json: _class_name is 'VQModel': allowed is UNet2DModel
    """


def require_package(name: str, why: str) -> None:
    """Refuse to go on without an optional package, naming the command that installs it.

    >>> require_package("no_such_package", "this checkpoint is a network of it")
    Traceback (most recent call last):
    scoreexp.bridge.errors.ForeignModelError: this checkpoint is a network of it: pip install no-such-package

    Args:
        name: as it is imported.
        why: what needs it.
    """
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise ForeignModelError(f"{why}: pip install {name.replace('_', '-')}")
