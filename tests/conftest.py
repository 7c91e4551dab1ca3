"""Configurations for tests: the project's own, shrunk."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.batch import are_labels
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import OracleDenoiser, Wrapper
from scoreexp.numerics.oracles import Gaussian
from scoreexp.schedules import FlowMatching

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start, beside other tests
if hasattr(signal, "SIGHUP"):  # tests send it, also where they run under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What makes a run tiny: a photograph of 16 x 16 pixels, a network of some thousand weights, three sampling steps.
TINY = [
    "data.size=16",
    "data.batch_size=4",
    "network.channels=16",
    "network.multipliers=[1,2]",
    "network.blocks=1",
    "network.attention_resolutions=[]",
    "sampler.grid.steps=3",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "model.warmup_steps=4",
]


class Blind(Wrapper):
    """Does not look at an image that it is conditioned on: a model of data that are independent of it."""

    def __call__(self, x_t, t, cond=None):
        return self.model(x_t, t, cond if are_labels(cond) else None)


# What a choice of a yaml file does not say by itself, or is made for.
GIVEN = {
    "objective=reflow": ["objective.teacher.path=teacher.ckpt"],
    "recipe=reflow": ["objective.teacher.path=teacher.ckpt"],
    "recipe=consistency_tuning": ["init_from=pretrained.ckpt"],
}


def with_teacher(node: dict, event_shape: tuple[int, ...]) -> dict:
    """The node of an objective, with an exact teacher where it has one."""
    if "teacher" not in node:
        return node
    data = Gaussian(torch.zeros(event_shape), torch.ones(event_shape))
    return {**node, "teacher": OracleDenoiser(data, FlowMatching())}


class OneStream(ImageStreams):
    """One generator for a whole batch of draws: statistics need independence, not a seed per sample."""

    def __init__(self):
        super().__init__([])
        self.generator = generator(0, "noise")

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class Payload:
    """Makes ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture(autouse=True, scope="session")
def _single_thread():
    torch.set_num_threads(1)


def composed(config: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(config, overrides=list(overrides))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., DictConfig]:
    """``tiny("trainer.max_steps=4", run="a")``: a training configuration that takes half a second and draws no strips."""

    def make(*overrides: str, run: str = "run") -> DictConfig:
        defaults = [
            "trainer.max_steps=4",
            "trainer.val_check_interval=2",
            "callbacks.monitor.pictures=0",
            f"run_dir={tmp_path / run}",
        ]
        return composed("train", *TINY, *defaults, *overrides)

    return make
