"""Training objectives, their weightings and the laws of the training times."""

from scoreexp.objectives.ar_dae import ARDAE
from scoreexp.objectives.base import Objective
from scoreexp.objectives.blind_spot import SDAP, DownsampledInvariance
from scoreexp.objectives.consistency import ConsistencyTraining
from scoreexp.objectives.consistency_tuning import EasyConsistencyTuning
from scoreexp.objectives.denoising_score_matching import DenoisingScoreMatching
from scoreexp.objectives.diffusion_weighted import DiffusionWeightedScoreMatching
from scoreexp.objectives.exposure import ExposureMatching
from scoreexp.objectives.forward_model import ForwardModelMatching
from scoreexp.objectives.implicit_score_matching import ImplicitScoreMatching, SlicedScoreMatching
from scoreexp.objectives.learned_noise import LearnedNoise
from scoreexp.objectives.likelihood import LikelihoodScoreMatching
from scoreexp.objectives.mean_flow import MeanFlow
from scoreexp.objectives.optimal_transport import OptimalTransportCoupling
from scoreexp.objectives.rcae import ReconstructionContractive
from scoreexp.objectives.reflow import Reflow
from scoreexp.objectives.residual_score_matching import ResidualScoreMatching
from scoreexp.objectives.stable_target import StableTargetScoreMatching
from scoreexp.objectives.time_laws import DiscreteTime, LogNormalNoise, LogUniformNoise, TimeLaw, UniformTime
from scoreexp.objectives.uncertainty import UncertaintyWeighted
from scoreexp.objectives.variational import VariationalBound
from scoreexp.objectives.weightings import (
    EDMWeighting,
    EpsWeighting,
    FlowWeighting,
    MinSNR,
    P2Weighting,
    ResnoiseWeighting,
    ScoreWeighting,
    VWeighting,
    Weighting,
    X0Weighting,
)

__all__ = [
    "ARDAE",
    "SDAP",
    "ConsistencyTraining",
    "DenoisingScoreMatching",
    "DiffusionWeightedScoreMatching",
    "DiscreteTime",
    "DownsampledInvariance",
    "EDMWeighting",
    "EasyConsistencyTuning",
    "EpsWeighting",
    "ExposureMatching",
    "FlowWeighting",
    "ForwardModelMatching",
    "ImplicitScoreMatching",
    "LearnedNoise",
    "LikelihoodScoreMatching",
    "LogNormalNoise",
    "LogUniformNoise",
    "MeanFlow",
    "MinSNR",
    "Objective",
    "OptimalTransportCoupling",
    "P2Weighting",
    "ReconstructionContractive",
    "Reflow",
    "ResidualScoreMatching",
    "ResnoiseWeighting",
    "ScoreWeighting",
    "SlicedScoreMatching",
    "StableTargetScoreMatching",
    "TimeLaw",
    "UncertaintyWeighted",
    "UniformTime",
    "VWeighting",
    "VariationalBound",
    "Weighting",
    "X0Weighting",
]
