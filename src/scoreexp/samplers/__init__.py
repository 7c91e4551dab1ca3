"""Samplers, their time grids and the states they start from."""

from scoreexp.samplers.auto import Auto
from scoreexp.samplers.base import Sampler, SampleResult
from scoreexp.samplers.clamped_euler import ClampedEulerMaruyama
from scoreexp.samplers.consistency import ConsistencySampler
from scoreexp.samplers.ddgan import DDGAN
from scoreexp.samplers.ddim import DDIM
from scoreexp.samplers.ddpm import DDPM
from scoreexp.samplers.deis import DEIS
from scoreexp.samplers.denoising_mcmc import DenoisingMCMC
from scoreexp.samplers.dpm_solver_pp import DPMSolverPP
from scoreexp.samplers.dpm_solver_pp_3m import DPMSolverPP3M
from scoreexp.samplers.dpm_solver_pp_singlestep import DPMSolverPPSinglestep
from scoreexp.samplers.draw import draw
from scoreexp.samplers.euler_maruyama import EulerMaruyama
from scoreexp.samplers.fitting import FittedSolver, Trajectories, fit_solver, trajectories
from scoreexp.samplers.grids import (
    DiscreteGrid,
    KarrasGrid,
    LogSNRGrid,
    QuadraticGrid,
    TimeGrid,
    UniformGrid,
)
from scoreexp.samplers.heun import Heun
from scoreexp.samplers.labels import knows_null_label, label_of_observed, labels_for
from scoreexp.samplers.langevin import AnnealedLangevin, ConstantGrid, Langevin
from scoreexp.samplers.level_laws import (
    ExactLevels,
    LevelClassifier,
    LevelLaw,
    fit_level_classifier,
    load_level_classifier,
    save_level_classifier,
)
from scoreexp.samplers.mean_flow import MeanFlowSampler
from scoreexp.samplers.metropolis_hastings import MetropolisHastings
from scoreexp.samplers.non_stationary import NonStationary
from scoreexp.samplers.one_level import sampler_of_one_level
from scoreexp.samplers.one_more_step import OneMoreStep
from scoreexp.samplers.pndm import PNDM
from scoreexp.samplers.predictor_corrector import PredictorCorrector
from scoreexp.samplers.probability_flow import ProbabilityFlow
from scoreexp.samplers.resfusion import Resfusion
from scoreexp.samplers.sa_solver import SASolver
from scoreexp.samplers.sde_dpm_solver_pp import SDEDPMSolverPP
from scoreexp.samplers.starts import start_from_observation, start_from_prior
from scoreexp.samplers.stream_batch import stream_batch
from scoreexp.samplers.unipc import UniPC
from scoreexp.samplers.unipc_velocity import UniPCVelocity

__all__ = [
    "DDGAN",
    "DDIM",
    "DDPM",
    "DEIS",
    "PNDM",
    "AnnealedLangevin",
    "Auto",
    "ClampedEulerMaruyama",
    "ConsistencySampler",
    "ConstantGrid",
    "DPMSolverPP",
    "DPMSolverPP3M",
    "DPMSolverPPSinglestep",
    "DenoisingMCMC",
    "DiscreteGrid",
    "EulerMaruyama",
    "ExactLevels",
    "FittedSolver",
    "Heun",
    "KarrasGrid",
    "Langevin",
    "LevelClassifier",
    "LevelLaw",
    "LogSNRGrid",
    "MeanFlowSampler",
    "MetropolisHastings",
    "NonStationary",
    "OneMoreStep",
    "PredictorCorrector",
    "ProbabilityFlow",
    "QuadraticGrid",
    "Resfusion",
    "SASolver",
    "SDEDPMSolverPP",
    "SampleResult",
    "Sampler",
    "TimeGrid",
    "Trajectories",
    "UniPC",
    "UniPCVelocity",
    "UniformGrid",
    "draw",
    "fit_level_classifier",
    "fit_solver",
    "knows_null_label",
    "label_of_observed",
    "labels_for",
    "load_level_classifier",
    "sampler_of_one_level",
    "save_level_classifier",
    "start_from_observation",
    "start_from_prior",
    "stream_batch",
    "trajectories",
]
