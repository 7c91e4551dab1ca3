"""Noise schedules: the marginals ``x_t = alpha(t) x_0 + sigma(t) z`` and the SDE that has them."""

from scoreexp.schedules.base import Schedule, VarianceExploding, VariancePreserving
from scoreexp.schedules.constant import ConstantNoise
from scoreexp.schedules.cosine import Cosine
from scoreexp.schedules.ddpm import DDPM
from scoreexp.schedules.edm import EDM
from scoreexp.schedules.flow_matching import FlowMatching
from scoreexp.schedules.learned import LearnedVP
from scoreexp.schedules.ouve import OUVE
from scoreexp.schedules.resfusion import Resfusion
from scoreexp.schedules.sub_vp import SubVP
from scoreexp.schedules.ve import VE
from scoreexp.schedules.ve_power import VEPower
from scoreexp.schedules.vp import VP
from scoreexp.schedules.zero_terminal_snr import ZeroTerminalSNR

__all__ = [
    "DDPM",
    "EDM",
    "OUVE",
    "VE",
    "VP",
    "ConstantNoise",
    "Cosine",
    "FlowMatching",
    "LearnedVP",
    "Resfusion",
    "Schedule",
    "SubVP",
    "VEPower",
    "VarianceExploding",
    "VariancePreserving",
    "ZeroTerminalSNR",
]
