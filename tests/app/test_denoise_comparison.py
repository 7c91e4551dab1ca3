"""`compare noises=[...]`: restorers and assumed noises side by side on the user's own pictures."""

import json

import numpy as np
import pytest
from PIL import Image
from test_denoise_without_checkpoint import Wiener, noisy, psnr, saved, scene

import scoreexp as se
from scoreexp import prior
from scoreexp.app.restorer_table import main
from scoreexp.observations import GaussianNoise


@pytest.fixture(autouse=True)
def _prior(monkeypatch):
    monkeypatch.setattr(prior, "load", lambda device="cpu": Wiener())


def compared(folder, *words):
    """The exit code, and the rows."""
    code = main([*words, f"run_dir={folder}", "device=cpu"])
    file = folder / "denoisers.json"
    return code, json.loads(file.read_text())["rows"] if file.exists() else []


def test_restorers_under_noises_on_one_picture(tmp_path, capsys):
    y = noisy(GaussianNoise(0.2), 96, 1).astype(np.float32)
    path = saved(tmp_path / "a.tif", y, bit_depth=32)
    clean = saved(tmp_path / "clean.tif", scene(96, 1), bit_depth=32)
    words = ["restorers=[usual,tv,exposure]", "noises=[estimated,gaussian,poisson]", f"input={path}"]
    code, rows = compared(tmp_path / "out", *words, f"reference={clean}")
    assert code == 0
    assert [(row["assumed"], row["restorer"]) for row in rows] == [
        (noise, name)
        for noise in ("estimated", "gaussian", "poisson")
        for name in ("usual", "tv", "exposure")
    ]
    assert [row["kind"] for row in rows[::3]] == ["GaussianNoise", "GaussianNoise", "PoissonNoise"]
    assert rows[6]["parameters"]["peak"] > 30  # of the picture, and not of the file
    assert rows[1]["psnr"] == pytest.approx(psnr(se.denoise(y, restorer=se.restorers.TV()), 96), abs=0.01)
    named = {key: rows[3][key] for key in ("assumed", "trust", "why")}
    assert rows[3] == {**rows[0], **named}  # it is not denoised again
    assert rows[0]["by"] == "the prior's own variance"
    assert rows[1]["expected"] is None
    assert rows[0]["removed"] == pytest.approx(1, abs=0.15)
    assert all(row["reason"] and row["psnr"] is None for row in rows[2:6:3])
    with Image.open(tmp_path / "out" / "a_compared.png") as strip:
        assert strip.height < strip.width < 1.5 * strip.height  # four columns, three rows
    said = capsys.readouterr().out
    assert "note           exposure does not serve gaussian: " in said
    assert sum(line.startswith("| a.tif |") for line in said.splitlines()) == 9


def test_a_folder_has_means_and_goes_on(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate(("a.tif", "b.tif")):
        saved(folder / name, noisy(GaussianNoise(0.1 + 0.1 * seed), 48, 1), bit_depth=32)
    saved(folder / "c.png", np.full((40, 40, 1), 0.5))
    (folder / "d.png").write_bytes(b"no image")
    code, rows = compared(tmp_path / "out", "restorers=[tv]", "noises=[gaussian]", f"input={folder}")
    assert code == 1
    said = capsys.readouterr()
    mean = np.mean([row["removed"] for row in rows[:2]])
    assert f"| 2 of 3 | tv | gaussian | GaussianNoise | {mean:.2f} |" in said.out
    assert "gaussian: no noise was found, all pixels are equal" in said.out
    assert "1 of 4 images failed" in said.err
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"{n}_compared.png" for n in "abc"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["restorers=[bm3d]", "noises=[estimated]"], "restorer=bm3d: allowed are "),
        (["noises=[rayleigh]"], "noise=rayleigh: allowed are "),
        (["restorers=[tvv]", "noises=[estimated]"], "; did you mean 'tv'?"),
        (["noises=[]"], "noises=[] names none: give some, such as noises=[estimated]"),
        (["noises=[estimated]", "reference=REFERENCE"], "the reference of "),
    ],
)
def test_what_is_refused_is_one_line(words, said, tmp_path, capsys):
    path = saved(tmp_path / "a.png", noisy(GaussianNoise(0.2), 32))
    other = saved(tmp_path / "b.png", noisy(GaussianNoise(0.2), 16))
    words = [word.replace("REFERENCE", str(other)) for word in words]
    code, rows = compared(tmp_path / "out", *words, f"input={path}")
    assert (code, rows) == (1, [])
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
