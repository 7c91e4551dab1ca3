"""A denoiser of ours as a model of diffusers, found by the name of this module in a pipeline's ``model_index.json``.

``UNet2DModel`` is given a timestep and its own architecture. A network of ours is given its own label of the noise level, so
it goes out as a model class of its own, which loads where scoreexp is installed beside diffusers.
"""

from functools import cache
from typing import Any


@cache
def model_class() -> Any:
    import torch
    from diffusers import ModelMixin
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from torch import Tensor

    from scoreexp.api.export import vp_scales
    from scoreexp.bridge.errors import ForeignModelError
    from scoreexp.denoisers.denoiser import v_from_x0
    from scoreexp.runs.model import MODEL_PARTS, build_denoiser, require_trusted

    class ScoreexpUNet(ModelMixin, ConfigMixin):
        """v of a variance-preserving diffusion at integer timesteps, from a denoiser of any schedule.

        Args:
            model: network, precond and schedule of its checkpoint.
            event_shape: (C, H, W) of one image.
            num_classes: of a model with labels.
            levels: sigma / alpha at each timestep.
            sample_size: of its images, which pipelines ask for.
            in_channels: the same.
        """

        @register_to_config
        def __init__(
            self,
            model: dict[str, Any],
            event_shape: tuple[int, ...],
            num_classes: int | None,
            levels: list[float],
            sample_size: tuple[int, int],
            in_channels: int,
        ) -> None:
            super().__init__()
            for part in MODEL_PARTS:
                require_trusted(model.get(part), part, ())
            self.denoiser = build_denoiser(
                {"config": model, "event_shape": event_shape, "num_classes": num_classes}
            )

        def forward(
            self,
            sample: Tensor,
            timestep: Tensor | float | int,
            class_labels: Tensor | None = None,
            return_dict: bool = True,
        ) -> Any:
            """``v = alpha eps - sigma x_0`` at ``x_t`` of scale ``alpha^2 + sigma^2 = 1``."""
            n = torch.as_tensor(timestep).flatten()
            if n.is_floating_point() and not (n == n.round()).all():
                raise ForeignModelError(
                    f"timestep {n[0].item()} is no whole number: use a scheduler of discrete steps"
                )
            levels = torch.tensor(self.config["levels"], dtype=torch.float64)[n.long().cpu()].expand(
                len(sample)
            )
            column = (slice(None), *(None,) * (sample.ndim - 1))
            alpha, sigma = (part[column].to(sample) for part in vp_scales(levels))
            schedule = self.denoiser.schedule
            t = schedule.t_of_sigma(levels)
            own_alpha, own_sigma = (part[column].to(sample) for part in schedule(t))
            scale = torch.hypot(own_alpha, own_sigma)  # of an x_t of the same noise level
            v = v_from_x0(self.denoiser(scale * sample, t, class_labels), sample, alpha, sigma)
            return UNet2DOutput(sample=v) if return_dict else (v,)

    ScoreexpUNet.__module__ = __name__
    return ScoreexpUNet


def __getattr__(name: str) -> Any:
    if name == "ScoreexpUNet":
        return model_class()
    if (
        name == "ModelMixin"
    ):  # diffusers asks the module of a component for the base class that says how it is loaded
        from diffusers import ModelMixin

        return ModelMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
