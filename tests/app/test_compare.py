"""Comparisons: what is refused before anything runs, what each run is given, and one from end to end."""

import csv
import json
import shutil

import pytest
from conftest import TINY, composed
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from scoreexp.app.commands import compare as comparing
from scoreexp.app.commands.compare import compare, report
from scoreexp.app.comparison_jobs import (
    cases_of,
    checked_config,
    checked_configs,
    job_of,
    overrides_of,
    unequal,
)
from scoreexp.app.comparison_plan import plan_of
from scoreexp.app.composition import composed as composed_config
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import check_config
from scoreexp.app.jobs import JobStatus
from scoreexp.app.launch import run_app
from scoreexp.compare import SCHEMA, arguments
from scoreexp.core.errors import UserError

SWEEPS = sorted(
    {path.stem for path in (conf_dir() / "sweep").glob("*.yaml")} - {"experiments"}
)  # it has no methods of its own


def configuration(tmp_path, *overrides: str):
    return composed("compare", "sweep=compare_quick", f"run_dir={tmp_path}", *overrides)


@pytest.fixture
def asked(monkeypatch):
    """The jobs that would have been run; each ends as ``asked.ending`` says."""

    class Asked(list):
        ending = JobStatus("done", 0)

    jobs = Asked()

    def run(given, **_):
        jobs.extend(given)
        if isinstance(jobs.ending, BaseException):
            raise jobs.ending
        return [jobs.ending for _ in given]

    monkeypatch.setattr(comparing, "run_jobs", run)
    return jobs


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_sound_and_gives_all_methods_the_same_conditions(name, tmp_path):
    cfg = composed("compare", f"sweep={name}", "sweep.seeds=[0]", f"run_dir={tmp_path}")
    assert check_config(OmegaConf.to_container(cfg, resolve=True), schema=SCHEMA) == []
    assert cfg.sweep.name == name
    plan = plan_of(cfg)
    cases = cases_of(plan, list(plan.methods))
    configs = checked_configs(cases, [job_of(plan, case, tmp_path) for case in cases])
    assert unequal(configs) == []
    for config in configs.values():
        assert config["callbacks"]["budget"]["seconds"] == plan.seconds


def test_what_is_equal_for_all_wins_over_what_a_method_says(tmp_path):
    cfg = configuration(tmp_path, "overrides=['trainer.devices=1']")
    cfg.sweep.methods = {"a": ["callbacks.budget.seconds=9"]}
    cfg.sweep.baseline = None
    budget = overrides_of(plan_of(cfg), "a")
    assert budget[0] == "callbacks.budget.seconds=9"
    assert {"callbacks.stop.target=null", "trainer.max_steps=-1", "trainer.devices=1"} <= set(budget)
    assert [o for o in budget if o.startswith("callbacks.budget")][-1] == "callbacks.budget.seconds=40"
    cfg.sweep.mode = "target"
    target = overrides_of(plan_of(cfg), "a")
    assert "callbacks.stop.target=0.95" in target
    assert not any(o.startswith("trainer.max_steps") for o in target)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["methods=[score_embeding]"], "did you mean 'score_embedding'"),
        (["sweep.mode=target", "sweep.target=null"], "sweep.mode=target needs sweep.target"),
        (["sweep.seconds=null"], "sweep.mode=budget needs sweep.seconds"),
        (["sweep.seeds=[1,1]"], "names a seed twice"),
        (["sweep.seeds=[]"], "at least one method and one seed"),
        (
            ["sweep.baseline=DDPM_tunde"],
            "sweep.baseline=DDPM_tunde is not one of the methods; did you mean 'DDPM_t",
        ),
        (["overrides=['network.chanels=3']"], r"score_embedding, seed 0: network\.chanels=3"),
        (
            ["overrides=['trainer.log_every_n_steps=none']"],
            r"score_embedding, seed 0: trainer\.log_every_n_steps=none",
        ),
        (["report_only=true"], "holds no comparison"),
    ],
)
def test_an_impossible_comparison_is_refused_before_anything_runs(overrides, match, tmp_path, asked):
    with pytest.raises(UserError, match=match):
        compare(configuration(tmp_path, *overrides))
    assert not asked
    assert not list(tmp_path.iterdir())


def test_unequal_data_are_warned_of(tmp_path, asked, capsys):
    compare(configuration(tmp_path, "sweep.common=[]", "methods=[score_embedding,score_CNN]"))
    said = capsys.readouterr().out
    assert "warning: the methods differ in data.crop (center, random)" in said


def test_a_folder_with_other_settings_is_refused(tmp_path, asked):
    arguments = ["methods=[exact_score]", "sweep.seeds=[3]"]
    folder = tmp_path / "exact_score" / "seed_3"
    folder.mkdir(parents=True)
    compare(configuration(tmp_path, *arguments))
    stored = checked_config("stored", [*asked[0].overrides, asked[0].folder_override])
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    compare(configuration(tmp_path, *arguments))
    stored["data"]["size"] = 64
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    with pytest.raises(
        UserError, match=r"other settings \(data\.size was 64, is now 32\): give another run_dir"
    ):
        compare(configuration(tmp_path, *arguments))


def test_the_report_is_written_whatever_the_runs_come_to(tmp_path, asked):
    asked.ending = JobStatus("failed", 1, "no luck")
    with pytest.raises(
        UserError, match="2 of 2 jobs failed: exact_score, seed 0, exact_score, seed 1; the same"
    ):
        compare(configuration(tmp_path / "a", "methods=[exact_score]", *_made(tmp_path / "a")))
    assert "No run has finished" in (tmp_path / "a" / "report.html").read_text()
    asked.ending = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        compare(configuration(tmp_path / "b", "methods=[exact_score]", *_made(tmp_path / "b")))
    assert (tmp_path / "b" / "report.html").exists()


def _made(folder):
    folder.mkdir()
    return ()


def test_methods_of_an_earlier_call_stay_in_the_report(tmp_path, asked):
    compare(configuration(tmp_path, "methods=[exact_score]"))
    (tmp_path / "exact_score").mkdir()
    compare(configuration(tmp_path, "methods=[DDPM_tuned]"))
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert list(stored["methods"]) == ["DDPM_tuned", "exact_score"]
    assert [job.folder.relative_to(tmp_path).as_posix() for job in asked[2:]] == [
        "DDPM_tuned/seed_0",
        "DDPM_tuned/seed_1",
    ]


def test_composing_jobs_leaves_this_process_s_own_configuration_alone(tmp_path, asked):
    before = HydraConfig.instance().cfg
    compare(configuration(tmp_path, "methods=[exact_score]"))
    assert HydraConfig.instance().cfg is before


@pytest.mark.integration
def test_a_comparison_from_end_to_end_and_again(tmp_path, capfd):
    tiny = [o for o in TINY if o.startswith(("data.size", "sampler", "trainer"))]
    arguments = ["methods=[exact_score]", "sweep.seeds=[0]", f"overrides=[{','.join(map(repr, tiny))}]"]
    page = compare(configuration(tmp_path, *arguments))
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["state"] == "done"
    assert row["reached"] == "True"
    assert float(row["seconds_to_target"]) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 3, "noisy, denoised, clean"
    assert "python -m scoreexp.train experiment=photo32_exact" in text
    capfd.readouterr()
    compare(configuration(tmp_path, *arguments))
    assert "is done already" in capfd.readouterr().err
    alone = tmp_path / "elsewhere"
    report(composed("report", f"runs=[{tmp_path / 'exact_score'}]", f"out={alone}", "title=Mine"))
    assert "<h1>Mine</h1>" in (alone / "report.html").read_text()


OWN = {
    "experiment/own.yaml": "# @package _global_\n# Mine.\ndefaults: [photo32_exact, _self_]\nname: own\nseed: 5\n",
    "sweep/own.yaml": (
        "# Mine.\nname: own\ntitle: Mine\nmode: budget\nmonitor: val/ssim_confirmed\ntarget: null\nseconds: 1\n"
        "seeds: [3]\nbaseline: null\ncommon: []\nmethods: {mine: [experiment=own]}\n"
    ),
}


def test_a_method_in_a_folder_of_its_own_reaches_the_jobs(tmp_path, asked, capsys, monkeypatch):
    for name, text in OWN.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    argv = ["--config-dir=own", "sweep=own", f"run_dir={tmp_path / 'out'}"]
    assert run_app("compare", "scoreexp.app.commands.compare:compare", schema=SCHEMA, argv=argv) == 0
    (job,) = asked
    assert job.overrides[0] == f"--config-dir={tmp_path / 'own'}"
    monkeypatch.chdir("/")
    given = [*job.overrides, job.folder_override]
    assert run_app("train", "scoreexp.app.commands.train:train", argv=["--cfg=job", *given]) == 0
    assert "name: own\nseed: 3\n" in capsys.readouterr().out


def test_experiments_are_compared_under_the_protocol_of_the_first(tmp_path, asked, capsys):
    experiment = tmp_path / "own" / "experiment" / "grey.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(
        "# @package _global_\n# Grey.\ndefaults: [photo32_exact, _self_]\nname: grey\nseed: 5\n"
        "data: {channels: 1}\ncallbacks: {monitor: {confirm: 1}, stop: {target: 0.9}}\n"
    )
    given = ["experiments=[grey,photo32_exact]", "data.size=16", f"run_dir={tmp_path / 'out'}"]
    argv = arguments([f"--config-dir={tmp_path / 'own'}", *given])
    assert run_app("compare", "scoreexp.app.commands.compare:compare", schema=SCHEMA, argv=argv) == 0
    configs = [composed_config([*job.overrides, job.folder_override], "train") for job in asked]
    assert [config["name"] for config in configs] == ["grey", "photo32_exact"]
    for config in configs:
        assert (config["seed"], config["data"]["channels"], config["data"]["size"]) == (5, 1, 16)
        assert config["callbacks"]["monitor"]["confirm"] == 1
        assert config["callbacks"]["stop"]["target"] == 0.9
    assert "data.channels=1 " in capsys.readouterr().out


def test_experiments_that_observe_different_things_have_no_common_protocol(tmp_path, asked, capsys):
    argv = arguments(["experiments=[photo32_exact,photo32_ouve]", "sweep.target=0.9", f"run_dir={tmp_path}"])
    assert run_app("compare", "scoreexp.app.commands.compare:compare", schema=SCHEMA, argv=argv) == 1
    error = capsys.readouterr().err
    assert "photo32_exact denoise images (callbacks.monitor.sigma), photo32_ouve restore what" in error
    assert error.count("\n") == 1
    assert not asked


def test_a_whole_configuration_of_ones_own_reaches_the_jobs(tmp_path, asked):
    folder = shutil.copytree(conf_dir(), tmp_path / "conf")
    (folder / "sweep" / "own.yaml").write_text(OWN["sweep/own.yaml"])
    (folder / "experiment" / "own.yaml").write_text(OWN["experiment/own.yaml"])
    argv = [f"--config-path={folder}", "sweep=own", f"run_dir={tmp_path / 'out'}"]
    assert run_app("compare", "scoreexp.app.commands.compare:compare", schema=SCHEMA, argv=argv) == 0
    assert asked[0].overrides[0] == f"--config-path={folder}"


def test_without_such_folders_jobs_are_given_none(tmp_path, asked):
    argv = ["sweep=compare_quick", "methods=[exact_score]", f"run_dir={tmp_path}"]
    assert run_app("compare", "scoreexp.app.commands.compare:compare", schema=SCHEMA, argv=argv) == 0
    assert not [given for job in asked for given in job.overrides if given.startswith("-")]
