"""Noise models: how an observation differs from what the operator gives."""

from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.calibration import at_gain, calibrate, photon_transfer
from scoreexp.observations.noise.correlated import CorrelatedNoise
from scoreexp.observations.noise.eld import ELDNoise
from scoreexp.observations.noise.gamma import GammaNoise
from scoreexp.observations.noise.gaussian import GaussianNoise
from scoreexp.observations.noise.poisson import PoissonGaussianNoise, PoissonNoise
from scoreexp.observations.noise.proxy import (
    NoiseProxy,
    ProxyNoise,
    fit_noise_proxy,
    load_proxy,
    save_proxy,
)
from scoreexp.observations.noise.stripes import StripeNoise, estimate_stripes

__all__ = [
    "CorrelatedNoise",
    "ELDNoise",
    "GammaNoise",
    "GaussianNoise",
    "NoiseModel",
    "NoiseProxy",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "ProxyNoise",
    "StripeNoise",
    "at_gain",
    "calibrate",
    "estimate_stripes",
    "fit_noise_proxy",
    "load_proxy",
    "photon_transfer",
    "save_proxy",
]
