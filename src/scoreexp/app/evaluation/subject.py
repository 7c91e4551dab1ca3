"""What is measured, and a value with what a reader must know of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from scoreexp.core.kinds import Images, kind_of
from scoreexp.data import DataModule
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.metrics.real_samples import data_recipe
from scoreexp.metrics.spec import Direction, Kind
from scoreexp.samplers import Sampler


class Measured(NamedTuple):
    """A value, what it is a value of, and what a reader must know.

    Attributes:
        name: of the value, with what it was measured on.
        value: the number.
        direction: which values are the better ones.
        n: samples that it was measured on.
        by: what was compared: the features, or the unit.
        card: all that must agree for two values to be comparable.
        caveat: empty if there is none.
    """

    name: str
    value: float
    direction: Direction
    n: int
    by: str
    card: dict[str, Any]
    caveat: str = ""


@dataclass(frozen=True)
class Subject:
    """What is measured, on which data, and how.

    Attributes:
        model: the denoiser, with its guidance.
        data: of the run, or others of the same shape.
        sampler: how is denoised and drawn.
        how: the sampler's configuration.
        device: of the model.
        cfg: the command's configuration.
        unmeasured: metrics, as they were asked for, that these data or this machine do not allow, and why.
    """

    model: DenoiserBase
    data: DataModule
    sampler: Sampler
    how: Mapping[str, Any]
    device: torch.device
    cfg: DictConfig
    unmeasured: dict[str, str] = field(default_factory=dict)

    @property
    def bare_model(self) -> DenoiserBase:
        """The model without its guidance."""
        model = self.model
        while isinstance(model, Wrapper):
            model = model.model
        return model

    @property
    def seed(self) -> int:
        """That of the run: observations are the ones its evaluations denoised."""
        return int(self.model.record.get("config", {}).get("seed", 0))

    @property
    def kind(self) -> Kind:
        return "pictures" if self.is_of_pictures else "points"

    @property
    def is_of_pictures(self) -> bool:
        return isinstance(kind_of(self.data.event_shape), Images)

    @property
    def settings(self) -> dict[str, Any]:
        """What of the command must agree for two values of its samples to be comparable."""
        if not (guidance := self.cfg.get("guidance")):
            return {"sampler": self.how}
        return {"sampler": self.how, "guidance": OmegaConf.to_container(guidance, resolve=True)}

    @property
    def sampler_name(self) -> str:
        return str(self.how["_target_"]).rpartition(".")[2]

    def loader(self) -> Any:
        """The loader of the split that is denoised, whose samples are those that training evaluates."""
        return self.data.val_dataloader() if self.cfg.split == "val" else self.data.test_dataloader()

    def card(self, name: str, loader: Any, **settings: Any) -> dict[str, Any]:
        """The card of a value measured on all samples of ``loader``."""
        samples = loader.dataset
        return {
            "name": name,
            "n": len(samples),
            "split": self.cfg.split,
            "recipe": data_recipe(self.data, samples.split, samples.positions),
            **settings,
        }
