"""Composing a configuration with Hydra, with errors that name the key or choice and what is allowed.

Hydra's grammar reads no umlaut, no ``#`` and no parenthesis in the middle of a value. What it cannot read and what is not
meant as a quotation, list or mapping is taken literally here, as names of files want it: ``input=~/Bücher (1).png``.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override
from omegaconf.errors import InterpolationKeyError, InterpolationToMissingValueError, OmegaConfBaseException

from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import known_keys, show, single_values
from scoreexp.app.hydra_internals import Hydra, get_args_parser, hydra_of
from scoreexp.app.jobs import quoted
from scoreexp.app.signatures import closest, suggest
from scoreexp.core.errors import UserError
from scoreexp.core.moves import current_name

_KEY = re.compile(r"[+~]*[\w./@:-]+")
_FLAT_LIST = re.compile(r"\[[^\[\]{}()'\"]*\]")
_COMMA = re.compile(r",(?![^(]*\))")  # not one between parentheses


class CommandLine(NamedTuple):
    """What is composed: ``overrides`` (see ``readable``) of the primary configuration ``config_name`` in a folder."""

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
        cfg = hydra.compose_config(config_name, list(overrides), mode, with_log_configuration=False)
    use_current_names(cfg)
    _keep_samplers_without_grid(cfg)
    return cfg


def _keep_samplers_without_grid(cfg: DictConfig) -> None:
    """Take back what ``debug=fast`` says of the grid where the sampler has none, as that of a GAN."""
    grid = OmegaConf.select(cfg, "sampler.grid")
    if OmegaConf.select(cfg, "hydra.runtime.choices.debug") and grid is not None and "_target_" not in grid:
        with flag_override(cfg, "struct", False):
            del cfg.sampler.grid


def composed(words: Sequence[str], config_name: str) -> dict[str, Any]:
    """The configuration that another command would compose, as plain data; this process's own stays as it is.

    Args:
        words: its command line: ``--config-path``, ``--config-dir`` and overrides.
        config_name: its primary configuration.

    Raises:
        UserError: if it cannot be composed.
    """
    args = get_args_parser().parse_args(list(words))
    folder = Path(args.config_path or conf_dir())
    hydra = hydra_of(config_name, folder, args.config_dir)
    command_line = CommandLine(hydra, folder, config_name, readable(args.overrides, sweep=False))
    mine = HydraConfig.instance().cfg
    try:
        return plain_config(compose(command_line))
    finally:
        HydraConfig.instance().cfg = mine


def refuse_leftovers(command_line: CommandLine, cfg: DictConfig) -> None:
    """Refuse keys that an experiment has set for a part which a recipe replaces: the new part would take some of them.

    Those that the command line sets too are meant.

    Raises:
        UserError: one line for each part: the keys, the recipe, what to add.
    """
    experiment, recipe = (cfg.hydra.runtime.choices.get(name) for name in ("experiment", "recipe"))
    if experiment is None or recipe is None:
        return
    alone = _choices_alone(command_line, without="experiment")
    values, its = (dict(_leaves(OmegaConf.to_container(one), "")) for one in (cfg, alone))
    given = {override.lstrip("+~").partition("=")[0] for override in command_line.overrides}
    lines = []
    for part, (before, after) in _replaced(command_line, cfg).items():
        own = {
            key: value
            for key, value in values.items()
            if _is_below(key, [part]) and not _is_below(key, given)
        }
        keys = [key for key, value in own.items() if key not in its or its[key] != value]
        remedies = [f"{key}={show(its[key])}" if key in its else f"~{key}" for key in keys]
        if keys:
            lines.append(
                f"{', '.join(f'{key}={show(values[key])}' for key in keys)} of experiment={experiment} for {part}={before}, "
                f"which recipe={recipe} replaces by {part}={after}: add {' '.join(remedies)}, or keep {part}={before}"
            )
    if lines:
        raise UserError("\n".join(lines))


def _choices_alone(command_line: CommandLine, without: str) -> DictConfig:
    """What is composed of the command line's choices, but that of one group, and none of its keys."""
    hydra, _, config_name, overrides = command_line
    groups = {override: override.lstrip("+").partition("=")[0] for override in overrides}
    kept = [
        override
        for override, group in groups.items()
        if group != without and hydra.config_loader.get_group_options(group)
    ]
    return hydra.compose_config(config_name, kept, RunMode.RUN, with_log_configuration=False)


def _replaced(command_line: CommandLine, cfg: DictConfig) -> dict[str, tuple[str, str]]:
    """The parts of ``cfg`` that its recipe replaces, each with the choice before and the choice now."""
    now = cfg.hydra.runtime.choices
    before = _choices_alone(command_line, without="recipe").hydra.runtime.choices
    return {
        str(part): (str(before[part]), str(choice))
        for part, choice in now.items()
        if part != "recipe" and part in cfg and part in before and before[part] != choice
    }


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _is_below(key: str, parents: Collection[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def use_current_names(cfg: DictConfig) -> None:
    """Give every ``_target_`` of a configuration, which may be older than this version, its current name."""
    with flag_override(cfg, ["struct", "readonly"], False):
        _use_current_names(cfg)


def _use_current_names(node: DictConfig | ListConfig) -> None:
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        value = node._get_node(key)
        if isinstance(value, DictConfig | ListConfig):
            if not (value._is_none() or value._is_missing() or value._is_interpolation()):
                _use_current_names(value)
        elif key == "_target_" and isinstance(target := value._value(), str):
            node[key] = current_name(target)


def take_single_values_as_lists(cfg: DictConfig, schema: Mapping[str, str]) -> None:
    """Make a list of a single value where only a list will do: ``runs=DIR`` is ``runs=[DIR]``."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    with flag_override(cfg, ["struct", "readonly"], False):
        for key, value in single_values(plain, schema):
            OmegaConf.update(cfg, key, [value])


# ------------------------------------------------------------------------------ what is written on a command line


def joined_lists(words: Sequence[str]) -> list[str]:
    """The words of a command line, with lists put together again that a shell has split at their blanks.

    >>> joined_lists(["n=2", "metrics=[ssim,", "psnr]", "out=a"])
    ['n=2', 'metrics=[ssim, psnr]', 'out=a']
    """
    joined: list[str] = []
    rest = list(words)
    while rest:
        length = 1
        if re.match(rf"{_KEY.pattern}=\[", rest[0]):
            ends = (n for n in range(1, len(rest) + 1) if _is_closed(" ".join(rest[:n])))
            length = next(ends, 1)
        joined.append(" ".join(rest[:length]))
        rest = rest[length:]
    return joined


def _is_closed(text: str) -> bool:
    return text.count("[") == text.count("]")


def readable(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """The overrides as they are meant: values that Hydra cannot read are quoted, ``~/`` is the home folder.

    Those that Hydra can read stay as they are, and so does what looks like an unfinished quotation, list, mapping or
    call of one of Hydra's functions.

    Args:
        sweep: whether the commas of an unreadable value separate the values of a sweep; otherwise they belong to it.
    """
    parser = OverridesParser.create()
    return [_readable(override, parser, sweep) for override in overrides]


def _readable(override: str, parser: OverridesParser, sweep: bool) -> str:
    key, equals, value = override.partition("=")
    if not equals or not _KEY.fullmatch(key) or _can_read(override, parser):
        return override
    is_list = _FLAT_LIST.fullmatch(value) is not None
    parts = value[1:-1].split(",") if is_list else _COMMA.split(value) if sweep else [value]
    if any(_is_syntax(part.strip(), parser) for part in parts):
        return override
    read = ",".join(
        part if _can_read(f"{key}={part}", parser) else quoted(_at_home(part.strip())) for part in parts
    )
    return f"{key}=[{read}]" if is_list else f"{key}={read}"


def _can_read(override: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_override(override)
    except HydraException:
        return False
    return True


def _is_syntax(value: str, parser: OverridesParser) -> bool:
    call = re.fullmatch(r"(\w+)\(.*\)", value, flags=re.DOTALL)
    return value[:1] in ("'", '"', "[", "{") or (call is not None and call[1] in parser.functions.functions)


def _at_home(value: str) -> str:
    return os.path.expanduser(value) if value.startswith("~/") else value


def override_of(key: str, value: str | int | float | Path) -> str:
    """``key=value`` as it is read back, in a sweep too; in Hydra's quotes only where it would be another value."""
    meant = str(value) if isinstance(value, Path) else value
    override, parser = f"{key}={meant}", OverridesParser.create()
    for plain in {*readable([override], sweep=False), *readable([override], sweep=True)}:
        parsed = parser.parse_override(plain) if _can_read(plain, parser) else None
        if parsed is None or parsed.is_sweep_override() or parsed.value() != meant:
            return _literally(key, str(meant))
    return override


def _literally(key: str, value: str) -> str:
    return f"{key}={quoted(value)}" if re.search(r'["\\]', value) else f'{key}="{value}"'


def shell_command(module: str, overrides: Sequence[str] = (), **values: str | int | float | Path) -> str:
    """A command that can be pasted into a shell: ``python -m MODULE OVERRIDES KEY=VALUE ...``.

    Args:
        overrides: put first, such as those of this process.
        values: further ones by key.
    """
    given = [override_of(key, value) for key, value in values.items()]
    return shlex.join(["python", "-m", module, *overrides, *given])


# -------------------------------------------------------------------------------------------------- explanations


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
        return _explain_syntax(error.override, text.splitlines()[0], command_line)
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
        as_it_stands = (
            f", or write {key}=[{values}] for a list, {shlex.quote(_literally(key, values))} for one value"
        )
        if re.fullmatch(r"-?\d+,\d+", values):
            as_it_stands = f", or write {key}={values.replace(',', '.')} with a point for a decimal"
        is_group = bool(command_line.hydra.config_loader.get_group_options(key))
        return f"{key}={values} is a sweep: add -m to run each value{'' if is_group else as_it_stands}"
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


def _explain_syntax(override: str, reason: str, command_line: CommandLine) -> str:
    key, equals, value = override.partition("=")
    if equals and _KEY.fullmatch(key):
        why = "" if override in reason else f" ({reason})"
        if value.startswith("[") and value.endswith("]"):
            remedy = f"""quote its items, as in '{key}=["a, b"]'"""
        else:
            remedy = f"to take the value as it stands write {shlex.quote(_literally(key, value))}"
        return f"{override} cannot be read as KEY=VALUE{why}; {remedy}"
    if equals and key and not re.search(r"\s", key):
        return f"{override}: {key} cannot be a key, which has letters, digits and . / @; --cfg job shows all keys"
    loader = command_line.hydra.config_loader
    place, experiments = command_line.overrides.index(override), loader.get_group_options("experiment")
    words = re.split(r"[\s=]+", " ".join(command_line.overrides[place:]).strip())
    named = next((word for word in words if word in experiments), None) or closest(override, experiments)
    example = f"such as {_example(override, command_line) if named is None else f'experiment={named}'}"
    before = command_line.overrides[place - 1] if place else ""
    if named is None and "=" in before and not loader.get_group_options(before.partition("=")[0]):
        example = f"or in quotes, {shlex.quote(_continued(before, override))}"
    return f"{override} is not KEY=VALUE: write it without blanks, {example}"


def _example(word: str, command_line: CommandLine) -> str:
    """How a word without a key is probably meant: a file as the model or the input, if the command has such a key."""
    primary = command_line.folder / f"{command_line.config_name}.yaml"
    text = primary.read_text(encoding="utf-8") if primary.is_file() else ""
    keys = ["ckpt"] if word.endswith(".ckpt") else ["input", "in", "runs"]
    key = next((key for key in keys if re.search(rf"^{key}:", text, re.MULTILINE)), None)
    return "run_dir=DIR" if key is None else override_of(key, word)


def _continued(before: str, rest: str) -> str:
    """An override whose value a shell has split at a blank, put together so that it is read as one value."""
    key, _, value = before.partition("=")
    parser = OverridesParser.create()
    if _can_read(before, parser) and isinstance(read := parser.parse_override(before).value(), str):
        value = read
    return _literally(key, f"{value} {rest}")


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
    recipe = cfg.hydra.runtime.choices.get("recipe")
    replaced = {} if recipe is None else _replaced(command_line, cfg)
    for key, given in unknown.items():
        known = hydra_keys if key.startswith("hydra.") else own_keys
        part = key.partition(".")[0]
        if part in replaced and key not in known:
            before, after = replaced[part]
            lines.append(
                f"{given}: recipe={recipe} replaces {part}={before} by {part}={after}, which has no such key"
                f"{_suggest_key(key, known)}; leave it out, or keep {part}={before}"
            )
            continue
        if key in known or hydra.config_loader.get_group_options(key):
            lines.append(f"{given}: {key} is not written in the configuration files; add it with +{given}")
        elif (
            (group := key.partition(".")[0]) in groups
            and cfg.hydra.runtime.choices[group] is None
            and "." in key
        ):
            lines.append(
                f"{given}: no {group} is chosen here; add the key with +{given}, or choose {group}=NAME"
            )
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
        within = f"{unknown.partition('.')[0]}."
        return f"; did you mean '{next((key for key in elsewhere if key.startswith(within)), elsewhere[0])}'?"
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


def interpolated_keys(cfg: DictConfig) -> dict[str, str]:
    """The keys of the task's part that are nothing but another key's value, and that key: ``data.seed`` is ``seed``."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    return dict(_interpolated_keys({key: value for key, value in plain.items() if key != "hydra"}, ""))


def _interpolated_keys(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _interpolated_keys(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, str) and (found := re.fullmatch(r"\$\{([\w.]+)\}", node)):
        yield path, found[1]
