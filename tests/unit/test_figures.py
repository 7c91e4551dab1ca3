"""Pictures of results show the pixels that they are given."""

import gc
import importlib

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from scoreexp.figures import images as figures
from scoreexp.figures.estimates import estimates_plot
from scoreexp.figures.images import comparison, curves, denoising_strip, image_grid


def colours(path):
    """The colours that cover a good part of a picture."""
    pixels, counts = np.unique(
        np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0, return_counts=True
    )
    return {tuple(map(int, p)) for p, n in zip(pixels, counts) if n > 300}


FLAT = {"clean": (51, 102, 153), "noisy": (255, 128, 0), "denoised": (10, 200, 30)}


def flat(colour, side=16):
    return (torch.tensor(colour) / 255)[:, None, None].expand(3, side, side)


def test_strip_shows_true_colours(tmp_path):
    denoising_strip([[flat(c) for c in FLAT.values()]], tmp_path / "strip.png", "title")
    assert colours(tmp_path / "strip.png") >= set(FLAT.values())


def test_strip_of_small_grey_pictures(tmp_path):
    rows = [[torch.full((1, 8, 8), v) for v in (0.2, 0.4)] for _ in range(2)]
    denoising_strip(rows, tmp_path / "strip.png")
    assert colours(tmp_path / "strip.png") >= {(51, 51, 51), (102, 102, 102)}


def test_grid_and_comparison_show_true_colours(tmp_path):
    image_grid(torch.stack([flat(c) for c in FLAT.values()]), tmp_path / "grid.png")
    assert colours(tmp_path / "grid.png") >= set(FLAT.values())
    pictures = [np.moveaxis(flat(c).numpy(), 0, -1) for c in FLAT.values()]
    comparison(pictures, list(FLAT), tmp_path / "comparison.png")
    assert colours(tmp_path / "comparison.png") >= set(FLAT.values())


def test_pixels_are_enlarged_by_whole_numbers_and_thinned_out_where_there_are_many(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (10, 7, 3), dtype=np.uint8)
    for pixels, shown in (
        (noise, noise.repeat(3, 0).repeat(3, 1)),
        (noise.repeat(9, 0), noise.repeat(9, 0)[::2, ::2]),
    ):
        comparison([pixels / 255], ["title"], tmp_path / "a.png", side=33)
        height, width = shown.shape[:2]
        picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        np.testing.assert_array_equal(picture[-8 - height : -8, 8 : 8 + width], shown)


def test_curves_leave_out_what_is_absent(tmp_path):
    rows = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "other": 3.0}]
    assert curves(
        rows, ["loss", "nothing"], tmp_path / "loss.png", ylabel="loss", log=True, targets={"target": 1.5}
    )
    assert (tmp_path / "loss.png").stat().st_size > 1000
    assert not curves(rows, ["nothing"], tmp_path / "none.png", ylabel="nothing")
    assert not (tmp_path / "none.png").exists()


def test_failed_drawing_leaves_the_old_picture(tmp_path):
    path = tmp_path / "strip.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"NaN|numbers|finite"):
        denoising_strip([[flat((1, 2, 3)), torch.full((3, 16, 16), float("nan"))]], path)
    assert path.read_bytes() == b"old"


def test_importing_and_drawing_leave_the_callers_backend_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "backend", "svg")
    importlib.reload(figures).image_grid(torch.zeros(1, 3, 8, 8), tmp_path / "grid.png")
    assert mpl.get_backend() == "svg"


def test_no_figure_is_kept(tmp_path):
    gc.collect()
    gc.disable()
    try:
        denoising_strip([[flat(c) for c in FLAT.values()]], tmp_path / "strip.png")
        curves(
            [{"step": k, "loss": 10.0**-k} for k in range(9)],
            ["loss"],
            tmp_path / "a.png",
            ylabel="loss",
            log=True,
        )
        assert not [kept for kept in gc.get_objects() if type(kept) is Figure]
        assert gc.collect() < 2000, "nor anything else of it: a drawn image is some 8,000 objects"
    finally:
        gc.enable()


def test_values_of_different_units_never_share_an_axis(monkeypatch):
    drawn = []
    monkeypatch.setattr("scoreexp.figures.estimates.save_figure", lambda figure, path: drawn.append(figure))
    series = {
        "noisy": [(0.1, 0.01, 0.0)],
        "denoised": [(0.1, 0.9, 0.1)],
        "gain": [(0.1, 20.0, 1.0), (1.0, 0.1, 0.0)],
    }
    units = {"noisy": "accuracy", "denoised": "accuracy", "gain": "error"}
    estimates_plot(series, "a.png", xlabel="noise level", units=units, linear=("accuracy",))
    (figure,) = drawn
    found = [(axis.get_ylabel(), len(axis.containers), axis.get_yscale()) for axis in figure.axes]
    assert found == [("accuracy", 2, "linear"), ("error", 1, "log")]


def test_a_title_longer_than_the_grid_is_broken_into_lines(tmp_path):
    image_grid(
        torch.zeros(4, 1, 128, 64),
        tmp_path / "grid.png",
        "generated, and below it the nearest training image",
    )
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    assert pixels[:, [0, -1]].min() == 255
