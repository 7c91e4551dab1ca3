"""The text of an entry point's ``--help``, read from the comments of the configuration files."""

import re
import sys

from omegaconf import DictConfig

from scoreexp.app.composition import CommandLine


def help_text(command_line: CommandLine, cfg: DictConfig) -> str:
    """Usage, keys, groups and experiments with one line each."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec is not None else f"python {sys.argv[0]}"
    loader = command_line.hydra.config_loader
    choices = {str(group): choice for group, choice in reversed(cfg.hydra.runtime.choices.items())}
    groups = [group for group in choices if not group.startswith("hydra") and group != "experiment"]
    lines = [f"usage: {program} [KEY=VALUE ...]{' [GROUP=CHOICE ...]' if groups else ''}", ""]
    text = _text(command_line)
    if description := _first_comment(text):
        lines += [description, ""]
    if keys := [(f"{key}={value}", comment) for key, value, comment in _keys(text) if comment]:
        width = max(len(key) for key, _ in keys)
        lines += ["Keys:", *(f"  {key:<{width}}  {comment}".rstrip() for key, comment in keys), ""]
    if groups:
        lines.append("Groups (* marks the current choice):")
        for group in groups:
            options = loader.get_group_options(group.partition("@")[0])
            if group.partition("@")[0].endswith("/base"):  # nothing to choose
                continue
            marked = [f"{option}*" if option == choices[group] else option for option in options]
            lines.append(f"  {group}={' | '.join(marked)}")
        lines.append("")
    experiments = loader.get_group_options("experiment") if "experiment" in choices else []
    if experiments:
        width = max(map(len, experiments))
        lines.append("Experiments (experiment=NAME):")
        for name in experiments:
            file = command_line.folder / "experiment" / f"{name}.yaml"
            about = _first_comment(file.read_text(encoding="utf-8")) if file.is_file() else ""
            lines.append(f"  {name:<{width}}  {about}".rstrip())
        lines.append("")
    lines += [
        "--cfg job shows every key of the composed configuration; any of them can be set as KEY=VALUE.",
        "-m KEY=A,B runs one job for each combination of values. --hydra-help lists Hydra's own options.",
    ]
    return "\n".join(lines) + "\n"


def meaning_of(command_line: CommandLine, key: str) -> str:
    """What the comment of a key at the top level says of it; empty where it has none."""
    return next((comment for name, _, comment in _keys(_text(command_line)) if name == key), "")


def _text(command_line: CommandLine) -> str:
    primary = command_line.folder / f"{command_line.config_name}.yaml"
    return primary.read_text(encoding="utf-8") if primary.is_file() else ""


def _first_comment(text: str) -> str:
    comments = (line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    return next((comment for comment in comments if comment and not comment.startswith("@package")), "")


def _keys(text: str) -> list[tuple[str, str, str]]:
    """Key, default and trailing comment of each scalar at the top level of a yaml file."""
    rows = re.findall(r"^(\w+):[ \t]*([^#\n]*?)[ \t]*(?:#[ \t]*(.*))?$", text, flags=re.MULTILINE)
    return [(key, "REQUIRED" if value == "???" else value, comment) for key, value, comment in rows if value]
