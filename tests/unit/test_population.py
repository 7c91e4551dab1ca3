"""The callback of the error on the population."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scoreexp.core.errors import UserError
from scoreexp.data import SwissRoll
from scoreexp.denoisers import Denoiser, EDMPrediction
from scoreexp.diagnostics.likelihood_levels import likelihood_by_level
from scoreexp.lit import ScoreModule
from scoreexp.lit.callbacks import PopulationBits
from scoreexp.lit.callbacks.population import EDGES
from scoreexp.networks import MLP
from scoreexp.objectives import DenoisingScoreMatching, EDMWeighting, UniformTime
from scoreexp.schedules import VE, VP


def module_of(schedule):
    return ScoreModule(
        denoiser=Denoiser(MLP(event_shape=(2,), width=8, blocks=1), EDMPrediction(), schedule),
        objective=DenoisingScoreMatching(EDMWeighting()),
        time_law=UniformTime(),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
    )


def test_a_schedule_that_ends_at_little_noise_is_refused_before_the_run():
    PopulationBits().require_suits(module_of(VP()))
    with pytest.raises(UserError, match=r"up to 1, and the schedule ends at 0\.3"):
        PopulationBits().require_suits(module_of(VE(sigma_min=0.01, sigma_max=0.3)))


def test_it_logs_the_bits_of_the_validation_samples(monkeypatch):
    torch.manual_seed(0)
    module = module_of(VP())
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value: logged.update({name: value}))
    data = SwissRoll(points=200)
    trainer = SimpleNamespace(datamodule=data, sanity_checking=False)
    PopulationBits(n=20, batch_size=7).on_validation_epoch_end(trainer, module)
    x = data.split("val").samples(np.arange(20))
    wanted = likelihood_by_level(module.evaluation_denoiser, x, EDGES).total.value
    assert logged == {"val/population_bits": pytest.approx(wanted, rel=1e-6)}
    trainer.sanity_checking = True
    logged.clear()
    PopulationBits(n=20).on_validation_epoch_end(trainer, module)
    assert not logged
