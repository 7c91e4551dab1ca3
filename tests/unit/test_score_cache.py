"""Score fields on disk: found again, never trusted when damaged or foreign, never written with NaN."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest

from scoreexp.data import DataError
from scoreexp.embedding import ImageEmbedding
from scoreexp.embedding import cache as score_cache
from scoreexp.embedding.cache import (
    cache_file,
    field_key,
    old_files,
    read_field,
    solve_fields,
    stacked,
    write_field,
)
from scoreexp.numerics.fokker_planck import VERSION, Direct, GeometricDiffusion, ScorePrecomputation

IMAGES = np.random.default_rng(0).random((3, 8, 8, 3))


def embedding(folder, kept=None, **parameters):
    parameters = {"steps": 4, "solver": "factorised", **parameters}
    return ImageEmbedding(
        precomputation=ScorePrecomputation(**parameters),
        kept=kept,
        cache=None if folder is None else str(folder),
    )


def solve(images, chosen, seed=0):
    parts = list(solve_fields(images, chosen, seed=seed))
    return (
        [field for part in parts for field in part.fields],
        [cached for part in parts for cached in part.cached],
        [problem for part in parts for problem in part.problems],
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"initial_density": "sampled_kde", "boundary": "zero", "solver": "direct"},
        {
            "initial_density": "value_pairs",
            "g": GeometricDiffusion(2.0),
            "boundary": "zero",
            "solver": "direct",
        },
    ],
)
def test_fields_are_found_again_and_equal_those_solved_without_a_cache(tmp_path, parameters):
    chosen = embedding(tmp_path / "new", **parameters)
    first, cached, problems = solve(IMAGES, chosen)
    assert cached == [False] * 3
    again, cached, _ = solve(IMAGES[::-1], chosen)
    assert cached == [True] * 3
    without, _, _ = solve(IMAGES, embedding(None, **parameters))
    assert problems == []
    for a, b, c in zip(first, again[::-1], without):
        for name in ("log_p", "score", "times", "kept", "residuals", "iterations"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            np.testing.assert_array_equal(getattr(a, name), getattr(c, name))
        assert b.log_p.dtype == b.score.dtype == np.float32
        assert (b.seconds, b.solver, b.boundary, b.tol) == (a.seconds, a.solver, a.boundary, a.tol)
    assert len(list(tmp_path.rglob("*.npz"))) == 3
    assert not list(tmp_path.rglob(".*")), "no temporary files are left"


def test_fields_of_several_images_are_those_of_each(tmp_path):
    chosen = embedding(None, initial_density="value_pairs", boundary="zero", solver="direct")
    together = chosen.precomputation(IMAGES, keep=chosen.kept, dtype=np.float32)
    again = stacked(solve(IMAGES, chosen)[0])
    for field in dataclasses.fields(together):
        left, right = getattr(together, field.name), getattr(again, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)


def test_key_depends_on_everything_the_field_depends_on(tmp_path, monkeypatch):
    image, base = IMAGES[0], embedding(tmp_path)
    others = [
        embedding(tmp_path, **change)
        for change in (
            {"g": 0.4}, {"g": GeometricDiffusion(0.5)}, {"horizon": 0.9}, {"steps": 5}, {"kept": 2}, {"tol": 1e-5},
            {"boundary": "zero", "solver": "direct"}, {"solver": "direct"}, {"initial_density": "value_pairs"},
            {"spacing": 1.0}, {"max_iter": 4}, {"solver": "gmres"}, {"solver": "gmres", "solver_options": {"restart": 9}},
        )
    ]  # fmt: skip
    keys = [
        field_key(image, base, 0),
        field_key(IMAGES[1], base, 0),
        *(field_key(image, o, 0) for o in others),
    ]
    keys.append(field_key(image.astype(np.float32), base, 0))
    assert len(set(keys)) == len(keys)
    assert field_key(image.copy(), embedding(tmp_path / "elsewhere"), 7) == keys[0], (
        "nothing is drawn: no seed"
    )
    sampled = embedding(tmp_path, initial_density="sampled_kde")
    assert field_key(image, sampled, 0) != field_key(image, sampled, 1)
    monkeypatch.setattr(score_cache, "code_version", lambda solver: "another solver")
    assert field_key(image, base, 0) != keys[0]
    with pytest.raises(DataError, match="drift cannot be cached"):
        field_key(image, embedding(tmp_path, drift=lambda points, t: points, solver="direct"), 0)


def test_a_changed_comment_keeps_the_fields_and_a_changed_scheme_does_not(tmp_path, monkeypatch):
    versions = []
    for doc, value in (("'One.'", 1), ("'Other.'  # or not", 1), ("'One.'", 2)):
        path = tmp_path / f"own_solver_{len(versions)}.py"
        path.write_text(f"class Own:\n    {doc}\n    def solve(self):\n        return {value}\n")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        versions.append(score_cache.code_version(module.Own))
    assert versions[0] == versions[1] != versions[2]
    assert score_cache.code_version(Direct) == str(VERSION)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"solver": "factorised"}, [0.017120245, 0.021959335]),
        ({"solver": "direct"}, [0.018236065, 0.021900329]),
        ({"solver": "direct", "boundary": "zero"}, [-0.1497791, 0.026915358]),
        ({"solver": "direct", "initial_density": "value_pairs"}, [0.028424566, 0.095858862]),
    ],
)
def test_stored_results_belong_to_this_version_of_the_schemes(parameters, expected):
    field = embedding(None, **parameters).precomputation(IMAGES[:1], keep=[-1])
    np.testing.assert_allclose(
        field.score[0, 0].reshape(-1, 8, 8)[0, [1, 4], [2, 6]],
        expected,
        rtol=1e-6,
        err_msg="results have changed: raise scoreexp.numerics.fokker_planck.VERSION, and then these numbers",
    )


def test_exact_fields_are_never_stored(tmp_path):
    chosen = embedding(tmp_path, solver="spectral")
    assert solve(IMAGES, chosen)[1] == [False] * 3
    assert not list(tmp_path.iterdir())
    assert chosen.on_demand
    assert not embedding(tmp_path, solver="spectral", initial_density="sampled_kde").on_demand
    assert [embedding(tmp_path, solver="auto", boundary=b).on_demand for b in ("neumann", "zero")] == [
        True,
        False,
    ]


def test_files_of_an_earlier_version_are_named(tmp_path):
    solve(IMAGES, embedding(tmp_path))
    assert old_files(tmp_path) is None
    (tmp_path / "0a").mkdir()
    (tmp_path / "0a" / f"{'0' * 32}.npz").touch()
    assert old_files(tmp_path) == str(tmp_path / "[0-9a-f][0-9a-f]")


def test_sampled_positions_are_named_by_seed_and_image():
    chosen = embedding(None, initial_density="sampled_kde")
    forward, backward = solve(IMAGES, chosen)[0], solve(IMAGES[::-1].copy(), chosen)[0]
    for a, b in zip(forward, backward[::-1]):
        np.testing.assert_array_equal(a.score, b.score)
    assert not np.array_equal(forward[0].score, solve(IMAGES, chosen, seed=1)[0][0].score)


def damage(how, path, other):
    content = bytearray(path.read_bytes())
    if how == "flipped bit":
        content[len(content) // 2] ^= 1
    elif how == "cut short":
        del content[len(content) // 2 :]
    elif how == "empty":
        content = bytearray()
    elif how == "foreign":
        content = bytearray(b"this is no archive")
    elif how == "of another image":
        content = bytearray(other.read_bytes())
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped bit", "cut short", "empty", "foreign", "of another image"])
def test_untrustworthy_files_are_reported_and_solved_anew(tmp_path, how):
    chosen = embedding(tmp_path)
    fresh, _, _ = solve(IMAGES, chosen)
    victim, other = (cache_file(tmp_path, field_key(image, chosen, 0)) for image in IMAGES[:2])
    damage(how, victim, other)
    again, cached, problems = solve(IMAGES, chosen)
    assert cached == [False, True, True]
    assert len(problems) == 1
    assert str(victim) in problems[0]
    assert "\n" not in problems[0]
    np.testing.assert_array_equal(again[0].score, fresh[0].score)
    assert solve(IMAGES, chosen)[1:] == ([True] * 3, [])


def test_foreign_archives_and_pickles_are_not_opened(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, score=np.zeros(3))
    with pytest.raises(DataError, match="damaged or not one"):
        read_field(path, "key")
    np.savez(path, description=np.array([{"format": 1}], dtype=object))
    with pytest.raises(DataError, match="damaged or not one"):
        read_field(path, "key")


def test_values_that_are_not_finite_are_never_written_nor_read(tmp_path, monkeypatch):
    chosen = embedding(tmp_path)
    (field,) = solve(IMAGES[:1], chosen)[0]
    bad = dataclasses.replace(field, score=np.full_like(field.score, np.nan))
    with pytest.raises(DataError, match="not finite"):
        write_field(tmp_path / "bad.npz", "key", bad)
    assert not (tmp_path / "bad.npz").exists()
    original = ScorePrecomputation.__call__

    def poisoned(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        result.log_p[0] = np.inf
        return result

    monkeypatch.setattr(ScorePrecomputation, "__call__", poisoned)
    with pytest.raises(DataError, match="image 0 has values that are not finite"):
        solve(IMAGES[1:], chosen)
    assert len(list(tmp_path.rglob("*.npz"))) == 1, "only the good one"


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_images_outside_the_unit_range_are_refused(tmp_path, value):
    bad = IMAGES.copy()
    bad[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match="image"):
        solve(bad, embedding(tmp_path))
    assert not list(tmp_path.rglob("*.npz"))


def test_black_and_constant_images_have_the_same_finite_field(tmp_path):
    flat = np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.7)])
    black, grey = solve(flat, embedding(tmp_path))[0]
    assert np.isfinite(black.score).all()
    np.testing.assert_allclose(black.score, grey.score, atol=1e-5)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .* set embedding\.cache"):
        solve(IMAGES, embedding(tmp_path / "file"))
