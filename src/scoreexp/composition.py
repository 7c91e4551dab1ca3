"""Composing a configuration with Hydra, with errors that name the key or choice and what is allowed."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from scoreexp.config_check import known_keys
from scoreexp.errors import UserError
from scoreexp.signatures import closest, suggest


class CommandLine(NamedTuple):
    """What is composed: `overrides` of the primary configuration `config_name` in a folder."""

    hydra: Hydra
    folder: Path
    config_name: str
    overrides: list[str]


def wants_full_error() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def compose(command_line: CommandLine, mode: RunMode = RunMode.RUN) -> DictConfig:
    """The composed configuration.

    Raises:
        UserError: if it cannot be composed; names the key or choice and what is allowed.
    """
    hydra, _, config_name, overrides = command_line
    with explaining(command_line):
        return hydra.compose_config(config_name, list(overrides), mode, with_log_configuration=False)


@contextmanager
def explaining(command_line: CommandLine) -> Iterator[None]:
    """Turn errors of Hydra's composition into a UserError."""
    try:
        yield
    except Exception as error:
        if wants_full_error():
            raise
        raise UserError(_explain(error, command_line)) from error


def _explain(error: Exception, command_line: CommandLine) -> str:
    text = str(error)
    if isinstance(error, OverrideParseException):
        reason = text.splitlines()[0 if error.override not in text.splitlines()[0] else 1]
        return f"{error.override} cannot be read as key=value ({reason.strip()}); quote special characters"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        primaries = [path.stem for path in command_line.folder.glob("*.yaml")]
        return _explain_choice(group, choice, (error.options or []) if group else primaries)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if _unknown_key(error):
        return _explain_keys(error, command_line)
    if found := re.match(r"Ambiguous value for argument '(.+?)=(.+)'", text):
        key, values = found.groups()
        return f"{key}={values} is a sweep: add -m to run each value, or write {key}=[{values}] for a list"
    if found := re.match(r"Multiple values for (.+?)\. ", text):
        return f"{found[1]} already has a choice: write {found[1]}=CHOICE once, without +"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return first_lines(error)
    loader = command_line.hydra.config_loader
    for group, _, choice in (override.partition("=") for override in command_line.overrides):
        options = loader.get_group_options(group) if group else []
        if options and choice not in options:
            return _explain_choice(group, choice, options)
    given = " ".join(command_line.overrides)
    return f"the configuration cannot be composed from '{given}'; write key=value or group=choice"


def _explain_choice(group: str, choice: str, options: Sequence[str]) -> str:
    what = f"{group}={choice} is not a choice of {group}" if group else f"no configuration is named {choice}"
    return f"{what}{suggest(choice, options)} (choices: {', '.join(sorted(options)) or 'none'})"


def _unknown_key(error: Exception) -> str | None:
    found = re.match(r"Could not override '(.+?)'", str(error))
    return found[1] if found else None


def _explain_keys(error: Exception, command_line: CommandLine) -> str:
    """Explain unknown keys, all at once, by what the rest of the command line knows."""
    hydra, _, config_name, overrides = command_line
    unknown: dict[str, str] = {}
    while key := _unknown_key(error):
        given = next((override for override in overrides if override.partition("=")[0] == key), None)
        if given is None:
            return first_lines(error)
        unknown[key] = given
        overrides = [override for override in overrides if override != given]
        try:
            cfg = hydra.compose_config(
                config_name, list(overrides), RunMode.MULTIRUN, with_log_configuration=False
            )
            break
        except Exception as further:
            error = further
    else:
        return _explain(error, command_line)
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    own_keys = known_keys({key: value for key, value in plain.items() if key != "hydra"})
    hydra_keys = known_keys({"hydra": plain["hydra"]})
    groups = [group for group in map(str, cfg.hydra.runtime.choices) if not group.startswith("hydra")]
    lines = []
    for key, given in unknown.items():
        known = hydra_keys if key.startswith("hydra.") else own_keys
        if key in known or hydra.config_loader.get_group_options(key):
            lines.append(f"{given}: {key} is not written in the configuration files; add it with +{given}")
        else:
            lines.append(f"{given}: unknown key{_suggest_key(key, [*known, *groups])}")
    return "\n".join(lines)


def first_lines(error: Exception) -> str:
    """The message of a Hydra or OmegaConf error and of its cause on one line."""
    heads = [
        str(part).strip().splitlines()[0] for part in (error, error.__cause__) if str(part or "").strip()
    ]
    key = getattr(error, "full_key", None)
    return (f"{key}: " if key else "") + ": ".join(heads)


def _suggest_key(unknown: str, known: Collection[str]) -> str:
    """The likeliest intended key: a sibling, else the same name elsewhere, else anything similar."""
    parent, _, leaf = unknown.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
    sibling = closest(leaf, siblings)
    if sibling is not None:
        return f"; did you mean '{siblings[sibling]}'?"
    elsewhere = [key for key in known if key.rpartition(".")[2] == leaf]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    if parent and siblings and len(siblings) <= 15:
        return f"; known: {', '.join(siblings)}"
    return suggest(unknown, known) or "; --cfg job shows all keys"


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The task's part of a configuration as plain data with interpolations resolved."""
    HydraConfig.instance().set_config(cfg)
    task_cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        return OmegaConf.to_container(task_cfg, resolve=True)  # type: ignore[return-value]
    except InterpolationToMissingValueError:
        return OmegaConf.to_container(task_cfg, resolve=False)  # type: ignore[return-value]
    except InterpolationKeyError as error:
        wanted = re.sub(r".*key '(.*)' not found.*", r"\1", str(error).splitlines()[0])
        plain: Any = OmegaConf.to_container(task_cfg, resolve=False)
        raise UserError(first_lines(error) + suggest(wanted, known_keys(plain))) from error
