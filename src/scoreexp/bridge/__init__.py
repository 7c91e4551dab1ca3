"""Models of other libraries: their checkpoints read as denoisers of ours, and ours written for them.

A foreign model is a denoiser like any other, a network with a ``Preconditioning`` and a ``Schedule``; one file per format
says how the three follow from what the format stores. Which format a path has is decided in ``recognise`` without torch;
files are read by ``inert``, which runs nothing that they hold. Where a library defines the architecture, its class is used
and must be installed; formats without a library have a network here, filled by name and shape.
"""

from typing import TYPE_CHECKING

from scoreexp import on_first_use

if TYPE_CHECKING:
    from scoreexp.bridge.azula import AzulaBackbone as AzulaBackbone
    from scoreexp.bridge.betas import Betas as Betas
    from scoreexp.bridge.betas import DiscreteVP as DiscreteVP
    from scoreexp.bridge.betas import TimestepGrid as TimestepGrid
    from scoreexp.bridge.conventions import Convention as Convention
    from scoreexp.bridge.conventions import FlowTime as FlowTime
    from scoreexp.bridge.conventions import LogLevel as LogLevel
    from scoreexp.bridge.conventions import NegatedEDM as NegatedEDM
    from scoreexp.bridge.conventions import NoiseLabel as NoiseLabel
    from scoreexp.bridge.conventions import SigmaLabel as SigmaLabel
    from scoreexp.bridge.conventions import Step as Step
    from scoreexp.bridge.conventions import VPTime as VPTime
    from scoreexp.bridge.deepinv import as_deepinv as as_deepinv
    from scoreexp.bridge.deepinv import from_deepinv as from_deepinv
    from scoreexp.bridge.denoising_diffusion import LucidrainsUNet as LucidrainsUNet
    from scoreexp.bridge.diffusers import DiffusersUNet as DiffusersUNet
    from scoreexp.bridge.edm import EDMNetwork as EDMNetwork
    from scoreexp.bridge.errors import ForeignModelError as ForeignModelError
    from scoreexp.bridge.exported import ExportedNetwork as ExportedNetwork
    from scoreexp.bridge.foreign import ForeignModel as ForeignModel
    from scoreexp.bridge.gaussian_denoisers import DnCNN as DnCNN
    from scoreexp.bridge.gaussian_denoisers import DRUNet as DRUNet
    from scoreexp.bridge.gaussian_denoisers import FFDNet as FFDNet
    from scoreexp.bridge.k_diffusion import KDiffusionImageV1 as KDiffusionImageV1
    from scoreexp.bridge.openai import OpenAIUNet as OpenAIUNet
    from scoreexp.bridge.reading import read_foreign as read_foreign
    from scoreexp.bridge.recognise import recognised as recognised

on_first_use(__name__)
