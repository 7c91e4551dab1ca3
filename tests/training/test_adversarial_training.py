"""A denoising diffusion GAN from end to end: resumed, sampled, evaluated, and stopped where its discriminator collapses."""

from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from conftest import composed
from test_training import assert_same, saved
from torch import nn

from scoreexp.api.train import TensorData
from scoreexp.app.commands.evaluate import evaluate
from scoreexp.app.commands.sample import sample
from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.denoisers import Denoiser, X0Prediction
from scoreexp.lit import DDGAN
from scoreexp.lit.callbacks import points_monitor
from scoreexp.lit.ddgan import DiscriminatorCollapseError
from scoreexp.networks import MLP, Generator
from scoreexp.objectives import DenoisingScoreMatching, DiscreteTime, X0Weighting
from scoreexp.schedules import VP

pytestmark = pytest.mark.integration

SMALL = [
    "experiment=swiss_roll_ddgan", "network.network.width=16", "data.batch_size=16", "data.points=100",
    "callbacks.monitor.samples=20", "model.penalty_every=2",
    "model.warmup_steps=3", "model.cooldown=0", "trainer.val_check_interval=4",
]  # fmt: skip

DATA = TensorData(torch.tensor([[4.0, 0.0], [0.0, -4.0]]), batch_size=2, seed=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four steps in one go, and two and two."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points_monitor, "_PIXELS", 20)
        patch.setattr(points_monitor, "points_picture", lambda path, **_: path.touch())
        for name, steps in (("whole", (4,)), ("parts", (2, 4))):
            for n in steps:
                train(
                    composed(
                        "train", *SMALL, f"trainer.max_steps={n}", "resume=auto", f"run_dir={folder / name}"
                    )
                )
    return folder


def test_a_resumed_run_is_the_uninterrupted_one_with_both_optimisers(runs):
    whole, parts = (saved(runs / name) for name in ("whole", "parts"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(whole[key], parts[key], key)
    of_generator, of_discriminator = whole["optimizer_states"]
    assert whole["global_step"] == 4, "a step is one of each"
    assert of_generator["state"][0]["step"] == of_discriminator["state"][0]["step"] == 4
    assert any(name.startswith("discriminator.") for name in whole["state_dict"])


def test_its_checkpoint_is_sampled_and_measured_by_samples_alone(runs, tmp_path, capsys):
    given = [f"ckpt={runs / 'whole' / 'checkpoints' / 'last.ckpt'}", "device=cpu", "n=4"]
    folder = sample(composed("sample", *given, "sampler=ddgan", f"out={tmp_path / 'a'}"))
    assert (folder / "points.csv").is_file()
    with pytest.raises(UserError, match=r"no posterior mean: sample it with sampler=ddgan"):
        sample(composed("sample", *given, f"out={tmp_path / 'b'}"))
    with pytest.raises(UserError, match=r"not those of the 4 steps .*sampler\.steps=4"):
        sample(composed("sample", *given, "sampler=ddgan", "sampler.steps=5", f"out={tmp_path / 'c'}"))
    values = evaluate(composed("evaluate", *given, f"out={tmp_path / 'd'}"))
    assert set(values) == {"sliced_wasserstein_4", "mmd_4"}
    assert (
        "not measured   score_error: the model draws x_0 and has no posterior mean" in capsys.readouterr().out
    )


def test_what_does_not_suit_is_one_line(tmp_path):
    overrides = [o for o in SMALL if not o.startswith("network.")]
    with pytest.raises(
        UserError, match="set network=generator_mlp or generator_unet, precond=x0, time_law=discrete"
    ):
        train(composed("train", *overrides, "network=mlp", f"run_dir={tmp_path / 'run'}"))
    made = module(nn.Identity)
    usual = {"world_size": 1, "precision": "32-true", "gradient_clip_val": None, "accumulate_grad_batches": 1}
    for setting, match in (
        ({"world_size": 2}, "on one device, not on 2"),
        ({"precision": "16-mixed"}, "set trainer.precision=bf16-mixed"),
        ({"gradient_clip_val": 1.0}, "set trainer.gradient_clip_val=null"),
        ({"accumulate_grad_batches": 2}, "and trainer.accumulate_grad_batches=1"),
    ):
        made._trainer = SimpleNamespace(**usual | setting)
        with pytest.raises(UserError, match=match):
            made.configure_callbacks()
    with pytest.raises(
        UserError, match=r"set trainer\.gradient_clip_val=null"
    ):  # before Lightning refuses it
        pl.Trainer(gradient_clip_val=1.0, accelerator="cpu", logger=False).fit(
            module(partial(Knows, 1.0)), DATA
        )


def module(discriminator):
    network = Generator(network=partial(MLP, width=8, blocks=1), event_shape=(2,), latent_channels=2)
    return DDGAN(
        denoiser=Denoiser(network, X0Prediction(), VP()),
        discriminator=lambda event_shape: discriminator(),
        objective=DenoisingScoreMatching(X0Weighting()),
        time_law=DiscreteTime(
            1
        ),  # pairs of clean data: 4 away from 0, and drawn at 0 by the untrained generator
        optimizer=partial(torch.optim.SGD, lr=1e-9),
        discriminator_optimizer=torch.optim.Adam,
        patience=3,
    )


class Knows(nn.Module):
    """The logit of a pair grows with the distance of its first state from 0, ``gain`` times; it does not learn."""

    def __init__(self, gain):
        super().__init__()
        self.gain, self.shift = gain, nn.Parameter(torch.zeros(()))

    def forward(self, x_s, x_t, c_noise):
        return self.gain * (x_s.norm(dim=1) - 2) + 0 * self.shift


@pytest.mark.parametrize(
    ("gain", "does"), [(10.0, "tells all pairs apart"), (0.0, "says the same of every pair")]
)
def test_a_discriminator_that_collapses_is_said_and_stops_the_run(gain, does):
    made = module(partial(Knows, gain))
    trainer = pl.Trainer(
        max_steps=9, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(
        DiscriminatorCollapseError, match=f"collapsed: for 3 batches up to step 3 it {does}"
    ) as error:
        trainer.fit(made, datamodule=DATA)
    assert "\n" not in str(error.value)
    assert trainer.global_step == 3
