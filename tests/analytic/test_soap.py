"""SOAP: Adam without bases, a closed form for common singular vectors, and three steps by hand."""

import copy

import pytest
import torch
from torch import nn

from scoreexp.optimizers import SOAP


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def after(gradients, start, **config):
    """The weight after these gradients, and its state."""
    weight = nn.Parameter(start.clone())
    optimizer = SOAP([weight], **config)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def adam(gradients, lr, betas, eps=1e-8):
    """What Adam adds to a parameter."""
    mean = square = total = torch.zeros_like(gradients[0])
    for k, gradient in enumerate(gradients, 1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        total = total - lr * (mean / (1 - betas[0] ** k)) / ((square / (1 - betas[1] ** k)).sqrt() + eps)
    return total


def test_without_bases_it_is_adam():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    twin = copy.deepcopy(network)
    optimizers = [
        SOAP(network.parameters(), lr=0.01, betas=(0.9, 0.99), longest_side=1),
        torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.9, 0.99)),
    ]
    for k in range(3):
        for one, optimizer in zip((network, twin), optimizers):
            optimizer.zero_grad()
            one(normal(5, 3, seed=k)).square().sum().backward()
            optimizer.step()
    for mine, theirs in zip(network.parameters(), twin.parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_gradients_of_common_singular_vectors_get_the_steps_of_adam_on_their_singular_values():
    u, v = (torch.linalg.qr(normal(n, n, seed=n))[0] for n in (3, 5))
    values = [normal(3, seed=10 + k).abs() + torch.tensor([3.0, 2.0, 1.0]) for k in range(6)]
    found, state = after(
        [u @ torch.diag(s) @ v[:, :3].T for s in values], normal(3, 5), lr=0.1, betas=(0.9, 0.8), frequency=2
    )
    moved = adam(values[1:], 0.1, (0.9, 0.8))  # the first gradient gives the bases alone
    torch.testing.assert_close(found - normal(3, 5), u @ torch.diag(moved) @ v[:, :3].T, rtol=1e-6, atol=1e-6)
    assert state["step"] == 5


@pytest.mark.parametrize("shape", [(4, 4), (4, 6)])
def test_steps_by_hand(shape):
    longest, both = 4, shape == (4, 4)  # six columns have no basis
    start, gradients = normal(*shape), [normal(*shape, seed=k) for k in range(1, 5)]
    found, _ = after(
        gradients, start, lr=0.1, betas=(0.9, 0.8), weight_decay=0.5, frequency=2, longest_side=longest
    )
    left, right = (0.2 * g for g in (gradients[0] @ gradients[0].T, gradients[0].T @ gradients[0]))
    q_left = torch.linalg.eigh(left)[1].flip(1)  # the largest first
    q_right = torch.linalg.eigh(right)[1].flip(1) if both else torch.eye(6, dtype=torch.float64)
    mean, square, expected = torch.zeros_like(start), torch.zeros_like(start), start
    for k, g in enumerate(gradients[1:], 1):
        mean = 0.9 * mean + 0.1 * g
        square = 0.8 * square + 0.2 * (q_left.T @ g @ q_right) ** 2
        scaled = (q_left.T @ mean @ q_right / (1 - 0.9**k)) / ((square / (1 - 0.8**k)).sqrt() + 1e-8)
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * q_left @ scaled @ q_right.T
        left, right = 0.8 * left + 0.2 * g @ g.T, 0.8 * right + 0.2 * g.T @ g
        if k == 2:
            first = (q_left.T @ left @ q_left).diagonal().argsort(descending=True)
            q_left, square = torch.linalg.qr(left @ q_left[:, first])[0], square[first]
            if both:
                first = (q_right.T @ right @ q_right).diagonal().argsort(descending=True)
                q_right, square = torch.linalg.qr(right @ q_right[:, first])[0], square[:, first]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_kernel_of_one_pixel_is_a_matrix_and_every_side_of_a_larger_one_has_a_basis():
    gradients = [normal(3, 5, seed=k) for k in range(3)]
    matrix, _ = after(gradients, normal(3, 5))
    kernel, _ = after([g[:, :, None, None] for g in gradients], normal(3, 5)[:, :, None, None])
    torch.testing.assert_close(kernel[:, :, 0, 0], matrix)
    _, state = after([normal(4, 2, 3, 3)], normal(4, 2, 3, 3))
    assert [len(basis) for basis in state["bases"]] == [4, 2, 3, 3]


def test_its_state_is_plain_data_and_goes_on_bitwise(tmp_path):
    weight = nn.Parameter(normal(3, 5))
    optimizer = SOAP([weight], frequency=2)
    for k in range(3):
        weight.grad = normal(3, 5, seed=k)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = nn.Parameter(weight.detach().clone())
    resumed = SOAP([again], frequency=2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for k in range(3, 6):
        for one, its in ((weight, optimizer), (again, resumed)):
            one.grad = normal(3, 5, seed=k)
            its.step()
    assert torch.equal(weight, again)
