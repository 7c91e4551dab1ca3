"""From an observation to a restored image."""

from scoreexp.restorers.averaged import Averaged
from scoreexp.restorers.base import Restoration, Restorer
from scoreexp.restorers.bilateral import Bilateral
from scoreexp.restorers.binned import Binned
from scoreexp.restorers.by_sampling import BySampling
from scoreexp.restorers.conditional_start import ConditionalStart
from scoreexp.restorers.conditioned import Conditioned
from scoreexp.restorers.ddnm import DDNM
from scoreexp.restorers.ddrm import DDRM
from scoreexp.restorers.dds import DDS
from scoreexp.restorers.declipped import Declipped
from scoreexp.restorers.destriped import Destriped
from scoreexp.restorers.diffpir import DiffPIR
from scoreexp.restorers.exposure import Exposure
from scoreexp.restorers.filter2noise import Filter2Noise
from scoreexp.restorers.flicking import SinogramFlicking
from scoreexp.restorers.gradient import DPS, STSL, HIRDiff
from scoreexp.restorers.hyres import HyRes
from scoreexp.restorers.likelihood import MMPS, PiGDM
from scoreexp.restorers.mid import MID
from scoreexp.restorers.noise2score import Noise2Score
from scoreexp.restorers.noiser import NoiSER
from scoreexp.restorers.non_local_means import NonLocalMeans
from scoreexp.restorers.pnp_admm import PnPADMM
from scoreexp.restorers.pnp_coloured import PnPColoured
from scoreexp.restorers.posterior_mean import PosteriorMean
from scoreexp.restorers.red_diff import REDDiff
from scoreexp.restorers.renoise import Renoise
from scoreexp.restorers.scoredvi import ScoreDVI
from scoreexp.restorers.speech import RestoredSpeech, restore_speech
from scoreexp.restorers.stabilised import Stabilised
from scoreexp.restorers.tv import TV
from scoreexp.restorers.zs_n2n import ZSN2N

__all__ = [
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "MID",
    "MMPS",
    "STSL",
    "TV",
    "ZSN2N",
    "Averaged",
    "Bilateral",
    "Binned",
    "BySampling",
    "ConditionalStart",
    "Conditioned",
    "Declipped",
    "Destriped",
    "DiffPIR",
    "Exposure",
    "Filter2Noise",
    "HIRDiff",
    "HyRes",
    "NoiSER",
    "Noise2Score",
    "NonLocalMeans",
    "PiGDM",
    "PnPADMM",
    "PnPColoured",
    "PosteriorMean",
    "REDDiff",
    "Renoise",
    "Restoration",
    "RestoredSpeech",
    "Restorer",
    "ScoreDVI",
    "SinogramFlicking",
    "Stabilised",
    "restore_speech",
]
