"""Operators: what a measurement makes of the unknown image before noise is added."""

from scoreexp.observations.operators.base import SVD, Identity, LinearOperator, Operator, require_adjoint
from scoreexp.observations.operators.blur import Blur, GaussianBlur, MotionBlur
from scoreexp.observations.operators.channels import ChannelMix, Grayscale
from scoreexp.observations.operators.combined import (
    Compose,
    FromDeepinv,
    Function,
    LinearFunction,
    Magnitude,
    PerChannel,
    Stack,
)
from scoreexp.observations.operators.fourier import CartesianMRI, FourierMask
from scoreexp.observations.operators.mask import BoxMask, DeadPixels, Mask, RandomMask
from scoreexp.observations.operators.radon import Radon
from scoreexp.observations.operators.separable import Separable, SuperResolution

__all__ = [
    "SVD",
    "Blur",
    "BoxMask",
    "CartesianMRI",
    "ChannelMix",
    "Compose",
    "DeadPixels",
    "FourierMask",
    "FromDeepinv",
    "Function",
    "GaussianBlur",
    "Grayscale",
    "Identity",
    "LinearFunction",
    "LinearOperator",
    "Magnitude",
    "Mask",
    "MotionBlur",
    "Operator",
    "PerChannel",
    "Radon",
    "RandomMask",
    "Separable",
    "Stack",
    "SuperResolution",
    "require_adjoint",
]
