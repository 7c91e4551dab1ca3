"""Muon against the closed form of its iteration, and Adam for the rest."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from scoreexp.optimizers import Muon, orthogonalised
from scoreexp.system.denormals import no_denormals


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_the_iteration_acts_on_singular_values_alone(shape):
    matrix = normal(*shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / (s.norm() + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalised(matrix), u @ s.diag() @ vh, rtol=1e-9, atol=1e-9)
    assert 0.6 < s.min() <= s.max() < 1.3


def test_two_steps_by_hand():
    kernel = nn.Parameter(normal(8, 4, 3, 3))
    start, gradients = kernel.detach().clone(), [normal(8, 4, 3, 3, seed=k) for k in (1, 2)]
    optimizer = Muon([kernel], lr=0.1, momentum=0.9, weight_decay=0.5, hidden_width=4)
    expected, mean = start, torch.zeros_like(start)
    for gradient in gradients:
        kernel.grad = gradient
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        moved = orthogonalised((0.1 * gradient + 0.9 * mean).flatten(1)).reshape(start.shape)
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * moved  # 8 rows of 36 columns: no scale
    torch.testing.assert_close(kernel.detach(), expected)


def test_all_but_hidden_weights_take_the_steps_of_adam():
    network = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2)).double()
    twin = copy.deepcopy(network)
    optimizers = [Muon(network.parameters(), adam_lr=1e-2), torch.optim.Adam(twin.parameters(), lr=1e-2)]
    for k in range(3):
        for one, optimizer in zip((network, twin), optimizers):
            optimizer.zero_grad()
            one(normal(5, 3, seed=k)).square().sum().backward()
            optimizer.step()
    for mine, theirs in zip(network.parameters(), twin.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_its_state_is_plain_data_also_where_hydra_gives_lists(tmp_path):
    optimizer = Muon([nn.Parameter(torch.zeros(2))], betas=OmegaConf.create([0.9, 0.99]))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    (group,) = torch.load(tmp_path / "state.pt", weights_only=True)["param_groups"]
    assert group["betas"] == (0.9, 0.99)


def test_a_gradient_that_fades_does_not_move_a_weight_or_spoil_it():
    with no_denormals():  # as in training: squares of such gradients are then 0
        for size in (1e-14, 1e-20, 1e-40):
            update = orthogonalised(size * normal(48, 48).float())
            assert update.isfinite().all()
            assert update.norm() < 1e-2
