"""Transport of images along score fields, against a literal loop, and the look-up of the paths."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.data import DataError
from scoreexp.embedding import EmbeddedImages, ImageEmbedding, embed_scores
from scoreexp.numerics.fokker_planck import GeometricDiffusion, ScorePrecomputation
from scoreexp.numerics.spectral_torch import TorchSpectral

PUBLISHED = {"initial_density": "sampled_kde", "boundary": "zero", "solver": "direct", "steps": 100}


def images(count=2, side=9, channels=3, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def solved(embedding, x):
    rng = np.random.default_rng(0)
    return embedding.precomputation(x.permute(0, 2, 3, 1).double().numpy(), keep=embedding.kept, rng=rng)


def test_single_image_variant_equals_the_published_loop():
    x = images()
    embedding = ImageEmbedding(
        precomputation=ScorePrecomputation(**PUBLISHED), kept=10, noise=0.1, clamp=True
    )
    everything = embedding.precomputation(
        x.permute(0, 2, 3, 1).double().numpy(), rng=np.random.default_rng(0)
    )
    path = embedding(x, solved(embedding, x), seeds=[5, 6])
    assert path.shape == (11, 2, 3, 9, 9)
    assert torch.equal(path[0], x)
    streams, state = ImageStreams([5, 6], "embedding"), x.double().numpy().copy()
    steps = [int(n) for n in np.linspace(1, 100, 10)]
    assert steps == embedding.kept
    assert steps[-1] == 100
    for k, n in enumerate(steps, start=1):
        for b in range(2):
            first = everything.score[n, b, 0]
            for c in range(3):
                for i in range(9):
                    for j in range(9):
                        state[b, c, i, j] -= 0.5 * 0.5**2 * first[i, j] * 0.01
        if n < 100:
            state += 0.1 * 0.5 * math.sqrt(0.01) * streams.normal(x).double().numpy()
        state = np.minimum(np.maximum(state, 0), 1)
        np.testing.assert_allclose(path[k].numpy(), state, atol=2e-7)  # float32 of values up to 1


def test_variance_exploding_variant_equals_the_published_loop():
    x = images(side=8)
    precomputation = ScorePrecomputation(
        g=GeometricDiffusion(5.0), steps=20, initial_density="value_pairs", boundary="zero", solver="direct", spacing=1.0
    )  # fmt: skip
    embedding = ImageEmbedding(precomputation=precomputation, component="column")
    field = solved(embedding, x)
    path = embedding(x, field, seeds=[0, 1])
    assert path.shape == (21, 2, 3, 8, 8)
    state = x.double().numpy().copy()
    for n in range(1, 21):
        t = n / 20
        for b in range(2):
            for c in range(3):
                state[b, c] = state[b, c] - 0.5 * field.score[n - 1, b, c, 1] * (5.0**t) ** 2 / 20
        # the values may leave [0, 1] by far: float32 relative to the largest
        np.testing.assert_allclose(path[n].numpy(), state, atol=2e-7 * np.abs(state).max())
    assert embedding.times == pytest.approx([n / 20 for n in range(21)], abs=0)


def test_noise_is_named_by_the_image_alone():
    x = images(3)
    embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=5), noise=0.1)
    field = solved(embedding, x)
    whole = embedding(x, field, seeds=[1, 2, 3])
    assert torch.equal(whole, embedding(x, field, seeds=[1, 2, 3]))
    alone = embedding(x[1:2], solved(embedding, x[1:2]), seeds=[2])
    torch.testing.assert_close(whole[:, 1:2], alone, atol=1e-6, rtol=0)
    assert not torch.equal(whole, embedding(x, field, seeds=[1, 2, 4]))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"initial_density": "value_pairs", "g": GeometricDiffusion(5.0), "spacing": 1.0},
        {"solver": TorchSpectral("cpu")},
    ],
)
@pytest.mark.parametrize("transport", [{}, {"kept": 3, "component": "column", "noise": 0.1, "clamp": True}])
def test_fields_solved_on_the_way_move_the_images_as_stored_ones(parameters, transport):
    x, seeds = images(3), [1, 2, 3]
    embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=6, **parameters), **transport)
    field = embedding.precomputation(
        x.permute(0, 2, 3, 1).numpy(), keep=embedding.kept, dtype=np.float32
    )  # as a file keeps it
    seconds = {}
    assert embedding.on_demand
    assert torch.equal(torch.stack(list(embedding.along(x, seeds, seconds))), embedding(x, field, seeds))
    assert set(seconds) == {"initial_density", "solve"}
    with pytest.raises(ValueError, match=r"give values in \[0, 1\]"):
        list(embedding.along(2 * x, seeds, seconds))


def test_a_field_that_is_not_finite_stops_the_embedding(monkeypatch):
    embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=3))
    bad = SimpleNamespace(index=1, time=0.5, component=lambda which: np.full((1, 9, 9), np.nan))
    monkeypatch.setattr(ScorePrecomputation, "slices", lambda self, images, keep: iter([bad]))
    with pytest.raises(DataError, match=r"not finite at time 0\.5"):
        list(embedding.along(images(1), [0], {}))


def test_constant_image_stays_where_it_is_in_the_middle():
    x = torch.full((1, 1, 9, 9), 0.5)
    embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=4))
    path = embedding(x, solved(embedding, x), seeds=[0])
    assert path.isfinite().all()
    # the kernel estimate of a uniform weight is symmetric: no slope in the central row
    assert (path[:, 0, 0, 4] - 0.5).abs().max() < 1e-6
    assert torch.allclose(path, 1 - path.flip(3), atol=1e-6), "and antisymmetric about it"


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images() * 2, r"values in \[.*give values in \[0, 1\]"),
        (images() - 0.5, r"give values in \[0, 1\]"),
        (torch.full((2, 3, 9, 9), float("nan")), r"give values in \[0, 1\]"),
        (images(3), "does not belong to images"),
        (images(side=8), "does not belong to images"),
        (images()[0], "give floating"),
    ],
)
def test_bad_images_are_refused(x, message):
    embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=3))
    with pytest.raises(ValueError, match=message):
        embedding(x, solved(embedding, images()), seeds=[0, 1])


def test_bad_parameters_are_refused():
    precomputation = ScorePrecomputation(steps=3)
    with pytest.raises(ValueError, match="kept=4 of 3 steps"):
        ImageEmbedding(precomputation=precomputation, kept=4)
    field = solved(ImageEmbedding(precomputation=precomputation), images())
    with pytest.raises(ValueError, match="needs random streams"):
        embed_scores(images(), field, g=0.5, dt=0.1, noise=0.1)


def paths():
    return EmbeddedImages(
        [0.0, 0.25, 1.0], torch.arange(3 * 2 * 4, dtype=torch.float32).reshape(3, 2, 4) ** 2 / 7, [4, 2]
    )


def test_paths_are_exact_at_their_times_and_linear_between():
    embedded = paths()
    index, both = torch.tensor([4, 2]), lambda t: torch.full((2,), t)
    for k, t in enumerate(embedded.times):
        assert torch.equal(embedded.at(index, both(float(t))), embedded.images[k])
    middle = embedded.at(index, both(0.5))
    torch.testing.assert_close(middle, embedded.images[1] * 2 / 3 + embedded.images[2] / 3)
    mixed = embedded.at(torch.tensor([2, 2, 4]), torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(
        mixed, torch.stack([embedded.images[0, 1], embedded.images[2, 1], embedded.images[1, 0]])
    )


def test_times_and_images_outside_the_paths_are_refused():
    embedded = paths()
    with pytest.raises(ValueError, match="image 3 has no path"):
        embedded.at(torch.tensor([3]), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="image 9 has no path"):
        embedded.at(torch.tensor([9]), torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"t = 1\.5 is outside"):
        embedded.at(torch.tensor([2]), torch.tensor([1.5]))
    for times in ([0.5, 1.0], [0.0, 0.0], [0.0]):
        with pytest.raises(ValueError, match="times"):
            EmbeddedImages(times, torch.zeros(len(times), 1, 2))
    with pytest.raises(ValueError, match="one per time"):
        EmbeddedImages([0.0, 1.0], torch.zeros(3, 1, 2))
    with pytest.raises(ValueError, match="positions"):
        EmbeddedImages([0.0, 1.0], torch.zeros(2, 1, 2), [0, 1])
