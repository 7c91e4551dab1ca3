"""Operators: what a measurement makes of the unknown image before noise is added."""

from scoreexp.observations.operators.base import Identity, LinearOperator, Operator, require_adjoint

__all__ = ["Identity", "LinearOperator", "Operator", "require_adjoint"]
