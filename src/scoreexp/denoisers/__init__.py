"""Denoisers: E[x_0 | x_t] from a network and its preconditioning, or exact from a known distribution."""

from scoreexp.denoisers.conditional_oracle import ConditionalOracle
from scoreexp.denoisers.denoiser import Denoiser, DenoiserBase, OracleDenoiser, Wrapper
from scoreexp.denoisers.preconditioning import (
    Coefficients,
    ConsistencyPrediction,
    EDMPrediction,
    EpsPrediction,
    Preconditioning,
    ScorePrediction,
    VPrediction,
    X0Prediction,
)
from scoreexp.denoisers.product import Product
from scoreexp.denoisers.rendered import Rendered

__all__ = [
    "Coefficients",
    "ConditionalOracle",
    "ConsistencyPrediction",
    "Denoiser",
    "DenoiserBase",
    "EDMPrediction",
    "EpsPrediction",
    "OracleDenoiser",
    "Preconditioning",
    "Product",
    "Rendered",
    "ScorePrediction",
    "VPrediction",
    "Wrapper",
    "X0Prediction",
]
