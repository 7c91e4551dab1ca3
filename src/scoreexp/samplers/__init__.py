"""Samplers, their time grids and the states they start from."""

from scoreexp.samplers.base import Sampler, SampleResult
from scoreexp.samplers.clamped_euler import ClampedEulerMaruyama
from scoreexp.samplers.ddim import DDIM
from scoreexp.samplers.ddpm import DDPM
from scoreexp.samplers.grids import (
    DiscreteGrid,
    KarrasGrid,
    LogSNRGrid,
    QuadraticGrid,
    TimeGrid,
    UniformGrid,
)
from scoreexp.samplers.starts import start_from_observation, start_from_prior

__all__ = [
    "DDIM",
    "DDPM",
    "ClampedEulerMaruyama",
    "DiscreteGrid",
    "KarrasGrid",
    "LogSNRGrid",
    "QuadraticGrid",
    "SampleResult",
    "Sampler",
    "TimeGrid",
    "UniformGrid",
    "start_from_observation",
    "start_from_prior",
]
