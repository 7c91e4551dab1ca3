"""What is known of an unknown image: data, operator and noise. The only description of it, for every restorer."""

from scoreexp.observations.noise import GaussianNoise, NoiseModel
from scoreexp.observations.observation import Observation
from scoreexp.observations.operators import Identity, LinearOperator, Operator, Radon, require_adjoint

__all__ = [
    "GaussianNoise",
    "Identity",
    "LinearOperator",
    "NoiseModel",
    "Observation",
    "Operator",
    "Radon",
    "require_adjoint",
]
