"""Noise models: how an observation differs from what the operator gives."""

from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.gaussian import GaussianNoise

__all__ = ["GaussianNoise", "NoiseModel"]
