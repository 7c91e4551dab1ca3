"""One place converts ranges: exact maps, exact 8-bit round trip, integers refused."""

import numpy as np
import pytest
import torch

from scoreexp.core.ranges import check_unit, sigma_to_model, sigma_to_unit, to_model, to_uint8, to_unit

KINDS = [torch.tensor, lambda values: np.array(values, np.float32)]


@pytest.mark.parametrize("make", KINDS)
def test_ranges_map_and_noise_is_kept(make):
    x = make([-0.5, 0.0, 0.25, 1.0, 1.5])
    assert to_model(x).tolist() == [-2.0, -1.0, -0.5, 1.0, 2.0]
    assert to_unit(to_model(x)).tolist() == x.tolist()
    assert to_model(x).dtype == x.dtype


@pytest.mark.parametrize("make", KINDS)
def test_to_uint8_inverts_division_rounds_halves_up_and_clips(make):
    assert to_uint8(make([k / 255 for k in range(256)])).tolist() == list(range(256))
    assert to_uint8(make([-3.0, 0.5, 7.0])).tolist() == [0, 128, 255]  # 127.5 -> 128
    assert to_uint8(make([0.49 / 255, 0.51 / 255])).tolist() == [0, 1]


def test_to_uint8_of_bfloat16_does_not_lose_to_half_precision_arithmetic():
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(to_uint8(x), to_uint8(x.float()))


def test_sigma_is_that_of_mapped_noise():
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clean = torch.rand(1000, dtype=torch.float64)
    mapped = to_model(clean + 0.2 * noise) - to_model(clean)
    assert mapped.std().item() == pytest.approx(sigma_to_model(0.2 * noise.std().item()))
    assert sigma_to_unit(sigma_to_model(0.3)) == 0.3


@pytest.mark.parametrize("convert", [to_model, to_unit, to_uint8])
def test_integers_are_refused(convert):
    for x in (torch.zeros(2, dtype=torch.uint8), np.zeros(2, np.uint8)):
        with pytest.raises(ValueError, match=r"uint8.*divide 8-bit values by 255"):
            convert(x)


@pytest.mark.parametrize("make", KINDS)
def test_to_uint8_refuses_nan(make):
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(make([0.5, float("nan")]))


def test_check_unit():
    check_unit(torch.tensor([0.0, 1.0]), "x")
    check_unit(to_unit(to_model(torch.rand(100).bfloat16())), "x")
    check_unit(torch.empty(0), "x")
    for values in ([-0.5, 1.0], [0.0, 255.0], [0.0, float("nan")]):
        with pytest.raises(ValueError, match=r"x has values in .*must be in \[0, 1\]"):
            check_unit(torch.tensor(values), "x")
