"""Editing: a given image into the noise of a chain and back, and images between two."""

from scoreexp.editing.base import Editor
from scoreexp.editing.interpolation import Interpolation, encode
from scoreexp.editing.inversion import DDPMInversion, Inversion

__all__ = ["DDPMInversion", "Editor", "Interpolation", "Inversion", "encode"]
