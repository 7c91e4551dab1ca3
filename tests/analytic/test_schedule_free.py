"""Schedule-free Adam: steps by hand, the average as the model of a run, and what is refused."""

from functools import partial

import pytest
import torch
from torch import nn

import scoreexp as se
from scoreexp.core.errors import UserError
from scoreexp.lit import EMA, ScoreModule
from scoreexp.networks import MLP
from scoreexp.optimizers import ScheduleFreeAdam


class Scalar(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))


def test_three_steps_by_hand():
    trained, model = Scalar(1.0), Scalar(0.0)
    optimizer = ScheduleFreeAdam(trained.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.5)
    rates, gradients = (0.1, 0.2, 0.05), (3.0, -1.0, 0.5)
    x = y = z = 1.0
    square = 0.0
    for k, (rate, gradient) in enumerate(zip(rates, gradients), 1):
        optimizer.param_groups[0]["lr"] = rate
        trained.weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        square = 0.9 * square + 0.1 * gradient**2
        z -= rate * (gradient / ((square / (1 - 0.9**k)) ** 0.5 + 1e-8) + 0.5 * y)
        share = rate**2 / sum(r**2 for r in rates[:k])
        x = (1 - share) * x + share * z
        y = 0.2 * z + 0.8 * x
        optimizer.average(model, trained)
        assert trained.weight.item() == pytest.approx(y, rel=1e-12)
        assert model.weight.item() == pytest.approx(x, rel=1e-12)


def test_its_state_is_plain_data_and_goes_on_bitwise(tmp_path):
    trained, again = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer, resumed = (ScheduleFreeAdam(one.parameters()) for one in (trained, again))

    def step(one, its):
        its.zero_grad()
        one(torch.eye(3)).square().sum().backward()
        its.step()

    for _ in range(3):
        step(trained, optimizer)
    torch.save((trained.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for _ in range(3):
        step(trained, optimizer)
        step(again, resumed)
    assert torch.equal(trained.weight, again.weight)
    assert resumed.param_groups[0]["step"] == 6


def denoiser():
    torch.manual_seed(0)
    return se.denoisers.Denoiser(
        MLP(event_shape=(2,), width=8, blocks=1), se.denoisers.VPrediction(), se.schedules.VP()
    )


@pytest.mark.parametrize("ema", [None, EMA(decay=0.5)])
def test_a_run_evaluates_and_returns_the_average(ema):
    made = []

    class Seen(ScheduleFreeAdam):
        def __init__(self, params, **config):
            super().__init__(params, **config)
            made.append(self)

    raw = denoiser()
    model = se.train(raw, torch.randn(20, 2), steps=3, optimizer=partial(Seen, lr=0.1), ema=ema)
    assert model is not raw
    for mine, y in zip(model.parameters(), raw.parameters()):
        z = made[0].state[y]["z"]
        torch.testing.assert_close(0.1 * z + 0.9 * mine, y.detach())
        assert not torch.equal(mine, y)


def test_weights_that_keep_their_norms_are_refused():
    network = se.networks.MagnitudePreservingUNet(event_shape=(3, 8, 8), channels=16, multipliers=(1, 2))
    module = ScoreModule(
        denoiser=se.denoisers.Denoiser(network, se.denoisers.VPrediction(), se.schedules.VP()),
        objective=se.objectives.DenoisingScoreMatching(se.objectives.VWeighting()),
        time_law=se.objectives.UniformTime(),
        optimizer=ScheduleFreeAdam,
    )
    with pytest.raises(UserError, match=r"keeps the norms of its weights.* set optimizer=adam"):
        module.configure_optimizers()
