"""State dicts of azula's denoisers: a backbone that the user wrote, inside azula's preconditioning."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.foreign import ForeignModel, is_shape
from scoreexp.bridge.inert import state_dict_of
from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt

_PRECONDITIONING: Mapping[str, Mapping[str, Any]] = {
    "KarrasDenoiser": {"_target_": "scoreexp.denoisers.EDMPrediction", "sigma_data": 1.0},
    "SimpleDenoiser": {"_target_": "scoreexp.denoisers.X0Prediction"},
}


class AzulaBackbone(nn.Module):
    """A backbone ``b(x, log(sigma / alpha))`` of azula as a network ``F(x, c_noise, cond)``.

    >>> import torch
    >>> class Backbone(nn.Module):
    ...     def forward(self, x, t):
    ...         return t[:, None] * x
    >>> AzulaBackbone(event_shape=(2,), backbone=Backbone())(torch.ones(1, 2), torch.tensor([0.25]))
    tensor([[1., 1.]])

    Args:
        event_shape: of one sample.
        num_classes: none; given where models are built.
        backbone: the network.
        downsampling_factor: what the sides of an image must be divisible by.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        backbone: nn.Module,
        downsampling_factor: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.downsampling_factor = downsampling_factor

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F."""
        output: Tensor = self.backbone(x, 4 * c_noise)
        return output


def read_azula(held: Any, stated: Mapping[str, Any], path: Path) -> ForeignModel:
    """Read ``torch.save(denoiser.state_dict())``, with ``NAME.json`` beside it.

    ``{"format": "azula", "denoiser": "KarrasDenoiser", "schedule": {"name": "VPSchedule"}, "event_shape": [3, 32, 32],
    "backbone": {"_target_": "my_package.Backbone", "width": 64}}``: the backbone is a class of your own or of azula, which
    the caller must trust, ``trust=[my_package]``.

    azula's denoisers do not depend on the schedule that they were trained with: the network sees ``x_t`` scaled to unit
    variance and the logarithm of the noise level. So the schedule here is EDM's, over the noise levels of the one stated.

    Raises:
        ForeignModelError: something is not stated.
    """
    beside = path.with_suffix(".json")
    for key in ("denoiser", "schedule", "event_shape", "backbone"):
        if key not in stated:
            raise ForeignModelError(
                f"{beside} has no {key}: an azula state dict does not say it, see docs/bridge.md"
            )
    kind, shape = stated["denoiser"], stated["event_shape"]
    if kind not in _PRECONDITIONING:
        raise ForeignModelError(f"{beside}: denoiser is {kind!r}: allowed are {', '.join(_PRECONDITIONING)}")
    if not is_shape(shape):
        raise ForeignModelError(f"{beside}: event_shape is {shape!r}: allowed is such as [3, 32, 32]")
    low, high = noise_levels(stated["schedule"], beside)
    prefix = "backbone."
    weights = {
        name: tensor for name, tensor in state_dict_of(held, str(path)).items() if name.startswith(prefix)
    }
    network: dict[str, Any] = {"_target_": "scoreexp.bridge.AzulaBackbone", "backbone": stated["backbone"]}
    if "downsampling_factor" in stated:
        network["downsampling_factor"] = stated["downsampling_factor"]
    schedule = {"_target_": "scoreexp.schedules.EDM", "sigma_min": low, "sigma_max": high}
    return ForeignModel("azula", network, _PRECONDITIONING[kind], schedule, tuple(shape), None, weights)


def noise_levels(stated: Any, where: Path) -> tuple[float, float]:
    r"""``sigma / alpha`` at the ends of a schedule of azula.

    Its ``VPSchedule`` has :math:`\alpha = \alpha_{min}^{t^2}`, a linear beta from 0 to ``-4 log alpha_min`` = 27.63,
    not the 0.1 to 20 of score_sde; its ``VESchedule`` goes from 1e-3 to 1e3.

    >>> noise_levels({"name": "VESchedule", "sigma_max": 50.0}, Path("a.json"))
    (0.001, 50.0)

    Raises:
        ForeignModelError: the schedule is unknown.
    """
    name = stated.get("name") if isinstance(stated, Mapping) else None
    if name == "VESchedule":
        return float(stated.get("sigma_min", 1e-3)), float(stated.get("sigma_max", 1e3))
    if name in ("VPSchedule", "CosineSchedule"):
        alpha, sigma = float(stated.get("alpha_min", 1e-3)), float(stated.get("sigma_min", 1e-3))
        return sigma, math.sqrt(1 - alpha**2 + sigma**2) / alpha
    if name == "RectifiedSchedule":
        alpha, sigma = float(stated.get("alpha_min", 1e-3)), float(stated.get("sigma_min", 1e-3))
        return sigma, 1 / alpha
    raise ForeignModelError(
        f"{where}: the schedule is {name!r}: allowed are VPSchedule, VESchedule, CosineSchedule and RectifiedSchedule"
    )


def guidance_weight(azula: float) -> float:
    """The weight of ``guidance.ClassifierFree`` for azula's: it adds to the positive branch what others scale from the null.

    azula: ``q_pos + w (q_pos - q_neg)``; diffusers and this package: ``q_neg + w (q_pos - q_neg)``. So 1 there is 2 here.

    >>> guidance_weight(1.0)
    2.0
    """
    return 1.0 + azula
