"""The study of the papers' tables on their kinds of images: its commands, its images and its times to a target."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scoreexp.runs.reporting.runs import Run

study = pytest.importorskip("benchmarks.study_claims_images", reason="benchmarks are not part of the package")


def test_a_target_is_reached_at_the_second_of_two_evaluations():
    values = {10: 0.985, 20: 0.94, 30: 0.951, 40: 0.96, 50: 0.981}
    rows = [
        {"step": n, "val/ssim_rescaled": v, "time/total": n / 5, "time/evaluate": n / 10}
        for n, v in values.items()
    ]
    config = {"trainer": {"val_check_interval": 10}}
    row = study.row_of(Run(Path("x"), "ours", 0, config=config, rows=rows), "a", "val/ssim_rescaled")
    assert row["reached"] == {"0.90": (20, 2.0), "0.95": (40, 4.0), "0.98": None, "0.99": None}
    assert (row["best"], row["interval"], row["image"]) == (0.985, 10, "a")


def test_images_are_the_first_that_suit_and_too_few_are_said(tmp_path):
    (tmp_path / "faces64").mkdir()
    for name in ("s2_1", "s1_1", "s1_2"):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "faces64" / f"{name}.png")
    faces = study.STAGES["faces64"]
    assert [p.stem for p in study.pictures(faces, 2, tmp_path, tmp_path / "out")] == ["s1_1", "s2_1"]
    with pytest.raises(SystemExit, match="holds 2 suitable images, 10 were asked for"):
        study.pictures(faces, 10, tmp_path, tmp_path / "out")


def test_three_images_are_trained_on_together_from_the_conditional_start(tmp_path):
    given = argparse.Namespace(
        data=tmp_path, weight=0.25, seconds=60.0, seeds=[0, 1], methods=["DDIM"], override=["a=1"]
    )
    words = study.command(study.STAGES["generation3"], None, given, tmp_path / "run")
    assert {"sweep=claims_generation", "sweep.target=0.95", "sweep.seeds=[0,1]", "methods=[DDIM]"} < set(
        words
    )
    (overrides,) = (json.loads(w.partition("=")[2]) for w in words if w.startswith("overrides="))
    assert {"a=1", "data=cifar10", "data.num_images=3", "callbacks.monitor.restorer.weight=0.25"} < set(
        overrides
    )
