"""A sweep: the jobs that ``-m KEY=A,B`` asks for, their folders, and the record of them.

The sweep's folder is ``run_dir``, by default ``outputs/<names of the experiments>/<time>``. A job's folder in it is
named by the values it sweeps, such as ``photo32_ours+seed_1``, so a sweep with more values finds the jobs that are done.
``sweep.json`` lists the jobs for reports and for W&B.
"""

import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scoreexp.app.composition import CommandLine, override_of
from scoreexp.app.hydra_internals import BasicSweeper
from scoreexp.app.jobs import Job, JobStatus, describe_failures
from scoreexp.core.errors import UserError
from scoreexp.system.json_files import read_json, write_json

SWEEP_FILE = "sweep.json"
MAX_NAME = 80  # characters of a folder's name
_OWN_KEYS = re.compile(
    r"[+~]*(run_dir|resume|hydra\.(launcher|sweep|sweeper|mode|run)\b.*|hydra/(launcher|sweeper))"
)


@dataclass(frozen=True)
class Sweep:
    """What is to run.

    Attributes:
        name: names the sweep in reports and W&B.
        folder: its directory.
        jobs: one per combination of values.
        swept: the overrides in which the jobs differ, per job.
        launcher: configuration of what is called with the jobs, the folder and the devices of a job.
        devices_per_job: the most that one of them asks for.
    """

    name: str
    folder: Path
    jobs: list[Job]
    swept: list[list[str]]
    launcher: DictConfig
    devices_per_job: int


def offline_runs(folders: Iterable[Path]) -> list[Path]:
    """The offline W&B runs in run folders that have not been sent yet."""
    found = [run for folder in folders for run in sorted(folder.glob("wandb/offline-run-*")) if run.is_dir()]
    return [run for run in found if not any(run.glob("*.synced"))]


def say_offline_runs(folders: Iterable[Path]) -> None:
    """Print the one command that sends all offline W&B runs of a sweep; nothing where there is none."""
    if runs := offline_runs(folders):
        sys.stdout.write(
            f"W&B offline    send all with: {shlex.join(['wandb', 'sync', *map(_shown, runs)])}\n"
        )


def expand(command_line: CommandLine, shared: DictConfig) -> list[list[str]]:
    """Overrides of each job.

    Raises:
        UserError: the sweeper is another than Hydra's own, which knows all values before the first job.
    """
    sweeper = shared.hydra.sweeper
    parser = OverridesParser.create(config_loader=command_line.hydra.config_loader)
    in_files = [f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()]
    parsed = parser.parse_overrides([*in_files, *command_line.overrides])
    if not sweeper._target_.endswith("BasicSweeper"):
        raise UserError(
            f"hydra.sweeper={sweeper._target_} chooses values by the results of earlier jobs, which are "
            "processes of their own here: search with Optuna as docs/sweeps.md shows, or leave hydra/sweeper out"
        )
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def devices_of(cfg: DictConfig) -> int:
    """Devices that one run asks for; 1 where they are found only when it starts."""
    devices: Any = OmegaConf.select(cfg, "trainer.devices", default=1)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return max(1, len(devices))
    return max(1, int(devices)) if re.fullmatch(r"\d+", str(devices)) else 1


def plan_sweep(
    command_line: CommandLine,
    shared: DictConfig,
    cfgs: Sequence[DictConfig],
    overrides: Sequence[Sequence[str]],
    module: str,
    options: Sequence[str],
) -> Sweep:
    """The jobs of a sweep and where they go.

    Args:
        shared: configuration without the swept values.
        cfgs: configuration of each job.
        overrides: overrides of each job.
        module: what a job runs.
        options: put before a job's overrides.
    """
    names = _bounded("+".join(dict.fromkeys(str(cfg.get("name", "sweep")) for cfg in cfgs)))
    if "name" in shared:
        shared.name = names  # the default run_dir is made from it
    HydraConfig.instance().set_config(shared)
    folder = Path(os.path.abspath(shared.hydra.sweep.dir))
    if (folder / "manifest.json").exists():
        raise UserError(f"run_dir {folder} holds a single run: give the sweep another with run_dir=DIR")
    varied = _swept_keys(overrides)
    jobs, swept = [], []
    for cfg, job in zip(cfgs, overrides):
        values = [override for override in job if override.partition("=")[0] in varied]
        own = [override for override in job if not _OWN_KEYS.fullmatch(override.partition("=")[0])]
        if cfg.hydra.mode == RunMode.MULTIRUN:  # a file says so
            own.append("hydra.mode=RUN")
        name = job_name(values) or str(cfg.get("name", "job"))
        jobs.append(Job(name, module, (*options, *own), folder / name))
        swept.append(values)
    if len({job.name for job in jobs}) < len(jobs):
        raise UserError("a value of the sweep is given twice: give each once")
    stored = read_sweep(folder)
    by_default = folder.parent.name == names
    title = stored["name"] if stored else f"{names}/{folder.name}" if by_default else folder.name
    devices = max(map(devices_of, cfgs))
    return Sweep(title, folder, jobs, swept, shared.hydra.launcher, devices)


def run_sweep(sweep: Sweep) -> int:
    """Run a sweep's jobs; the exit code is 1 if one of them is not done at the end.

    Raises:
        KeyboardInterrupt, SystemExit: after a signal, see ``run_jobs``.
    """
    launcher = instantiate(sweep.launcher)
    write_sweep(sweep.folder, sweep.name, sweep.jobs, sweep.swept)
    sys.stderr.write(f"sweep of {len(sweep.jobs)} jobs in {sweep.folder}\n")
    statuses: list[JobStatus] = launcher(sweep.jobs, sweep.folder, sweep.devices_per_job)
    say_offline_runs([job.folder for job in sweep.jobs])
    failures = describe_failures(sweep.jobs, statuses)
    if failures is not None:
        sys.stderr.write(
            f"error: {failures}; repeat the command with {shlex.quote(override_of('run_dir', _shown(sweep.folder)))} "
            "to run them again\n"
        )
    return 0 if failures is None else 1


def write_sweep(folder: Path, name: str, jobs: Sequence[Job], swept: Sequence[Sequence[str]]) -> None:
    """Write ``sweep.json``; jobs that an earlier call has listed and this one has not stay in it.

    Args:
        folder: of the sweep; made if need be.
        name: of the sweep.
        jobs: folders below ``folder``.
        swept: the overrides that tell the jobs apart, per job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = read_sweep(folder)
    listed = {job["name"]: job for job in stored.get("jobs", [])}
    for job, values in zip(jobs, swept):
        listed[job.name] = {
            "name": job.name,
            "folder": str(job.folder.relative_to(folder)),
            "swept": list(values),
            "overrides": list(job.overrides),
        }
    command = shlex.join(["python", "-m", *{job.module for job in jobs}, *sys.argv[1:]])
    called = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": command}
    record = {"name": name, "calls": [*stored.get("calls", []), called], "jobs": list(listed.values())}
    write_json(folder / SWEEP_FILE, record)


def read_sweep(folder: Path) -> dict[str, Any]:
    """What ``sweep.json`` of a folder says; empty where there is none."""
    return read_json(folder / SWEEP_FILE)


def job_name(swept: Sequence[str]) -> str:
    """A folder's name for swept overrides: ``experiment=a seed=1`` is ``a+seed_1``.

    It depends on these overrides alone. What a path or a shell could not take as it is becomes ``_``, and the name then
    ends in a hash of the overrides, as does one that had to be cut.
    """
    leaves = [re.split(r"[./@]", override.partition("=")[0])[-1] for override in swept]
    parts = []
    for override, leaf in zip(swept, leaves):
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        label = leaf.lstrip("+~") if leaves.count(leaf) == 1 else key
        parts.append(value if key == "experiment" else f"{label}_{value}")
    safe = [re.sub(r"_*[^A-Za-z0-9._-]+", "_", part).strip("_") for part in parts]
    name = "+".join(safe)
    if safe == parts and len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}_{hashlib.blake2b(' '.join(swept).encode(), digest_size=4).hexdigest()}"


def _bounded(name: str) -> str:
    if len(name) <= MAX_NAME:
        return name
    return f"{name[:MAX_NAME]}_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _swept_keys(overrides: Sequence[Sequence[str]]) -> set[str]:
    """Keys whose values differ between the jobs."""
    values: dict[str, set[str]] = {}
    for override in (override for job in overrides for override in job):
        key, _, value = override.partition("=")
        values.setdefault(key, set()).add(value)
    return {key for key, given in values.items() if len(given) > 1}


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
