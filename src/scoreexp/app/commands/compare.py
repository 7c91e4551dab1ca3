"""A comparison: the same conditions for every method and seed, each run in a process of its own, then the report."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from scoreexp.app.comparison_jobs import cases_of, checked_configs, job_of, unequal
from scoreexp.app.comparison_plan import plan_of
from scoreexp.app.early_checks import require_data
from scoreexp.app.jobs import describe_failures
from scoreexp.app.local_jobs import run_jobs
from scoreexp.app.sweep import say_offline_runs, write_sweep
from scoreexp.app.terminal import say
from scoreexp.app.wandb_logging import log_report
from scoreexp.core.errors import UserError
from scoreexp.runs.reporting import BUSY, COMPARISON_FILE, Plan, write_report
from scoreexp.runs.reporting.image_table import image_text
from scoreexp.runs.reporting.reading import find_runs
from scoreexp.runs.reporting.runs import slug
from scoreexp.runs.reporting.summary import tables
from scoreexp.system.json_files import read_json, write_json


def compare(cfg: DictConfig) -> Path:
    """Run what is missing of ``cfg.sweep`` and write its report; see ``conf/compare.yaml``.

    Returns:
        The report.

    Raises:
        UserError: an impossible comparison or configuration, before anything is run; a folder that holds runs with
            other settings; or, after the report has been written, runs that failed.
    """
    root = Path(cfg.run_dir)
    earlier = read_json(root / COMPARISON_FILE)
    if cfg.report_only:
        if not earlier:
            raise UserError(
                f"{root} holds no comparison: give its folder as run_dir, or leave out report_only"
            )
        return _write(root)
    plan = plan_of(cfg)
    require_data(*({"path": image} for image in plan.images))
    chosen = list(plan.methods) if cfg.methods is None else list(cfg.methods)
    cases = cases_of(plan, chosen)
    jobs = [job_of(plan, case, root) for case in cases]
    configs = checked_configs(cases, jobs)
    require_data(*(config.get("data") or {} for config in configs.values()))
    stored = _joined(plan, chosen, earlier, root)
    _warn(configs, stored.load)
    write_json(root / COMPARISON_FILE, asdict(stored))
    write_sweep(root, plan.name, jobs, [case.swept for case in cases])
    say(
        f"comparison     {plan.name}: {_count(chosen, 'method')} x {_count(plan.cases, 'run')}, {_limit(plan)}"
    )
    if cfg.experiments is not None:
        say(f"protocol       {_protocol(plan)}")
    try:
        statuses = run_jobs(
            jobs,
            n_parallel=cfg.n_parallel,
            gpus=cfg.gpus,
            devices_per_job=cfg.devices_per_job,
            fail_fast=cfg.fail_fast,
        )
    finally:  # also after Ctrl-C: what there is can be read
        page = _write(root)
    _log(configs.values(), root, plan.name, page)
    say_offline_runs([root, *(job.folder for job in jobs)])
    if failures := describe_failures(jobs, statuses):
        raise UserError(f"{failures}; the same command runs them again")
    return page


def report(cfg: DictConfig) -> Path:
    """Write a report about ``cfg.runs``; see ``conf/report.yaml``."""
    folders = [Path(folder).expanduser() for folder in cfg.runs]
    if not folders:
        raise UserError("runs=[] names no folder: give run folders, or folders that contain some")
    if not find_runs(folders)[0]:
        raise UserError(
            f"no run in {', '.join(map(str, folders))} (a run has a config.yaml): give run folders, or folders that "
            "contain some"
        )
    out = Path(cfg.out).expanduser() if cfg.out else folders[0]
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"the report cannot be written to {out}: give a folder with out=DIR")
    return _announced(write_report(folders, out, title=cfg.title, baseline=cfg.baseline))


def _joined(plan: Plan, chosen: Sequence[str], earlier: Mapping[str, Any], root: Path) -> Plan:
    """The plan of all that the folder holds: what is run now, and what earlier calls have run.

    Args:
        plan: the comparison.
        chosen: its methods that are run now.
        earlier: the plan that the folder holds; empty where there is none.
        root: the folder.

    Raises:
        UserError: the earlier plan has methods that this one has not.
    """
    if set(earlier.get("methods", ())) - set(plan.methods):
        raise UserError(f"{root} holds a comparison of other methods: give another run_dir")
    methods = {
        method: overrides
        for method, overrides in plan.methods.items()
        if method in chosen or (root / slug(method)).is_dir()
    }
    images = list(dict.fromkeys([*earlier.get("images", ()), *plan.images]))
    return replace(plan, methods=methods, images=images, load=max(load_per_core(), earlier.get("load", 0.0)))


def _warn(configs: Mapping[str, Mapping[str, Any]], load: float) -> None:
    """Say what keeps the results from being compared."""
    for line in unequal(configs):
        say(f"warning: {line}")
    if load > BUSY:
        say(
            f"warning: the machine is busy (load average {load:.1f} per core): seconds will not be comparable"
        )


def _log(configs: Iterable[Mapping[str, Any]], root: Path, name: str, page: Path) -> None:
    """Send the report to W&B where one of the runs logs there."""
    loggers = ((config.get("logger") or {}).get("wandb") for config in configs)
    if node := next(filter(None, loggers), None):
        settings = {key: node[key] for key in ("project", "entity", "mode")}
        log_report(root, name, [page, page.with_name("results.csv")], **settings)


def _protocol(plan: Plan) -> str:
    """The settings that all experiments share, each with the value that counts: the last."""
    shared = dict(override.lstrip("+").split("=", 1) for override in plan.shared if "=" in override)
    return " ".join(f"{key}={value}" for key, value in shared.items())


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _limit(plan: Plan) -> str:
    if plan.mode == "budget":
        return f"{plan.seconds:g} s of pre-computation and training each"
    cap = f", at most {plan.seconds:g} s each" if plan.seconds is not None else ""
    return f"until {plan.monitor} reaches {plan.target:g}{cap}"


def _write(root: Path) -> Path:
    page = write_report([root], root)
    runs, plan = find_runs([root])
    for table in tables(runs, plan):
        for line in image_text(table):
            say(line)
    return _announced(page)


def _announced(page: Path) -> Path:
    """The report, after saying where it is."""
    say(f"report         {page}\ntable          {page.with_name('results.csv')}")
    return page


def load_per_core() -> float:
    """Load average of the last minute over the number of cores; 0 where the system does not know."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
