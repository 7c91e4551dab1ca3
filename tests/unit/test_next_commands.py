"""What a run that restores pairs proposes next: the command that takes its task."""

import pytest

from scoreexp.lit.callbacks import RestorationMonitor
from scoreexp.observations import Compose, GaussianBlur, GaussianNoise, Identity, PoissonNoise
from scoreexp.restorers import Conditioned, Exposure
from scoreexp.samplers import DDIM, UniformGrid

PAIRS = Conditioned(DDIM(UniformGrid(2)))
BLUR = GaussianBlur(1.0, size=16)


@pytest.mark.parametrize(
    ("restorer", "operator", "noise", "name", "settings"),
    [
        (PAIRS, Identity(), GaussianNoise(0.2), "denoise", {"restorer": "conditioned", "sigma": 0.1}),
        (PAIRS, BLUR, GaussianNoise(0.2), "restore", {"task": "deblur", "simulate": "true", "sigma": 0.1}),
        (PAIRS, Compose(BLUR, Identity()), GaussianNoise(0.2), "evaluate", {}),
        (Exposure(2.0), Identity(), PoissonNoise(8.0), "evaluate", {}),
    ],
)
def test_the_next_command_takes_the_task_of_the_run(restorer, operator, noise, name, settings, tmp_path):
    monitor = RestorationMonitor(restorer=restorer, operator=operator, noise=noise, folder=str(tmp_path))
    assert monitor.next_commands() == ()  # nothing has been evaluated yet
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "noisy.png").touch()
    (command,) = monitor.next_commands()
    assert command.name == name
    assert settings.items() <= command.settings.items()
