"""Networks F(x, c_noise, cond): the learned part of a denoiser, on preconditioned inputs.

Every network takes the keywords ``event_shape`` and ``num_classes``, maps ``x[B, *]``, ``c_noise[B]`` and
``cond[B]`` or None to ``[B, *]``, and states in ``downsampling_factor`` what H and W must be divisible by. One that is
conditioned on an image states in ``cond_shape`` of what shape ``(C', H, W)``; there ``cond`` is ``[B, C', H, W]``. A
generator states ``(L,)``; there ``cond`` is its latent ``[B, L]``. Discriminators take two states and give logits ``[B]``.
"""

from scoreexp.networks.adaptive_residual import AdaptiveResidual
from scoreexp.networks.autoencoder import ConvAutoencoder
from scoreexp.networks.blind_spot import BlindSpot
from scoreexp.networks.denoising_unet import DenoisingUNet
from scoreexp.networks.discriminators import ImageDiscriminator, PointDiscriminator, WaveletDiscriminator
from scoreexp.networks.dit import DiT
from scoreexp.networks.exact import ExactPosteriorMean
from scoreexp.networks.generator import Generator
from scoreexp.networks.image_conditioned import ImageConditioned
from scoreexp.networks.mlp import MLP
from scoreexp.networks.ncsnpp import NCSNpp
from scoreexp.networks.quantised import Quantised
from scoreexp.networks.random_features import RandomFeatures
from scoreexp.networks.regression_unet import RegressionUNet
from scoreexp.networks.score_cnn import ScoreCNN
from scoreexp.networks.spectral import SpectralResidual
from scoreexp.networks.two_times import TwoTimes
from scoreexp.networks.unet import UNet
from scoreexp.networks.unet3d import UNet3D
from scoreexp.networks.unet_edm2 import MagnitudePreservingUNet
from scoreexp.networks.unet_modulated import ModulatedUNet
from scoreexp.networks.unet_published import UNetPublished
from scoreexp.networks.uvit import UViT
from scoreexp.networks.wconv2d import WeightedConv2d, WeightedConvolutions

__all__ = [
    "MLP",
    "AdaptiveResidual",
    "BlindSpot",
    "ConvAutoencoder",
    "DenoisingUNet",
    "DiT",
    "ExactPosteriorMean",
    "Generator",
    "ImageConditioned",
    "ImageDiscriminator",
    "MagnitudePreservingUNet",
    "ModulatedUNet",
    "NCSNpp",
    "PointDiscriminator",
    "Quantised",
    "RandomFeatures",
    "RegressionUNet",
    "ScoreCNN",
    "SpectralResidual",
    "TwoTimes",
    "UNet",
    "UNet3D",
    "UNetPublished",
    "UViT",
    "WaveletDiscriminator",
    "WeightedConv2d",
    "WeightedConvolutions",
]
