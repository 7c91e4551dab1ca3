"""The bundled prior: a score model of photographs for all noise levels up to 0.5 of the range, gray and colour.

A Gaussian denoiser of known level is a score model by Tweedie's formula, so one set of weights serves ``denoise`` and,
as the prior, every restorer. The weights were trained by ``make prior``; the card names data, licences and recipe.
"""

import json
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load as tensors

from scoreexp.denoisers import Denoiser
from scoreexp.runs.model import build_denoiser


def card() -> dict[str, Any]:
    """Data with licences, recipe, seconds and size of the prior: what a reader should know before using it.

    >>> card()["parameters"] < 2_000_000
    True
    """
    return json.loads(resources.files(__name__).joinpath("card.json").read_text(encoding="utf-8"))


def load(device: torch.device | str = "cpu") -> Denoiser:
    """The prior, for gray and colour images ``[B, 1 or 3, H, W]`` of any size divisible by its ``downsampling_factor``.

    >>> model = load()
    >>> noisy = torch.randn(1, 1, 16, 16) * 0.2
    >>> model(noisy, model.schedule.t_of_sigma(torch.tensor([0.2]))).shape
    torch.Size([1, 1, 16, 16])

    Args:
        device: where to put the model.
    """
    facts = card()
    record = {"config": facts["model"], "event_shape": facts["event_shape"], "num_classes": None}
    denoiser = build_denoiser(record)
    stored = tensors(resources.files(__name__).joinpath("photo.safetensors").read_bytes())
    denoiser.load_state_dict({key: value.float() for key, value in stored.items()})
    denoiser.event_shape, denoiser.record = None, {**record, "event_shape": None}
    return denoiser.to(device).eval().requires_grad_(False)
