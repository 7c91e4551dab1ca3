"""From an observation to a restored image."""

from scoreexp.restorers.base import Restoration, Restorer
from scoreexp.restorers.by_sampling import BySampling
from scoreexp.restorers.conditioned import Conditioned
from scoreexp.restorers.ddnm import DDNM
from scoreexp.restorers.ddrm import DDRM
from scoreexp.restorers.dds import DDS
from scoreexp.restorers.diffpir import DiffPIR
from scoreexp.restorers.exposure import Exposure
from scoreexp.restorers.gradient import DPS, STSL, HIRDiff
from scoreexp.restorers.likelihood import MMPS, PiGDM
from scoreexp.restorers.pnp_admm import PnPADMM
from scoreexp.restorers.red_diff import REDDiff
from scoreexp.restorers.zs_n2n import ZSN2N

__all__ = [
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "MMPS",
    "STSL",
    "ZSN2N",
    "BySampling",
    "Conditioned",
    "DiffPIR",
    "Exposure",
    "HIRDiff",
    "PiGDM",
    "PnPADMM",
    "REDDiff",
    "Restoration",
    "Restorer",
]
