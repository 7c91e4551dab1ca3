"""Operators: what a measurement makes of the unknown image before noise is added."""

from scoreexp.observations.operators.base import Identity, LinearOperator, Operator, require_adjoint
from scoreexp.observations.operators.radon import Radon

__all__ = ["Identity", "LinearOperator", "Operator", "Radon", "require_adjoint"]
