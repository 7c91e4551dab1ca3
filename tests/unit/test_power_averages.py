"""Power-function averages: their width, and any other width reconstructed from two that were kept."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from scoreexp.lit.ema import PowerEMA, power_of_width, profile, reconstructed, reconstruction

STEPS = 300


@pytest.fixture(scope="module")
def walk():
    """Weights on a random walk of 300 steps, averages of three widths kept directly, and two of them stored."""
    g = torch.Generator().manual_seed(0)
    raw = nn.Linear(3, 2).double()
    averaged = {width: copy.deepcopy(raw) for width in (0.05, 0.1, 0.075, 0.15)}
    stored, history, direct = [], [], {}
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            raw.weight += torch.randn(2, 3, generator=g, dtype=torch.float64)
        history.append(raw.weight.detach().clone())
        for width, module in averaged.items():
            PowerEMA(width=width).update(module, raw, step)
            direct[width, step] = module.weight.detach().clone()
        if step % 10 == 0:
            stored += [
                (w, step, {k: v.clone() for k, v in averaged[w].state_dict().items()}) for w in (0.05, 0.1)
            ]
    return torch.stack(history), direct, stored


@pytest.mark.parametrize("width", [0.05, 0.1, 0.15])
def test_the_average_has_the_width_and_the_profile_that_it_says(walk, width):
    history, direct, _ = walk
    shares = profile(width, STEPS, STEPS)
    times = (np.arange(STEPS) + 0.5) / STEPS
    mean = (shares * times).sum()
    assert shares.sum() == pytest.approx(1, rel=1e-12)
    assert ((shares * (times - mean) ** 2).sum()) ** 0.5 == pytest.approx(width, rel=1e-3)
    by_profile = torch.einsum("s,sij->ij", torch.from_numpy(shares), history)
    torch.testing.assert_close(direct[width, STEPS], by_profile, rtol=0, atol=1e-9)


def test_the_power_is_the_root_of_the_papers_equation():
    for width in (0.01, 0.05, 0.1, 0.25):
        g = power_of_width(width)
        assert ((g + 1) / (g + 2) ** 2 / (g + 3)) ** 0.5 == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize(("width", "step"), [(0.075, 300), (0.15, 300), (0.075, 200)])
def test_a_width_reconstructed_afterwards_is_the_one_kept_directly(walk, width, step):
    history, direct, stored = walk
    found = reconstructed(stored, width, step)["weight"]
    moved = (history[step - 1] - direct[width, step]).norm()  # what averaging changed
    assert (found - direct[width, step]).norm() < 0.01 * moved
    # one stored average alone, of another width, is no substitute
    last = next(state for w, at, state in stored if (w, at) == (0.1, step))["weight"]
    assert (last - direct[width, step]).norm() > 0.05 * moved


def test_a_stored_average_is_itself(walk):
    _, direct, stored = walk
    torch.testing.assert_close(reconstructed(stored, 0.1, 250)["weight"], direct[0.1, 250], rtol=0, atol=1e-8)


def test_the_first_update_leaves_nothing_of_the_initial_weights():
    assert PowerEMA(width=0.1).decay_at(1) == 0


def test_a_step_that_no_average_holds_is_refused():
    with pytest.raises(ValueError, match=r"step=301 is not in 1\.\.300, the steps of the 1 stored averages"):
        reconstruction([(0.1, 300)], 0.1, 301)
    with pytest.raises(ValueError, match=r"width=0\.3 must be a number > 0 and < 0\.28"):
        PowerEMA(width=0.3)
