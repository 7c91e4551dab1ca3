"""From an observation to a restored image."""

from scoreexp.restorers.base import Restoration, Restorer
from scoreexp.restorers.by_sampling import BySampling

__all__ = ["BySampling", "Restoration", "Restorer"]
