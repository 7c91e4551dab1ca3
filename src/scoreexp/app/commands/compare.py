"""A comparison: the same conditions for every method and seed, each run in a process of its own, then the report."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from scoreexp.app.composition import CommandLine, compose, plain_config, readable
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import check_config
from scoreexp.app.jobs import Job, describe_failures, run_jobs
from scoreexp.app.signatures import suggest
from scoreexp.app.sweep import write_sweep
from scoreexp.app.wandb_logging import log_report
from scoreexp.core.errors import UserError
from scoreexp.runs.reporting import BUSY, COMPARISON_FILE, Plan, conditions, write_report
from scoreexp.runs.reporting.runs import method_settings, read_config, slug
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.machine import processor
from scoreexp.train import PROVIDED, SCHEMA

MODULE = "scoreexp.train"


def compare(cfg: DictConfig) -> Path:
    """Run what is missing of ``cfg.sweep`` and write its report; see ``conf/compare.yaml``.

    Returns:
        The report.

    Raises:
        UserError: an impossible comparison or configuration, before anything is run; a folder that holds runs with
            other settings; or, after the report has been written, runs that failed.
    """
    root = Path(cfg.run_dir)
    if cfg.report_only:
        if not read_json(root / COMPARISON_FILE):
            raise UserError(
                f"{root} holds no comparison: give its folder as run_dir, or leave out report_only"
            )
        return _write(root)
    plan = plan_of(cfg)
    chosen = list(plan.methods) if cfg.methods is None else list(cfg.methods)
    options = _config_options()
    jobs = [
        Job(f"{method}, seed {seed}", MODULE, (*options, *overrides_of(plan, method), f"seed={seed}"), folder)
        for seed in plan.seeds
        for method in chosen
        for folder in [plan.folder(root, method, seed)]
    ]
    configs: dict[str, dict[str, Any]] = {}
    for method, job in zip(chosen * len(plan.seeds), jobs):
        if method not in configs:  # its seeds differ in nothing else
            configs[method] = _checked(job)
        _require_same_settings(job, configs[method])
    for line in unequal(configs):
        _say(f"warning: {line}")
    present = [m for m in plan.methods if m in chosen or (root / slug(m)).is_dir()]  # also of earlier calls
    load = max(load_per_core(), read_json(root / COMPARISON_FILE).get("load", 0.0))
    if load > BUSY:
        _say(
            f"warning: the machine is busy (load average {load:.1f} per core): seconds will not be comparable"
        )
    stored = replace(plan, methods={method: plan.methods[method] for method in present}, load=load)
    write_json(root / COMPARISON_FILE, asdict(stored))
    write_sweep(
        root, plan.name, jobs, [[f"method={job.folder.parent.name}", job.overrides[-1]] for job in jobs]
    )
    _say(f"comparison     {plan.name}: {len(chosen)} methods x {len(plan.seeds)} seeds, {_limit(plan)}")
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
    loggers = [(config.get("logger") or {}).get("wandb") for config in configs.values()]
    if node := next(filter(None, loggers), None):
        settings = {key: node[key] for key in ("project", "entity", "mode")}
        log_report(root, plan.name, [page, page.with_name("results.csv")], **settings)
    if failures := describe_failures(jobs, statuses):
        raise UserError(f"{failures}; the same command runs them again")
    return page


def report(cfg: DictConfig) -> Path:
    """Write a report about ``cfg.runs``; see ``conf/report.yaml``."""
    folders = [Path(folder).expanduser() for folder in cfg.runs]
    if not folders:
        raise UserError("runs=[] names no folder: give run folders, or folders that contain some")
    out = Path(cfg.out).expanduser() if cfg.out else folders[0]
    return _announced(write_report(folders, out, title=cfg.title, baseline=cfg.baseline))


def plan_of(cfg: DictConfig) -> Plan:
    """The comparison that a configuration describes.

    Raises:
        UserError: names what is missing, impossible or misspelt.
    """
    sweep: dict[str, Any] = OmegaConf.to_container(cfg.sweep, resolve=True)  # type: ignore[assignment]
    methods, common = sweep["methods"], sweep.get("common") or []
    if cfg.methods is not None:
        for name in cfg.methods:
            if name not in methods:
                known = ", ".join(methods)
                raise UserError(
                    f"method {name} is not in sweep={sweep['name']}{suggest(name, methods)} (methods: {known})"
                )
    plan = Plan(
        name=sweep["name"],
        title=sweep.get("title") or sweep["name"],
        methods=methods,
        seeds=sweep["seeds"],
        mode=sweep["mode"],
        monitor=sweep.get("monitor") or "val/ssim_confirmed",
        target=sweep.get("target"),
        seconds=sweep.get("seconds"),
        baseline=sweep.get("baseline"),
        shared=[*common, *cfg.overrides],
        machine=f"{processor()}, {os.cpu_count()} cores",
    )
    if not methods or cfg.methods == [] or not plan.seeds:
        raise UserError(
            "a comparison needs at least one method and one seed: see sweep.methods and sweep.seeds"
        )
    if len(set(plan.seeds)) < len(plan.seeds):
        raise UserError(f"sweep.seeds={plan.seeds} names a seed twice: give each once")
    if plan.mode == "target" and plan.target is None:
        raise UserError("sweep.mode=target needs sweep.target: the value of sweep.monitor to train until")
    if plan.mode == "budget" and plan.seconds is None:
        raise UserError("sweep.mode=budget needs sweep.seconds: pre-computation and training of each run")
    if plan.baseline is not None and plan.baseline not in sweep["methods"]:
        raise UserError(
            f"sweep.baseline={plan.baseline} is not one of the methods{suggest(plan.baseline, sweep['methods'])}"
        )
    return plan


def overrides_of(plan: Plan, method: str) -> list[str]:
    """What a method is trained with, without its seed: its own settings first, then those that are equal for all."""
    seconds = "null" if plan.seconds is None else f"{plan.seconds:g}"
    target = plan.target if plan.mode == "target" else None
    equal = [
        f"callbacks.stop.monitor={plan.monitor}",
        f"callbacks.stop.target={'null' if target is None else f'{target:g}'}",
        f"callbacks.budget.seconds={seconds}",
    ]
    if plan.mode == "budget":
        equal.append("trainer.max_steps=-1")
    return [*plan.methods[method], *plan.shared, *equal]


def unequal(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the methods do not have in common although results are only comparable if they do, one line each."""
    measured = [conditions(config) for config in configs.values()]
    lines = []
    for key in dict.fromkeys(key for one in measured for key in one):
        values = dict.fromkeys(str(one.get(key)) for one in measured)
        if len(values) > 1:
            lines.append(
                f"the methods differ in {key} ({', '.join(values)}): they will stand in separate tables; "
                f"add it to sweep.common, or to overrides, to make it equal"
            )
    return lines


def _config_options() -> list[str]:
    """The options by which a job finds the configuration folders of this command."""
    if not HydraConfig.initialized():
        return []
    folders = {source.provider: source.path for source in HydraConfig.get().runtime.config_sources}
    options = {"--config-path": folders["main"], "--config-dir": folders.get("command-line")}
    return [f"{key}={path}" for key, path in options.items() if path not in (None, str(conf_dir()))]


def _checked(job: Job) -> dict[str, Any]:
    """The composed configuration of a job.

    Raises:
        UserError: it cannot be composed or does not pass the check; names the job.
    """
    args = get_args_parser().parse_args([*job.overrides, job.folder_override])
    folder = Path(args.config_path or conf_dir())
    search_path = create_config_search_path(str(folder))
    if args.config_dir is not None:
        search_path.prepend(
            "command-line", f"file://{args.config_dir}", anchor=SearchPathQuery(provider="schema")
        )
    hydra = Hydra(task_name="train", config_loader=ConfigLoaderImpl(config_search_path=search_path))
    mine = HydraConfig.instance().cfg  # of this process's own configuration
    try:
        overrides = readable(args.overrides, sweep=False)
        config = plain_config(compose(CommandLine(hydra, folder, "train", overrides)))
    except UserError as error:
        raise UserError(f"{job.name}: {error}") from error
    finally:
        HydraConfig.instance().cfg = mine
    if problems := check_config(config, schema=SCHEMA, provided=PROVIDED):
        raise UserError("\n".join(f"{job.name}: {problem}" for problem in problems))
    return config


def _require_same_settings(job: Job, config: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a run with other settings: going on with it would mix the two."""
    stored = read_config(job.folder)
    if not stored:
        return
    old, new = method_settings(stored), method_settings(config)
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    if changed:
        key, others = changed[0], f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{job.folder} holds a run with other settings ({key} was {old.get(key)}, is now {new.get(key)}{others}): "
            "give another run_dir, or delete that folder"
        )


def _limit(plan: Plan) -> str:
    if plan.mode == "budget":
        return f"{plan.seconds:g} s of pre-computation and training each"
    cap = f", at most {plan.seconds:g} s each" if plan.seconds is not None else ""
    return f"until {plan.monitor} reaches {plan.target:g}{cap}"


def _write(root: Path) -> Path:
    return _announced(write_report([root], root))


def _announced(page: Path) -> Path:
    """The report, after saying where it is."""
    _say(f"report         {page}\ntable          {page.with_name('results.csv')}")
    return page


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def load_per_core() -> float:
    """Load average of the last minute over the number of cores; 0 where the system does not know."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
