"""What the documentation shows is run as it stands there."""

import ast
import doctest
import importlib.util
import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_lines import check_command, is_whole, shell_lines, shown_commands
from conftest import composed
from hydra.utils import instantiate

import scoreexp
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import OracleDenoiser
from scoreexp.metrics.catalogue import metric_named, specs
from scoreexp.numerics.oracles import Gaussian

DOCS = Path(__file__).parents[2] / "docs"
README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not part of a wheel")


def blocks(path: Path) -> dict[str, str]:
    """Code blocks with a title, by title."""
    return dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', path.read_text(), re.S))


def test_docstrings_are_made_readable_for_the_site():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    result = doctest.testmod(hooks)
    assert result.attempted > 0
    assert result.failed == 0
    assert hooks.readable("So:\n\n>>> x\n1\n\nMore.") == "So:\n\n```pycon\n>>> x\n1\n```\n\nMore."


def test_adding_a_sampler_works_as_written(tmp_path, monkeypatch):
    found = blocks(DOCS / "adding_a_method.md")
    (tmp_path / "euler_maruyama_demo.py").write_text(found["euler_maruyama_demo.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    from omegaconf import OmegaConf

    sampler = instantiate(OmegaConf.create(found["conf/sampler/euler_maruyama_demo.yaml"]))
    variance = 0.25
    model = OracleDenoiser(
        Gaussian(torch.full((2,), 0.3, dtype=torch.float64), torch.full((2,), variance, dtype=torch.float64)),
        instantiate(composed("train", "schedule=vp").schedule),
    )
    streams = ImageStreams(range(1000))
    x = model.schedule.prior_std * streams.normal(torch.empty(1000, 2, dtype=torch.float64))
    result = sampler(model, x, streams=streams)
    # 200 Euler steps: the bias of the variance is below 0.02; 2000 draws: standard errors 0.011 and 0.008, here 4 of them
    assert float(result.x.mean()) == pytest.approx(0.3, abs=0.045)
    assert float(result.x.var()) == pytest.approx(variance, abs=0.02 + 0.032)
    sys.modules.pop("euler_maruyama_demo", None)


@pytest.mark.parametrize(
    ("group", "name", "prefix"),
    [("restorer", "pnp_gradient_demo", "test_a_restorer_"), ("noise", "student_noise_demo", "test_")],
)
def test_adding_a_restorer_and_a_noise_model_works_as_written(tmp_path, monkeypatch, group, name, prefix):
    found = blocks(DOCS / "adding_a_method.md")
    for file in (f"{name}.py", f"test_{name}.py"):
        (tmp_path / file).write_text(found[file])
    monkeypatch.syspath_prepend(str(tmp_path))
    contract = runpy.run_path(str(DOCS.parent / "tests" / "contracts" / f"test_{group}_configs.py"))
    checks = [check for key, check in contract.items() if key.startswith(prefix)]
    assert checks
    for check in checks:
        check(yaml.safe_load(found[f"conf/{group}/{name}.yaml"]))
    own = runpy.run_path(str(tmp_path / f"test_{name}.py"))
    (test,) = (check for key, check in own.items() if key.startswith("test_"))
    test()
    sys.modules.pop(name, None)


def test_a_metric_of_ones_own_works_as_written(tmp_path, monkeypatch):
    (tmp_path / "mean_absolute_error.py").write_text(blocks(DOCS / "metrics.md")["mean_absolute_error.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    metric = metric_named("mean_absolute_error.MeanAbsoluteError", "pictures")()
    metric.update(torch.full((2, 1, 4, 4), 0.75), torch.full((2, 1, 4, 4), 0.5))
    assert float(metric.compute()) == 0.25
    sys.modules.pop("mean_absolute_error", None)


def test_the_page_of_metrics_has_all_with_their_directions():
    rows = re.findall(r"^\|([^|]*)\|.* (higher|lower|neither) \|", (DOCS / "metrics.md").read_text(), re.M)
    shown = {name: direction for cell, direction in rows for name in re.findall(r"`(\w+)`", cell)}
    names = {name: spec.direction for spec in specs() for name in (spec.name, spec.published) if name}
    assert shown == names


def test_the_ten_lines_of_the_readme_do_what_they_say(capsys):
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(blocks(README)["ten_lines.py"], "ten_lines.py", "exec"), names)
    drawn = names["drawn"]
    assert drawn.mean(0).tolist() == pytest.approx([0.5, -0.2], abs=0.05)
    assert drawn.var(0).tolist() == pytest.approx([0.10, 0.02], rel=0.35)
    assert "tensor" in capsys.readouterr().out


def test_python_on_the_pages_names_what_is_there_and_parameters_that_exist():
    checked = 0
    for page in documents():
        names: dict[str, Any] = {"se": scoreexp}
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("scoreexp"):
                    exec(ast.unparse(node), names)
            for node in ast.walk(ast.parse(block)):
                written = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if not re.fullmatch(r"[\w.]+", written) or written.partition(".")[0] not in names:
                    continue
                called = eval(written, names)  # raises where there is no such name
                parameters = inspect.signature(called).parameters
                is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
                unknown = {keyword.arg for keyword in node.keywords} - set(parameters)
                assert is_open or not unknown, f"{page.name}: {written} has no {unknown}"
                checked += 1
    assert checked > 20


def documents() -> list[Path]:
    return [README, *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_choices_named_in_commands_exist(path):
    groups = {p.name for p in conf_dir().iterdir() if p.is_dir()}
    commands = re.sub(r"```python.*?```", "", path.read_text(), flags=re.S)
    shown_errors = re.compile(r"^(\$ |error: ).*$", re.M)  # a session with a mistake in it
    for group, values in re.findall(
        r"(?<![\w-])([a-z_]+)=([a-z0-9_]+(?:,[a-z0-9_]+)*)", shown_errors.sub("", commands)
    ):
        if group in groups:
            for value in values.split(","):
                known = {p.stem for p in (conf_dir() / group).glob("*.yaml")} | {"null"}
                assert value in known or "demo" in value, f"{path.name}: {group}={value}"


@pytest.mark.integration
@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_commands_compose_and_pass_the_check(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for title, text in blocks(path).items():  # a page's own components
        (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / title).write_text(text)
    for line in shown_commands(path.read_text()):
        check_command(line, monkeypatch, capsys)


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_every_command_of_a_page_is_found(path):
    """None hides in a block or a line of the text that the tests do not read."""
    text = re.sub(
        r"^\$ .*$", "", path.read_text().replace("\\\n", " "), flags=re.M
    )  # a session with a mistake in it
    named = re.findall(r"-m scoreexp\.\w+\b[^`\n]*", text)
    expected = {f"python {words.strip()}" for words in named if is_whole(f"python {words}")}
    assert set(shown_commands(text)) == expected


def test_the_error_that_the_readme_shows_is_the_one_that_is_said(monkeypatch, capsys):
    ((line, said),) = re.findall(
        r"^\$ (python -m scoreexp.*)\n(error: .*?) \.\.\.$", README.read_text(), re.M
    )
    with pytest.raises(AssertionError) as refused:
        check_command(line, monkeypatch, capsys)
    assert said in str(refused.value)


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_benchmarks_and_options_in_commands_exist(path):
    for line in shell_lines(path.read_text()):
        if found := re.search(r"-m (benchmarks(?:\.\w+)+)", line):
            place = README.parent / found[1].replace(".", "/")
            source = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__main__.py"
            assert source.is_file(), f"{path.name}: {line}"
            read = "".join(p.read_text() for p in source.parent.glob("*.py"))
            for option in re.findall(r"(?<=\s)--[a-z][\w-]*", line.partition(" # ")[0]):
                assert f'"{option}"' in read, f"{path.name}: {line} has no {option}"


def test_every_choice_has_a_row_in_the_page_of_its_group():
    pages = {
        "data.md": ["data"],
        "denoising.md": ["noise"],
        "guidance.md": ["guidance"],
        "metrics.md": ["features"],
        "networks.md": ["network", "optimizer"],
        "objectives.md": ["objective", "precond", "recipe", "schedule", "time_law"],
        "restoration.md": ["task"],
        "samplers.md": ["sampler"],
    }
    for page, groups in pages.items():
        rows = re.findall(r"^\|([^|]*)\|", (DOCS / page).read_text(), re.M)
        shown = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
        for group in groups:
            names = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
            assert names <= shown, f"{page} lacks {group}={', '.join(sorted(names - shown))}"


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_links_and_pictures_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", documents(), ids=lambda p: p.name)
def test_make_targets_exist(path):
    makefile = (README.parent / "Makefile").read_text()
    text = path.read_text()
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]+)\b", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"{path.name}: make {target}"


def test_the_tests_that_the_page_of_faults_names_are_there():
    page, folders = (
        (DOCS / "faults.md").read_text(),
        (DOCS.parent / "tests", DOCS.parent / "benchmarks/stack"),
    )
    found = "".join(path.read_text() for folder in folders for path in folder.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in found] == []
