"""apply_tiled: tiles give what the whole picture gives, for any size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scoreexp.restorers.tiling import apply_tiled


def picture(height, width, batch=1, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, height, width, generator=generator)


def box_filter(radius):
    """Depends on pixels up to ``radius`` away; zeros outside, as a network's padding."""

    def function(x, _position):
        return F.avg_pool2d(x, 2 * radius + 1, stride=1, padding=radius)

    return function


sides = st.integers(1, 90)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=sides, width=sides, overlap=st.integers(0, 24), multiple=st.sampled_from([1, 4, 8]))
def test_blending_weights_sum_to_one(height, width, overlap, multiple):
    x = picture(height, width)
    y = apply_tiled(lambda part, _: part, x, tile=32, overlap=overlap, multiple=multiple)
    assert torch.allclose(y, x, atol=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=sides, width=sides, overlap=st.integers(4, 24), multiple=st.sampled_from([1, 4, 8]))
def test_tiled_equals_whole_if_the_radius_is_a_quarter_of_the_overlap(height, width, overlap, multiple):
    x = picture(height, width)
    whole = apply_tiled(box_filter(overlap // 4), x, tile=None, multiple=multiple)
    tiled = apply_tiled(box_filter(overlap // 4), x, tile=32, overlap=overlap, multiple=multiple)
    assert torch.allclose(tiled, whole, atol=1e-6)


def test_tiled_equals_whole_outside_the_bands_if_the_radius_is_the_overlap():
    x = picture(32, 90)
    whole = apply_tiled(box_filter(10), x, tile=None)
    tiled = apply_tiled(box_filter(10), x, tile=50, overlap=10)  # tiles at columns 0 and 40
    difference = (tiled - whole).abs().amax((0, 1, 2))
    assert difference[:40].max() < 1e-6
    assert difference[50:].max() < 1e-6
    assert difference[40:50].max() > 1e-3  # the test can see an error


def test_blend_is_smooth_where_tiles_disagree():
    """Tiles that return different constants are joined by a ramp without jumps."""

    def function(part, position):
        return torch.full_like(part, float(position[1] > 0))

    y = apply_tiled(function, picture(8, 90), tile=50, overlap=40)
    profile = y[0, 0, 0]
    assert profile[0] == 0
    assert profile[-1] == 1
    assert profile.diff().min() > -1e-6
    assert profile.diff().max() < 1.5 / 20  # the ramp covers half of the overlap


def test_whole_picture_is_pad_function_crop():
    x = picture(13, 21)
    seen = []

    def function(part, position):
        seen.append((part.clone(), position))
        return 2 * part

    y = apply_tiled(function, x, tile=24, overlap=8, multiple=8)
    assert len(seen) == 1
    assert torch.equal(seen[0][0], F.pad(x, (0, 3, 0, 3), mode="reflect"))
    assert seen[0][1] == (0, 0)
    assert torch.equal(y, 2 * x)


@pytest.mark.parametrize(("height", "width"), [(5, 3), (1, 1), (2, 9), (8, 1)])
def test_pictures_below_the_reflection_limit(height, width):
    seen = []

    def function(part, _position):
        seen.append(part)
        return part

    x = picture(height, width)
    assert torch.equal(apply_tiled(function, x, tile=64, overlap=16, multiple=8), x)
    assert seen[0].shape[2] % 8 == seen[0].shape[3] % 8 == 0
    axes = [(0, 0), (0, 0), (0, seen[0].shape[2] - height), (0, seen[0].shape[3] - width)]
    assert np.array_equal(seen[0].numpy(), np.pad(x.numpy(), axes, mode="reflect"))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(height=sides, width=sides)
def test_positions_cut_the_same_noise_from_one_field(height, width):
    field = picture(128, 128, seed=1)

    def function(part, position):
        row, column = position
        assert row % 4 == column % 4 == 0
        return part + field[..., row : row + part.shape[2], column : column + part.shape[3]]

    x = picture(height, width)
    y = apply_tiled(function, x, tile=32, overlap=9, multiple=4)
    assert torch.allclose(y, x + field[..., :height, :width], atol=1e-6)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_tiles_halve_when_memory_runs_out(error):
    x = picture(100, 70)
    reported, progress = [], []

    def function(part, _position):
        if part.shape[2] * part.shape[3] > 32 * 32:
            raise error
        return 3 * part

    y = apply_tiled(
        function,
        x,
        tile=None,
        overlap=8,
        multiple=4,
        progress=lambda done, count: progress.append((done, count)),
        on_out_of_memory=reported.append,
    )
    assert torch.allclose(y, 3 * x, atol=1e-5)
    assert reported == [52, 28]  # 100, then halves rounded up to the multiple
    assert progress[-1][0] == progress[-1][1] == len(progress)


def test_memory_error_names_the_smallest_tile_and_other_errors_pass():
    def exhausted(part, _position):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(part, _position):
        raise RuntimeError("shapes do not match")

    with pytest.raises(MemoryError, match=r"tile of 16 pixels .* overlap of 8"):
        apply_tiled(exhausted, picture(100, 70), tile=64, overlap=8, multiple=4)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        apply_tiled(broken, picture(100, 70), tile=64, overlap=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100, "multiple": 8}, "use 104"),
        ({"tile": 32, "overlap": 32}, "at most 31"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        apply_tiled(lambda part, _: part, picture(50, 50), **{"overlap": 8, **options})


def test_a_function_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match="must keep channels"):
        apply_tiled(lambda part, _: part[..., ::2], picture(50, 50), tile=32, overlap=8)
