"""Broadcasting and per-sample reductions."""

import pytest
import torch

from scoreexp.core.tensors import expand_to, mean_per_sample, sum_per_sample


@pytest.mark.parametrize("event_shape", [(), (2,), (3, 8, 8), (1, 2, 3, 4)])
def test_expand_to_scales_each_sample_by_its_own_coefficient(event_shape):
    x = torch.randn(4, *event_shape)
    c = torch.tensor([0.0, 1.0, -2.0, 3.0])
    expected = torch.stack([ci * xi for ci, xi in zip(c, x, strict=True)])
    assert torch.equal(expand_to(c, x) * x, expected)


def test_expand_to_takes_the_dtype_of_x_so_that_float64_coefficients_do_not_promote():
    x = torch.ones(2, 3)
    assert (expand_to(torch.ones(2, dtype=torch.float64), x) * x).dtype == torch.float32


@pytest.mark.parametrize("event_shape", [(2,), (3, 4, 5)])
def test_reductions_are_over_the_event_axes_only(event_shape):
    x = torch.arange(2 * torch.Size(event_shape).numel(), dtype=torch.float64).reshape(2, *event_shape)
    for i in range(2):
        assert sum_per_sample(x)[i] == x[i].sum()
        assert mean_per_sample(x)[i] == x[i].mean()
    assert sum_per_sample(x).shape == (2,)
