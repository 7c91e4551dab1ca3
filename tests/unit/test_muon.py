"""Muon against the closed form of its iteration, and Adam for the rest."""

import copy

import torch
from torch import nn

from scoreexp.numerics.muon import COEFFICIENTS, Muon, orthogonalised


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rounds_act_on_the_singular_values_alone():
    a, b, c = COEFFICIENTS
    for shape in ((5, 9), (9, 5), (2, 5, 5)):
        matrix = normal(*shape)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        s = s / s.norm(dim=-1, keepdim=True)
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        torch.testing.assert_close(orthogonalised(matrix), u @ torch.diag_embed(s) @ vh, rtol=1e-5, atol=1e-6)
        assert s.min() > 0.5
        assert s.max() < 1.3


def test_a_step_of_a_kernel_is_orthogonalised_nesterov_momentum():
    kernel = nn.Parameter(normal(16, 4, 3, 3))
    before, gradients = kernel.detach().clone(), (normal(16, 4, 3, 3, seed=1), normal(16, 4, 3, 3, seed=2))
    optimizer = Muon([kernel], lr=0.1, momentum=0.9, weight_decay=0.5)
    momentum, expected = torch.zeros(16, 36, dtype=torch.float64), before.flatten(1)
    for gradient in gradients:
        kernel.grad = gradient
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient.flatten(1)
        direction = orthogonalised(0.9 * momentum + 0.1 * gradient.flatten(1))
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 6 * direction  # 6 = sqrt(max(16, 36))
    torch.testing.assert_close(kernel.detach().flatten(1), expected)


def test_vectors_and_small_matrices_take_adams_steps_also_after_a_resume():
    mine = [nn.Parameter(normal(7)), nn.Parameter(normal(3, 4, 3, 3))]
    other = copy.deepcopy(mine)
    muon, adam = Muon(mine, lr=0.05, betas=(0.8, 0.9)), torch.optim.Adam(other, lr=0.05, betas=(0.8, 0.9))
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(muon.state_dict())
            muon = Muon(mine, lr=1.0)
            muon.load_state_dict(state)
        for p, q in zip(mine, other):
            p.grad = normal(*p.shape, seed=10 + step)
            q.grad = p.grad.clone()
        muon.step()
        adam.step()
    for p, q in zip(mine, other):
        torch.testing.assert_close(p, q)
