"""What is known of an unknown image: data, operator and noise. The only description of it, for every restorer."""

from scoreexp.observations.noise import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
)
from scoreexp.observations.observation import Observation
from scoreexp.observations.operators import Identity, LinearOperator, Operator, Radon, require_adjoint

__all__ = [
    "CorrelatedNoise",
    "GammaNoise",
    "GaussianNoise",
    "Identity",
    "LinearOperator",
    "NoiseModel",
    "Observation",
    "Operator",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "Radon",
    "require_adjoint",
]
