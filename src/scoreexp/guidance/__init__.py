"""Guidance: a denoiser in, a denoiser out, for every sampler and restorer."""

from scoreexp.guidance.adaptive import Adaptive, LinearAG
from scoreexp.guidance.autoguidance import Autoguidance
from scoreexp.guidance.classifier_free import ClassifierFree
from scoreexp.guidance.learned_noise import NoiseLaw, NoiseNetwork, fit_noise_network, noise_law, noise_pairs
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
    "NoiseLaw",
    "NoiseNetwork",
    "QuantileClassifier",
    "ResidualCFG",
    "fit_noise_network",
    "fit_quantile_classifier",
    "load_classifier",
    "noise_law",
    "noise_pairs",
    "save_classifier",
]
