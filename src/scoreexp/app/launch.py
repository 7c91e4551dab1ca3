"""The launcher shared by all entry points: Hydra round a plain function, with errors that a user can act on.

The configuration is composed and checked before Hydra creates a folder and before the task, and torch with
it, is imported. What is wrong is said in at most three lines on stderr, with exit code 1.
``HYDRA_FULL_ERROR=1`` lets every exception through instead.
"""

import errno
import importlib
import io
import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    InstantiationException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scoreexp.app.composition import (
    CommandLine,
    compose,
    explaining,
    first_lines,
    interpolated_keys,
    joined_lists,
    plain_config,
    readable,
    refuse_leftovers,
    take_single_values_as_lists,
    use_current_names,
    wants_full_error,
)
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import check_config
from scoreexp.app.early_checks import require_data
from scoreexp.app.help import help_text, meaning_of
from scoreexp.app.hydra_internals import get_args_parser, hydra_of, run_composed
from scoreexp.app.sweep import devices_of, expand, plan_sweep, run_sweep
from scoreexp.core.errors import UserError
from scoreexp.system.memory import collected, uncollected
from scoreexp.system.processes import independent_launcher

MAX_LINES = 3


@dataclass(frozen=True)
class App:
    """An entry point, see ``run_app``."""

    config_name: str
    task: str
    schema: Mapping[str, str] | None
    provided: Mapping[str, Collection[str]] | None
    module: str


def run_app(
    config_name: str,
    task: str,
    *,
    schema: Mapping[str, str] | None = None,
    provided: Mapping[str, Collection[str]] | None = None,
    argv: Sequence[str] | None = None,
    module: str | None = None,
) -> int:
    """Compose and check the configuration that the command line asks for, then run the task with it.

    Args:
        config_name: primary configuration, a file ``conf/<config_name>.yaml``.
        task: ``"package.module:function"``, imported after the check and called with the configuration. Its
            ``run_dir``, if it has one, is then the absolute path of the job's own folder, in a sweep too.
        schema: every allowed top-level key with its annotation, see ``config_check.check_config``.
        provided: parameters that the task passes to constructors itself, by configuration path.
        argv: command-line arguments, by default those of the process.
        module: what a job of a sweep runs as ``python -m MODULE``, by default ``scoreexp.<config_name>``.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C.
    """
    app = App(config_name, task, schema, provided, module or f"scoreexp.{config_name}")
    sys.stdout = _with_or_without_reader(sys.stdout, sys.__stdout__)
    sys.stderr = _with_or_without_reader(sys.stderr, sys.__stderr__)
    try:
        with uncollected():
            return _dispatch(app, list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if wants_full_error():
            raise
        _report(error)
        return 1
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def _dispatch(app: App, argv: list[str]) -> int:
    parser = get_args_parser()
    parser.error = _refuse_argument  # type: ignore[method-assign]
    parser.allow_abbrev = False
    args = parser.parse_args(joined_lists(argv))
    if args.experimental_rerun:
        raise UserError("--experimental-rerun is not supported; repeat the command with the same run_dir")
    version.setbase("1.3")
    command_line = _start_hydra(app, args)
    hydra, _, config_name, overrides = command_line
    if args.help:
        sys.stdout.write(help_text(command_line, compose(command_line)))
    elif args.cfg:
        with explaining(command_line):
            hydra.show_cfg(config_name, overrides, args.cfg, args.package, args.resolve)
    elif args.hydra_help:
        hydra.hydra_help(config_name, parser, args)
    elif args.info:
        with explaining(command_line):
            hydra.show_info(args.info, config_name, overrides)
    elif args.shell_completion:
        hydra.shell_completion(config_name, overrides)
    else:
        return _run(app, command_line, args)
    return 0


def _refuse_argument(message: str) -> NoReturn:
    words = message.removeprefix("unrecognized arguments: ").split()
    given = next((word for word in words if re.fullmatch(r"--[\w./@-]+=.*", word)), None)
    if given is not None:
        raise UserError(f"{given} is no option: keys are given without dashes, write {given[2:]}")
    raise UserError(
        f"{words[0]} is no option: keys are given without dashes, as in KEY=VALUE; --help lists keys, choices and options"
    )


def _start_hydra(app: App, args: Namespace) -> CommandLine:
    folder = conf_dir() if args.config_path is None else Path(args.config_path).resolve()
    if not folder.is_dir():
        raise UserError(f"--config-path={args.config_path} is not a folder")
    extra = None if args.config_dir is None else Path(args.config_dir).resolve()
    if extra is not None and not extra.is_dir():
        raise UserError(f"--config-dir={args.config_dir} is not a folder")
    job_name = app.task.partition(":")[0].rpartition(".")[2]
    hydra = hydra_of(job_name, folder, extra)
    GlobalHydra.instance().clear()
    GlobalHydra.instance().initialize(hydra)
    overrides = readable(args.overrides, sweep=args.multirun)
    return CommandLine(hydra, folder, args.config_name or app.config_name, overrides)


# ------------------------------------------------------------------------------------------------ running


def _run(app: App, command_line: CommandLine, args: Namespace) -> int:
    hydra, _, config_name, _ = command_line
    cfg = None if args.multirun else compose(command_line)
    if cfg is None or cfg.hydra.mode == RunMode.MULTIRUN:
        if independent_launcher() == "torchrun":
            raise UserError(
                "each process of torchrun would run the whole sweep: start it without torchrun, with trainer.devices=N"
            )
        shared = compose(command_line, RunMode.MULTIRUN)
        jobs = expand(command_line, shared)
        lines = [command_line._replace(overrides=job) for job in jobs]
        cfgs = [compose(line) for line in lines]
        for line, job_cfg in zip(lines, cfgs):
            refuse_leftovers(line, job_cfg)
        data = [_check(job_cfg, app, command_line, f"job {number}: ") for number, job_cfg in enumerate(cfgs)]
        require_data(*data)
        if shared.hydra.launcher._target_.startswith("scoreexp."):
            _check_launcher(shared)
            sweep = plan_sweep(command_line, shared, cfgs, jobs, app.module, _options(args))
            with collected():
                return run_sweep(sweep)
        return _run_here(app, command_line, cfgs)
    refuse_leftovers(command_line, cfg)
    require_data(_check(cfg, app, command_line))
    _require_common_folder(cfg)
    job = _Job(app.task, app.schema or {}, _nearest_existing(Path(os.path.abspath(cfg.hydra.run.dir))))
    run_composed(hydra, config_name, cfg, job)
    return 1 if job.failures else 0


def _require_common_folder(cfg: DictConfig) -> None:
    """Refuse a folder named by the time where several processes look at the clock."""
    launcher = independent_launcher()
    if launcher is not None and "${now:" in str(OmegaConf.to_container(cfg).get("run_dir")):  # type: ignore[union-attr]
        raise UserError(f"the {launcher} processes of a run need one folder: add run_dir=DIR")


def _run_here(app: App, command_line: CommandLine, cfgs: Sequence[DictConfig]) -> int:
    """Hydra's own launchers: one job after another in this process."""
    several = (cfg for cfg in cfgs if devices_of(cfg) > 1 or str(_devices(cfg)) in ("auto", "-1"))
    if (cfg := next(several, None)) is not None:
        raise UserError(
            f"trainer.devices={_devices(cfg)} starts this command once more for each device, and with -m each would repeat "
            "the whole sweep: add hydra/launcher=processes"
        )
    job = _Job(app.task, app.schema or {}, in_sweep=True)
    command_line.hydra.multirun(
        command_line.config_name, job, [*command_line.overrides, "hydra.mode=MULTIRUN"]
    )
    if job.failures:
        failed = f"{len(job.failures)} of {len(cfgs)} jobs failed"
        sys.stderr.write(f"error: {failed}: {', '.join(job.failures)}\n")
    return 1 if job.failures else 0


def _devices(cfg: DictConfig) -> Any:
    return OmegaConf.select(cfg, "trainer.devices", default=1)


def _options(args: Namespace) -> list[str]:
    """The options that a job needs to find the same configuration."""
    options = [
        f"--{name.replace('_', '-')}={Path(value).resolve()}"
        for name in ("config_path", "config_dir")
        if (value := getattr(args, name)) is not None
    ]
    return options + ([f"--config-name={args.config_name}"] if args.config_name is not None else [])


def _check_launcher(shared: DictConfig) -> None:
    launcher = OmegaConf.to_container(shared.hydra.launcher, resolve=True)
    problems = check_config({"hydra": {"launcher": launcher}}, schema={"hydra.launcher": "Node"})
    if problems:
        raise UserError("\n".join(problems))


@dataclass
class _Job:
    """The task as Hydra calls it: reports its errors, so that Hydra does not, and remembers failures."""

    task: str
    schema: Mapping[str, str]
    existing_folder: Path | None = None  # what lay there before the run; removed folders lie below it
    in_sweep: bool = False
    failures: list[str] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> Any:
        hydra_cfg = HydraConfig.get()
        folder = Path(hydra_cfg.runtime.output_dir)
        prefix = ""
        if self.in_sweep:
            prefix = f"job {hydra_cfg.job.num}: "
            sys.stderr.write(f"{prefix}{' '.join(hydra_cfg.overrides.task)}\n")
        use_current_names(cfg)
        take_single_values_as_lists(cfg, self.schema)
        if "run_dir" in cfg:
            cfg.run_dir = str(folder)
        try:
            if folder != Path.cwd() and not os.access(folder, os.W_OK):
                raise UserError(f"the run folder {folder} is not writable; choose another with run_dir=DIR")
            module, _, name = self.task.partition(":")
            task = getattr(importlib.import_module(module), name)
            with collected():
                return task(cfg)
        except BaseException as error:
            _remove_empty(folder, self.existing_folder or folder.parent)
            if not isinstance(error, Exception) or wants_full_error() or os.getpid() != self.process:
                raise
            _report(error, prefix)
            self.failures.append(prefix.removesuffix(": "))
            return None


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _remove_empty(folder: Path, below: Path) -> None:
    for empty in (folder, *folder.parents):
        if empty == below or not empty.is_relative_to(below):
            return
        try:
            empty.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # not empty
            return


def _check(cfg: DictConfig, app: App, command_line: CommandLine, prefix: str = "") -> dict[str, Any]:
    """Refuse what the task cannot be started with; returns the ``data`` node, empty where there is none."""
    take_single_values_as_lists(cfg, app.schema or {})
    config = plain_config(cfg)
    problems = check_config(config, schema=app.schema, provided=app.provided)
    if problems:
        told = [_told(problem, command_line) for problem in _said_once(problems, interpolated_keys(cfg))]
        raise UserError("\n".join(prefix + problem for problem in told))
    data = config.get("data")
    return data if isinstance(data, dict) else {}


def _told(problem: str, command_line: CommandLine) -> str:
    """A problem with what a required key means in place of its type, where the command's file says it."""
    found = re.match(r"(\w+) is required: add \1=VALUE", problem)
    meaning = meaning_of(command_line, found[1]) if found else ""
    return f"{found[0]} ({meaning})" if found and meaning else problem


def _said_once(problems: Sequence[str], interpolated: Mapping[str, str]) -> list[str]:
    """The problems without those of keys that only repeat the value of another key with a problem."""
    keys = [re.split(r"[= ]", problem, maxsplit=1)[0] for problem in problems]
    return [problem for key, problem in zip(keys, problems) if interpolated.get(key) not in keys]


# ------------------------------------------------------------------------------------------------- streams


class _Output(io.FileIO):
    """A standard stream that goes on into nothing when its pipe or terminal has been closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())  # also for the processes started from now on
            os.close(nothing)
            return len(data)


def _with_or_without_reader(stream: Any, standard: Any) -> Any:
    """A standard stream that ``... | head -1`` does not break; any other, such as a test's, as it is."""
    if stream is None:  # closed before the start
        return open(os.devnull, "w")
    if stream is not standard or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    output = _Output(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        output if stream.write_through else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


# -------------------------------------------------------------------------------------------------- errors


def _report(error: Exception, prefix: str = "") -> None:
    """Write an error to stderr: lines that a user can act on, or one traceback."""
    message = _message(error)
    if message is None:
        traceback.print_exception(error, file=sys.stderr)
        return
    lines = message.splitlines()
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{len(lines) - MAX_LINES + 1} further problems"]
    sys.stderr.writelines(f"error: {prefix}{line}\n" for line in lines)


def _message(error: BaseException | None) -> str | None:
    """What the user should read about an error; None if it is a fault of the program."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)] if error else []
    in_task = any(frame.f_code is _Job.__call__.__code__ for frame in frames)
    own = bool(frames) and frames[-1].f_globals.get("__name__", "").split(".")[0] == "scoreexp"
    hint = " (HYDRA_FULL_ERROR=1 shows the traceback)"
    match error:
        case UserError():
            return str(error)
        case InstantiationException():
            key = re.search(r"full_key: (\S+)", str(error))
            is_value_error = type(error.__cause__) is ValueError  # what constructors raise
            cause = f"{error.__cause__}{hint}" if is_value_error else _message(error.__cause__)
            return f"{key[1]}: {cause}" if key and cause else cause
        case ValueError() | FloatingPointError() | OSError() if own:
            return f"{error}{hint}"
        case HydraException() | OmegaConfBaseException() if not in_task:
            return first_lines(error)
        case OSError() if not in_task:
            return f"{error.filename} cannot be created ({error.strerror}); choose another with run_dir=DIR"
        case Exception() if type(error).__name__ == "MisconfigurationException":  # Lightning's
            return f"{' '.join(str(error).split())}{hint}"
    return None
