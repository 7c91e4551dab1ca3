"""From an observation to a restored image."""

from scoreexp.restorers.base import Restoration, Restorer
from scoreexp.restorers.by_sampling import BySampling
from scoreexp.restorers.dds import DDS
from scoreexp.restorers.zs_n2n import ZSN2N

__all__ = ["DDS", "ZSN2N", "BySampling", "Restoration", "Restorer"]
