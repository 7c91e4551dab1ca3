"""What users type and what they then read: lists, blanks, dashes, missing files, foreign classes, runs that do not begin."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_lines import run_module
from conftest import TINY, composed
from hydra.core.override_parser.overrides_parser import OverridesParser

from scoreexp.__main__ import commands, main
from scoreexp.app.commands.sample import sample
from scoreexp.app.commands.train import train
from scoreexp.app.composition import CommandLine, compose, joined_lists, readable, refuse_leftovers
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import single_values
from scoreexp.app.early_checks import require_data
from scoreexp.app.hydra_internals import hydra_of
from scoreexp.app.launch import run_app
from scoreexp.app.starting import in_words
from scoreexp.core.errors import UserError
from scoreexp.report import SCHEMA as REPORT
from scoreexp.runs.model import load
from scoreexp.samplers import start_from_observation
from scoreexp.schedules import EDM
from scoreexp.train import PROVIDED, SCHEMA


def command(capsys, *words):
    """Exit code and stderr of ``python -m scoreexp.train WORDS``."""
    task = "scoreexp.app.commands.train:train"
    code = run_app("train", task, schema=SCHEMA, provided=PROVIDED, argv=list(words))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["metrics=[ssim,", "psnr]", "a=1"], ["metrics=[ssim, psnr]", "a=1"]),
        (["+a.b=[1,", "[2,", "3]]"], ["+a.b=[1, [2, 3]]"]),
        (["a=[1]", "b"], ["a=[1]", "b"]),
        (["a=[1,", "2"], ["a=[1,", "2"]),  # never closed: left as it is
        ([], []),
    ],
)
def test_lists_that_the_shell_has_split(words, expected):
    assert joined_lists(words) == expected


def test_a_single_value_stands_for_a_list_where_only_a_list_will_do():
    config = {
        "runs": "DIR",
        "out": "x",
        "node": {"_target_": "scoreexp.data.Photo", "indices": 3, "name": "cat"},
    }
    assert dict(single_values(config, REPORT)) == {"runs": "DIR", "node.indices": 3}
    assert dict(single_values({"runs": ["DIR"], "out": None}, REPORT)) == {}


def test_a_name_with_blanks_is_answered_with_a_quotation_that_is_read(capsys):
    code, said = command(capsys, "data.path=photos/kaffee,", "heiß.png")
    assert code == 1
    quoted = said.strip().partition("or in quotes, ")[2]
    (override,) = shlex.split(quoted)
    (plain,) = readable([override], sweep=False)
    assert OverridesParser.create().parse_override(plain).value() == "photos/kaffee, heiß.png"


def test_keys_are_written_without_dashes(capsys):
    code, said = command(capsys, "--experiment=photo32_ddpm")
    assert code == 1
    assert said == (
        "error: --experiment=photo32_ddpm is no option: keys are given without dashes, write experiment=photo32_ddpm\n"
    )


def test_missing_files_are_named_before_torch_is_imported(tmp_path):
    program = (
        "import sys; from scoreexp.app.launch import run_app; from scoreexp.train import SCHEMA, PROVIDED\n"
        "code = run_app('train', 'scoreexp.app.commands.train:train', schema=SCHEMA, provided=PROVIDED, argv=sys.argv[1:])\n"
        "print([code, 'torch' in sys.modules])"
    )
    for words, expected in (
        (["data.path=missing.png"], "data.path=missing.png does not exist"),
        (
            ["experiment=celeba64_ours", "data.root=nowhere"],
            "data.root=nowhere does not exist: it must hold",
        ),
    ):
        result = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert ast.literal_eval(result.stdout) == [1, False]
        assert expected in result.stderr
        assert list(tmp_path.iterdir()) == []


def test_data_prepared_elsewhere_need_no_root(tmp_path):
    require_data({"root": "nowhere", "cache": str(tmp_path)})
    with pytest.raises(UserError, match=r"data\.root=nowhere does not exist"):
        require_data({"root": "nowhere"})


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("MNIST", "python -m benchmarks.data.mnist"), ("CIFAR10", "170 MB"), ("FFHQ", "thumbnails128x128")],
)
def test_a_data_set_that_is_not_there_says_where_it_comes_from_also_where_its_class_puts_that_together(
    name, remedy
):
    with pytest.raises(UserError, match=rf"data\.root=nowhere does not exist: it must hold .*{remedy}"):
        require_data({"_target_": f"scoreexp.data.{name}", "root": "nowhere"})


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("denoise", [], "input is required: add input=VALUE (image or folder)"),
        ("denoise", ["my.jpg"], "my.jpg is not KEY=VALUE: write it without blanks, such as input=my.jpg"),
        (
            "sample",
            ["best.ckpt"],
            "best.ckpt is not KEY=VALUE: write it without blanks, such as ckpt=best.ckpt",
        ),
        (
            "report",
            ["runs=."],
            "no run in . (a run has a config.yaml): give run folders, or folders that contain some",
        ),
        (
            "train",
            ["experiment=photo32_ddpm", "sampler.steps=50"],
            "sampler.steps=50: unknown key; did you mean 'sampler.grid.steps'?",
        ),
        (
            "denoise",
            ["--input", "my.jpg"],
            "--input is no option: keys are given without dashes, as in KEY=VALUE",
        ),
        (
            "denoise",
            ["input=my.jpg", "sigma=0,1"],
            "sigma=0,1 is a sweep: add -m to run each value, or write sigma=0.1",
        ),
        (
            "denoise",
            ["input=notes.txt"],
            "input=notes.txt: images with the suffix .txt are not read, those with .png, ",
        ),
    ],
)
def test_what_a_stranger_types_first_is_answered_with_what_is_wanted(
    name, words, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert run_module(f"scoreexp.{name}", words, monkeypatch) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_report_that_cannot_be_written_names_its_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: ddpm")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert run_module("scoreexp.report", ["runs=run", "out=file/below"], monkeypatch) == 1
    said = "error: the report cannot be written to file/below: give a folder with out=DIR\n"
    assert capsys.readouterr().err == said


def test_the_command_alone_lists_all_with_what_they_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scoreexp"])
    main()
    shown = capsys.readouterr().out
    for name in commands():
        assert re.search(rf"^  {name} +[a-z].*\w\w$", shown, re.MULTILINE), name


def test_the_doctor_takes_nothing_and_help_lists_no_key_that_is_not_explained(monkeypatch, capsys):
    assert run_module("scoreexp.denoise", ["--help"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "  seed=0 " in shown
    assert "run_dir" not in shown
    assert run_module("scoreexp.doctor", ["--help"], monkeypatch) == 0
    assert capsys.readouterr().out.startswith("usage: python -m scoreexp.doctor\n\nWhat this machine offers")
    said = run_module("scoreexp.doctor", ["device=cpu"], monkeypatch)  # written to stderr, exit code 1
    assert str(said).startswith("error: device=cpu: doctor takes nothing")


def test_names_of_weights_that_do_not_fit_are_not_cut_off():
    said = 'Unexpected key(s) in state_dict: "network.layers.0.weight", "network.layers.0.bias".'
    assert in_words(said) == "it has network.layers.0.weight"


def test_a_level_of_255_is_taken_for_one():
    with pytest.raises(
        UserError, match=r"^sigma=25 in units of \[0, 1\] .* from 0\.005 to 0\.5 \(25 of 255 is 0\.098\)$"
    ):
        start_from_observation(EDM(sigma_min=0.01, sigma_max=1.0), torch.ones(1, 1), 50.0)


def test_images_smaller_than_the_window_of_ssim_are_refused_before_training(tmp_path):
    cfg = composed("train", *TINY, "data.size=8", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(
        UserError, match=r"data\.size=8: the SSIM of callbacks\.monitor has windows of 11 pixels"
    ):
        train(cfg)
    assert list(tmp_path.iterdir()) == []


OWN = """
import numpy as np
from scoreexp.data import DataModule
from scoreexp.data.split import Split
from scoreexp.networks import UNet


class Mine(DataModule):
    event_shape = (3, 16, 16)

    def open_split(self, name):
        return Split(np.zeros((4, 3, 16, 16), np.float32))


class MyNet(UNet):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a data set and a network of the user's own, and yaml files that hold nothing but their names."""
    (tmp_path / "own_classes.py").write_text(OWN)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("_target_: own_classes.Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_yaml_that_names_only_its_class_has_the_common_keys(own, capsys):
    words = [*TINY, "trainer.max_steps=1", "data.batch_size=2", "run_dir=run"]
    words = [word for word in words if not word.startswith("data.size")]
    code, said = command(capsys, "--config-dir=.", "data=mine", *words)
    assert code == 0, said
    assert Path("run/metrics.json").exists()


def test_a_run_that_has_not_begun_leaves_nothing(own, monkeypatch):
    monkeypatch.setattr("scoreexp.app.commands.train._describe", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(composed("train", *TINY, f"run_dir={own / 'deep' / 'run'}"))
    assert not (own / "deep").exists()


def test_a_checkpoint_with_own_classes_is_read_by_those_who_trust_it(own, capsys):
    result = train(
        composed(
            "train",
            *TINY,
            "trainer.max_steps=1",
            "network._target_=own_classes.MyNet",
            f"run_dir={own / 'run'}",
        )
    )
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "scoreexp.sample" in line]
    words = shlex.split(line)
    assert "trust=[own_classes]" in words
    with pytest.raises(UserError, match=r"add trust=\[own_classes\]"):
        load(result.checkpoint)
    given = [word for word in words if "=" in word and not word.startswith("n=")]
    sample(composed("sample", *given, "n=1", "sampler.grid.steps=1", "device=cpu", f"out={own / 'drawn'}"))
    assert (own / "drawn" / "seed_000000.png").exists()


def test_keys_that_an_experiment_sets_for_a_part_that_the_recipe_replaces_are_refused_with_what_to_add(
    capsys, tmp_path
):
    words = ["experiment=mnist_ddpm", "recipe=dit", f"run_dir={tmp_path / 'run'}"]
    code, said = command(capsys, *words)
    assert code == 1
    # the new part has channels too, and would have taken them silently
    assert said == (
        "error: network.channels=64, network.attention_resolutions=[14], network.dropout=0.1 of experiment=mnist_ddpm for "
        "network=unet, which recipe=dit replaces by network=dit: add network.channels=128 ~network.attention_resolutions "
        "~network.dropout, or keep network=unet\n"
    )
    more = ["network.channels=64", "~network.attention_resolutions", "~network.dropout"]
    line = CommandLine(hydra_of("train", conf_dir(), None), conf_dir(), "train", [*words, *more])
    refuse_leftovers(line, compose(line))  # the command line means what it says


def test_a_key_of_the_part_that_a_recipe_replaces_is_answered_with_the_recipe(capsys):
    code, said = command(capsys, "experiment=photo32_ddpm", "recipe=dit", "network.multipliers=[1,2]")
    assert code == 1
    assert said.count("\n") == 1
    assert said.startswith(
        "error: network.multipliers=[1,2]: recipe=dit replaces network=unet by network=dit, which has no such key"
    )
    assert said.endswith("; leave it out, or keep network=unet\n")
