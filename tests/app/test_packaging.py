"""The wheel: everything in it, and it runs from an empty folder."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_the_configuration(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert f"scoreexp/conf/{file.relative_to(ROOT / 'conf')}" in names
    for file in (path for path in (ROOT / "src").rglob("*.*") if path.suffix != ".pyc"):
        assert str(file.relative_to(ROOT / "src")) in names
    assert not [n for n in names if n.startswith(("tests/", "outputs/", "benchmarks/"))]


def test_installed_wheel_finds_its_configuration_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    command = [sys.executable, "-c", "import scoreexp.app.conf_dir as c; print(c.conf_dir())"]
    env = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        command, cwd=empty, env=env, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(found) == site / "scoreexp" / "conf"
    command = [sys.executable, "-m", "scoreexp.train", "--cfg", "job", "experiment=photo32_ddpm"]
    done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "name: photo32_ddpm" in done.stdout
    assert not list(empty.iterdir())


def test_constraints_pin_every_installed_dependency():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]

    missing = {re.split(r"[<>=\[; ]", d)[0].lower().replace("_", "-") for d in declared} - pinned
    assert not missing
