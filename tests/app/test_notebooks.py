"""The notebooks run from the first cell to the last, and are stored as text that explains: no outputs, no methods."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PICTURES = {  # drawn by a complete run
    "01_swiss_roll_and_exact_scores": 7,
    "02_score_embedding_step_by_step": 8,
    "03_reading_a_comparison": 2,
}
SHORTER = {  # what a complete run does more often than it takes to see that it runs
    "01_swiss_roll_and_exact_scores": {"=300": "=20"},
    "03_reading_a_comparison": {
        "max_steps=40": "max_steps=4",
        "val_check_interval=10": "val_check_interval=2",
    },
}

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path):
    """The Python of a notebook, one string per cell, without magics."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [re.sub(r"^%.*$", "", cell.source, flags=re.M) for cell in cells]


def test_these_are_the_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)


@every
def test_is_stored_without_outputs_or_traces_of_its_author(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(stored)
    assert stored["metadata"] == METADATA
    for cell in stored["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    text = "".join("".join(cell["source"]) for cell in stored["cells"])
    assert not re.search(r"(?<![\w.:/])/(home|work|root|tmp|Users|mnt|opt)\b|[A-Z]:\\", text), (
        "an absolute path"
    )


@every
def test_defines_no_methods_and_ends_with_what_to_try_next(path):
    for cell in code_of(path):
        defined = [
            n
            for n in ast.walk(ast.parse(cell))
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        assert not defined, (
            f"line {defined[0].lineno} of the cell defines something: import it from scoreexp\n{cell}"
        )
    assert "## What to try next" in nbformat.read(path, as_version=4).cells[-1].source


@every
def test_links_lead_to_files(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    named = re.findall(r"`(\d\d_\w+\.ipynb)`", text)
    assert [name for name in (*linked, *named) if not (path.parent / name).exists()] == []


@every
def test_named_experiments_and_sweeps_exist(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    named = re.findall(r"\b(experiment|sweep|objective|embedding)=(\w+)", text)
    missing = [
        f"{group}={name}" for group, name in named if not (ROOT / "conf" / group / f"{name}.yaml").exists()
    ]
    assert missing == []


def shorten(notebook, settings):
    for long, short in settings.items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and long in cell.source]
        assert len(cells) == 1, f"{long} is in {len(cells)} cells"
        cells[0].source = cells[0].source.replace(long, short)


@pytest.mark.integration
@every
def test_runs_from_the_first_cell_to_the_last(path, tmp_path, monkeypatch):
    # a kernel of this interpreter, whatever kernels and profiles the user has installed
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    work = tmp_path / "work"
    work.mkdir()
    for name, value in {
        "JUPYTER_PATH": tmp_path / "jupyter", "IPYTHONDIR": tmp_path / "ipython", "TMPDIR": tmp_path,
        "OMP_NUM_THREADS": 1,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(path, as_version=4)
    shorten(notebook, SHORTER.get(path.stem, {}))
    NotebookClient(
        notebook, kernel_name="python3", timeout=250, resources={"metadata": {"path": str(work)}}
    ).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[path.stem]
    said = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"
    )
    assert "Warning" not in said, said
    assert list(work.iterdir()) == [], "notebooks leave nothing behind"
