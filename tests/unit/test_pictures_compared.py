"""Several pictures as runs of their own: which there are, where they lie and how they are summarised."""

from pathlib import Path

import pytest

from scoreexp.app.comparison_jobs import overrides_of
from scoreexp.app.comparison_plan import pictures_of
from scoreexp.compare import arguments
from scoreexp.core.errors import UserError
from scoreexp.runs.reporting.csv_table import as_csv
from scoreexp.runs.reporting.image_table import image_table, image_text
from scoreexp.runs.reporting.runs import Plan, Run
from scoreexp.runs.reporting.summary import tables

PLAN = Plan("p", methods={"A": [], "B": []}, seeds=[0, 1], monitor="val/psnr", images=["a.jpg", "b.jpg"])


def run(method: str, image: str, seed: int, psnr: float) -> Run:
    config = {"name": method, "data": {"_target_": "scoreexp.data.Photo", "path": image}}
    rows = [{"step": 1.0, "time/total": 1.0, "val/psnr": psnr}]
    return Run(
        Path(f"{method}-{image}-{seed}"), method, seed, config, {"device": "cpu"}, {"seconds": {"train": 1.0}},
        rows=rows, image=image,
    )  # fmt: skip


RUNS = [
    run(method, image, seed, base + seed)
    for method, bases in {"A": (10.0, 30.0), "B": (20.0, 25.0)}.items()
    for image, base in zip(PLAN.images, bases)
    for seed in (0, 1)
]


def test_one_table_holds_all_pictures_and_ranks_each() -> None:
    (table,) = tables(RUNS, PLAN)
    medians = {row.method: row.last["psnr"] for row in table.rows}
    assert [tuple(medians[m] or ()) for m in "AB"] == [(20.5, 10.0, 31.0), (23.0, 20.0, 26.0)]
    assert [(line[0], line[1]) for line in image_table(table).rows if line[-1] == "best"] == [
        ("a.jpg", "B"),
        ("b.jpg", "A"),
    ]
    assert len(image_text(table)) == 1 + 2 + 4
    assert "A,b.jpg,1," in as_csv(RUNS, PLAN)


def test_each_picture_has_its_own_folder_and_overrides() -> None:
    folders = {PLAN.folder(Path("r"), m, s, i) for m in PLAN.methods for s, i in PLAN.cases}
    assert len(folders) == 8
    assert Path("r/A/b.jpg/seed_1") in folders
    assert "data.path='kaffee, 1.png'" in overrides_of(PLAN, "A", "kaffee, 1.png")


def test_a_folder_stands_for_its_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert pictures_of(str(tmp_path)) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.png")]
    assert pictures_of(None) == []
    with pytest.raises(UserError, match="twice"):
        pictures_of(["a.jpg", "a.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        pictures_of(str(tmp_path / "empty"))


def test_experiments_take_the_place_of_a_sweep_file() -> None:
    assert arguments(["sweep=claims"]) == ["sweep=claims"]
    assert arguments(["experiments=[a,b]"])[1:] == ["sweep=experiments", "sweep.name=a+b"]
