"""Noise models: how an observation differs from what the operator gives."""

from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.correlated import CorrelatedNoise
from scoreexp.observations.noise.gamma import GammaNoise
from scoreexp.observations.noise.gaussian import GaussianNoise
from scoreexp.observations.noise.poisson import PoissonGaussianNoise, PoissonNoise

__all__ = [
    "CorrelatedNoise",
    "GammaNoise",
    "GaussianNoise",
    "NoiseModel",
    "PoissonGaussianNoise",
    "PoissonNoise",
]
