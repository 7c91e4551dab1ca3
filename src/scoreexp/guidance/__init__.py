"""Guidance: a denoiser in, a denoiser out, for every sampler and restorer."""

from scoreexp.guidance.adaptive import Adaptive, LinearAG
from scoreexp.guidance.autoguidance import Autoguidance
from scoreexp.guidance.classifier_free import ClassifierFree
from scoreexp.guidance.minority import (
    Minority,
    QuantileClassifier,
    fit_quantile_classifier,
    load_classifier,
    save_classifier,
)
from scoreexp.guidance.residual import ResidualCFG

__all__ = [
    "Adaptive",
    "Autoguidance",
    "ClassifierFree",
    "LinearAG",
    "Minority",
    "QuantileClassifier",
    "ResidualCFG",
    "fit_quantile_classifier",
    "load_classifier",
    "save_classifier",
]
