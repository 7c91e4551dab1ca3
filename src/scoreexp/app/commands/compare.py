"""A comparison: the same conditions for every method and seed, each run in a process of its own, then the report."""

import os
import sys
from collections.abc import Mapping, Sequence
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
from scoreexp.app.early_checks import require_data
from scoreexp.app.jobs import Job, describe_failures, quoted, run_jobs
from scoreexp.app.signatures import suggest
from scoreexp.app.sweep import say_offline_runs, write_sweep
from scoreexp.app.wandb_logging import log_report
from scoreexp.core.errors import UserError
from scoreexp.data.suffixes import READABLE
from scoreexp.runs.reporting import BUSY, COMPARISON_FILE, Plan, conditions, write_report
from scoreexp.runs.reporting.page import image_table
from scoreexp.runs.reporting.runs import find_runs, flattened, method_settings, read_config, slug
from scoreexp.runs.reporting.summary import tables
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.machine import processor
from scoreexp.train import PROVIDED, SCHEMA

MODULE = "scoreexp.train"
PROTOCOL = (  # of the first of several experiments: what is observed, how it is measured, and when a run ends
    "data.size", "data.channels", "data.validate_on", "data.num_val", "callbacks.monitor.sigma",
    "callbacks.monitor.confirm", "trainer.val_check_interval", "trainer.max_steps",
)  # fmt: skip


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
    options = _config_options()
    plan = plan_of(cfg) if cfg.experiments is None else _plan_of_experiments(cfg, options)
    chosen = list(plan.methods) if cfg.methods is None else list(cfg.methods)
    cases = [(method, seed, image) for seed, image in plan.cases for method in chosen]
    require_data(*({"path": image} for image in plan.images))
    jobs = [
        Job(
            f"{method}, seed {seed}" if image is None else f"{method}, {image}, seed {seed}",
            MODULE,
            (*options, *overrides_of(plan, method, image), f"seed={seed}"),
            plan.folder(root, method, seed, image),
        )
        for method, seed, image in cases
    ]
    configs: dict[str, dict[str, Any]] = {}
    for (method, _, image), job in zip(cases, jobs):
        if method not in configs:  # its seeds differ in nothing else
            configs[method] = _checked(job)
        config = configs[method]
        _require_same_settings(
            job, config if image is None else config | {"data": config["data"] | {"path": image}}
        )
    require_data(*(config.get("data") or {} for config in configs.values()))
    for line in unequal(configs):
        _say(f"warning: {line}")
    present = [m for m in plan.methods if m in chosen or (root / slug(m)).is_dir()]  # also of earlier calls
    load = max(load_per_core(), read_json(root / COMPARISON_FILE).get("load", 0.0))
    if load > BUSY:
        _say(
            f"warning: the machine is busy (load average {load:.1f} per core): seconds will not be comparable"
        )
    earlier = read_json(root / COMPARISON_FILE)
    if earlier and set(earlier["methods"]) - set(plan.methods):
        raise UserError(f"{root} holds a comparison of other methods: give another run_dir")
    stored = replace(
        plan,
        methods={method: plan.methods[method] for method in present},
        images=list(dict.fromkeys([*earlier.get("images", []), *plan.images])),
        load=load,
    )
    write_json(root / COMPARISON_FILE, asdict(stored))
    write_sweep(
        root,
        plan.name,
        jobs,
        [
            [f"method={slug(method)}", *([] if image is None else [f"data.path={image}"]), f"seed={seed}"]
            for method, seed, image in cases
        ],
    )
    _say(f"comparison     {plan.name}: {len(chosen)} methods x {len(plan.cases)} runs, {_limit(plan)}")
    if cfg.experiments is not None:
        protocol = dict(override.lstrip("+").split("=", 1) for override in plan.shared if "=" in override)
        _say("protocol       " + " ".join(f"{key}={value}" for key, value in protocol.items()))
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
    say_offline_runs([root, *(job.folder for job in jobs)])
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


def plan_of(cfg: DictConfig, sweep: Mapping[str, Any] | None = None) -> Plan:
    """The comparison that a configuration describes, by default that of ``cfg.sweep``.

    Raises:
        UserError: names what is missing, impossible or misspelt.
    """
    if sweep is None:
        sweep = OmegaConf.to_container(cfg.sweep, resolve=True)  # type: ignore[assignment]
    assert sweep is not None
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


def _plan_of_experiments(cfg: DictConfig, options: Sequence[str]) -> Plan:
    """Experiments compared under the protocol of the first, as far as ``cfg`` does not name it.

    Raises:
        UserError: an experiment is given twice or cannot be composed, there is no picture in a folder, or nothing
            says when a run is to end.
    """
    names = list(cfg.experiments)
    if len(set(names)) < len(names) or not names:
        raise UserError(f"experiments={names}: give at least one, each once")
    if cfg.methods is not None:
        raise UserError("methods= chooses among those of a sweep: leave it out beside experiments=")
    first = _checked(Job(names[0], MODULE, (*options, f"experiment={names[0]}"), Path(cfg.run_dir)))
    flat, stop = flattened(first), (first.get("callbacks") or {}).get("stop") or {}
    own = OmegaConf.to_container(cfg.sweep, resolve=True)
    assert isinstance(own, dict)
    target = stop.get("target") if own["target"] is None else own["target"]
    seconds = flat.get("callbacks.budget.seconds") if own["seconds"] is None else own["seconds"]
    if target is None and seconds is None:
        raise UserError(
            f"experiment={names[0]} sets no target: give sweep.target=VALUE, or sweep.seconds=NUMBER for equal time"
        )
    protocol = [f"{key}={_value(flat[key])}" for key in PROTOCOL if key in flat]
    protocol += [f"data.size={cfg.data.size}"] if cfg.data.size is not None else []
    sweep = own | {
        "title": own["title"] or f"{' and '.join(names)} compared",
        "mode": "budget" if target is None else "target",
        "monitor": own["monitor"] or stop.get("monitor"),
        "target": target,
        "seconds": seconds,
        "seeds": own["seeds"] or [first["seed"]],
        "common": [*protocol, *(own.get("common") or [])],
        "methods": {name: [f"experiment={name}"] for name in names},
    }
    return replace(plan_of(cfg, sweep), images=pictures_of(cfg.data.path))


def pictures_of(path: str | Sequence[str] | None) -> list[str]:
    """The pictures that ``data.path`` of a comparison names: files, and those in folders, in order of their names.

    Raises:
        UserError: a folder holds no picture, or one is given twice.
    """
    given = [] if path is None else [path] if isinstance(path, str) else list(path)
    found: list[str] = []
    for name in given:
        folder = Path(name).expanduser()
        inside = (
            sorted(str(p) for p in folder.iterdir() if p.suffix.lower() in READABLE)
            if folder.is_dir()
            else []
        )
        if folder.is_dir() and not inside:
            raise UserError(f"data.path={name} holds no picture ({', '.join(READABLE)})")
        found += inside or [name]
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise UserError(f"data.path names {twice} twice: give each picture once")
    return found


def _value(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, "") or quoted(str(value))


def overrides_of(plan: Plan, method: str, image: str | None = None) -> list[str]:
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
    picture = [] if image is None else [f"data.path={quoted(image)}", "data.name=null"]
    return [*plan.methods[method], *picture, *plan.shared, *equal]


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
    page = write_report([root], root)
    runs, plan = find_runs([root])
    for table in tables(runs, plan):
        for line in image_table(table):
            _say(line)
    return _announced(page)


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
