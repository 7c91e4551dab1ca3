"""Makes docstrings and pages readable on the site: the README as its first page, reST formulas and literals as Markdown."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the README as ``index.md``, its links made those of this folder."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\[docs/(\w+)\.md\]", lambda page: f"[{page[1].replace('_', ' ')}]", text)
    text = text.replace("](docs/", "](")
    text = re.sub(r"\[([^\]]*)\]\((?:notebooks|benchmarks)/[^)]*\)", r"\1", text)
    files.append(File.generated(config, "index.md", content=text))
    return files


class Readable(griffe.Extension):
    """Docstrings whose formulas stand in ``.. math::`` blocks, as code blocks; lazily imported names are public."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        if "on_first_use" in mod.members:
            mod.exports = [name for name in mod.imports if name not in ("TYPE_CHECKING", "on_first_use")]

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """``text`` with formulas and examples as code blocks and double backticks as Markdown's.

    >>> readable("See ``x``.\\n\\n.. math:: a = b,\\n          c = d\\n\\nMore.")
    'See `x`.\\n\\n```tex\\na = b,\\nc = d\\n```\\n\\nMore.'
    """

    def block(found: re.Match[str]) -> str:
        lines = [line.strip() for line in found[2].strip().splitlines()]
        return "\n".join(found[1] + line for line in ["```tex", *lines, "```"]) + "\n"

    def example(found: re.Match[str]) -> str:
        return f"```pycon\n{found[0].rstrip()}\n```\n"

    text = re.sub(r"``([^`]+)``", r"`\1`", text)  # before there are fences of three
    text = re.sub(r"^([ ]*)\.\. math::[ ]*\n?((?:.*\S.*\n?)+)", block, text, flags=re.MULTILINE)
    return re.sub(r"^>>> (?:.*\S.*\n?)+", example, text, flags=re.MULTILINE)
