"""Random streams are functions of their key."""

import math

import pytest
import torch

from scoreexp.core.streams import ImageStreams, generator, stream_seed


def test_stream_seed_never_changes_between_processes_or_releases():
    # blake2b(b"int:0\x1fstr:noise", 8 bytes), little-endian, without the lowest bit
    assert stream_seed(0, "noise") == 6763856579362073555


def test_keys_that_look_alike_give_different_streams():
    keys = [
        (1,),
        ("1",),
        (1, 1),
        (11,),
        ("1", "1"),
        (0,),
        (-1,),
        (1, "1"),
        ("a", "b"),
        ("ab",),
        ("a", "b", ""),
    ]
    seeds = [stream_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_same_key_gives_the_same_draws_and_zero_is_a_seed():
    draws = [torch.randn(5, generator=generator(seed, "noise")) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_an_image_draws_the_same_noise_in_every_batch():
    together = ImageStreams(range(8))
    whole = [together.normal(torch.empty(8, 3, 4, 4)) for _ in range(2)]
    for size in (1, 3):
        for first in range(0, 8, size):
            batch = range(first, min(first + size, 8))
            streams = ImageStreams(batch)
            for step in whole:
                assert torch.equal(streams.normal(torch.empty(len(batch), 3, 4, 4)), step[list(batch)])


def test_purposes_are_independent():
    like = torch.empty(1, 10_000, dtype=torch.float64)
    a, b = (ImageStreams([3], purpose).normal(like)[0] for purpose in ("prior", "sampling"))
    # the sample correlation of independent normals has standard deviation 1/sqrt(n)
    assert abs((a * b).mean()) < 4.5 / math.sqrt(10_000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_draws_take_the_dtype_of_like_and_low_precision_rounds_the_float32_draw(dtype):
    draw = ImageStreams([0]).normal(torch.empty(1, 7, dtype=dtype))
    assert draw.dtype == dtype
    if dtype is torch.bfloat16:
        assert torch.equal(draw, ImageStreams([0]).normal(torch.empty(1, 7)).to(dtype))


def test_no_image_draws_nothing():
    assert ImageStreams([]).normal(torch.empty(0, 3, dtype=torch.float64)).shape == (0, 3)


def test_the_number_of_samples_must_match_the_number_of_seeds():
    with pytest.raises(ValueError, match="2 samples for 3 image seeds"):
        ImageStreams([0, 1, 2]).normal(torch.empty(2, 4))
