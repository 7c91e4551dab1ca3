"""Averaged weights: the decay law, the update, and what is left alone."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from scoreexp.lit import EMA


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("count", torch.tensor(0))


def test_update_is_the_recursion():
    ema, raw = EMA(decay=0.9, warmup=False), Net()
    averaged = copy.deepcopy(raw)
    expected = raw.layer.weight.detach().double().clone()
    for step in range(1, 6):
        with torch.no_grad():
            raw.layer.weight += torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        ema.update(averaged, raw, step)
        expected = 0.9 * expected + 0.1 * raw.layer.weight.detach().double()
    torch.testing.assert_close(averaged.layer.weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(averaged.layer.weight, raw.layer.weight)


def test_buffers_are_copied_not_averaged():
    ema, raw = EMA(decay=0.9), Net()
    averaged = copy.deepcopy(raw)
    raw.count += 7
    ema.update(averaged, raw, 1)
    assert averaged.count == 7
    assert averaged.count.dtype == torch.int64


def test_a_weight_that_two_layers_share_is_averaged_once():
    raw = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    raw[1].weight = raw[0].weight
    averaged = copy.deepcopy(raw)
    nn.init.zeros_(averaged[0].weight)
    EMA(decay=0.75, warmup=False).update(averaged, raw, 1)
    assert averaged[1].weight is averaged[0].weight
    torch.testing.assert_close(averaged[0].weight, 0.25 * raw[0].weight)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_an_update_of_many_tensors_is_one_operation():
    raw = nn.ParameterList(torch.zeros(2) for _ in range(400))
    averaged = copy.deepcopy(raw)
    with Operations() as operations:
        EMA().update(averaged, raw, 2)
    assert operations.names.count("_foreach_lerp_") == 1
    assert set(operations.names) <= {"_foreach_lerp_", "detach"}


@pytest.mark.parametrize(("step", "decay"), [(1, 2 / 11), (90, 0.91), (10**6, 0.999)])
def test_warmup_follows_early_weights(step, decay):
    assert EMA(decay=0.999).decay_at(step) == pytest.approx(decay)
    assert EMA(decay=0.999, warmup=False).decay_at(step) == 0.999
