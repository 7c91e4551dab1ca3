"""What a comparison sets out to do, read from its configuration: a sweep of methods, or experiments and images."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scoreexp.app.comparison_jobs import checked_config, config_options
from scoreexp.app.jobs import quoted
from scoreexp.app.signatures import suggest
from scoreexp.core.errors import UserError
from scoreexp.data.suffixes import READABLE
from scoreexp.runs.reporting import Plan
from scoreexp.runs.reporting.settings import flattened
from scoreexp.system.machine import processor

PROTOCOL = (  # of the first of several experiments: what is observed, how it is measured, and when a run ends
    "data.size", "data.channels", "data.validate_on", "data.num_val", "callbacks.monitor.sigma",
    "callbacks.monitor.confirm", "trainer.val_check_interval", "trainer.max_steps",
)  # fmt: skip


def plan_of(cfg: DictConfig) -> Plan:
    """The comparison that a configuration describes: its ``sweep``, or its ``experiments``.

    Raises:
        UserError: names what is missing, impossible or misspelt.
    """
    if cfg.experiments is None:
        sweep, images = _plain(cfg.sweep), []
        _require_methods_of(sweep, cfg.methods)
    else:
        sweep, images = _sweep_of_experiments(cfg), pictures_of(cfg.data.path)
    plan = Plan(
        name=sweep["name"],
        title=sweep.get("title") or sweep["name"],
        methods=sweep["methods"],
        seeds=sweep["seeds"],
        mode=sweep["mode"],
        monitor=sweep.get("monitor") or "val/ssim_confirmed",
        target=sweep.get("target"),
        seconds=sweep.get("seconds"),
        baseline=sweep.get("baseline"),
        shared=[*(sweep.get("common") or []), *cfg.overrides],
        machine=f"{processor()}, {os.cpu_count()} cores",
        images=images,
    )
    _require_possible(plan)
    return plan


def _plain(node: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


def _require_methods_of(sweep: Mapping[str, Any], chosen: Sequence[str] | None) -> None:
    methods = sweep["methods"]
    if chosen is not None and not chosen:
        raise UserError("methods=[] chooses none: name some of sweep.methods, or leave it out")
    for name in chosen or ():
        if name not in methods:
            raise UserError(
                f"method {name} is not in sweep={sweep['name']}{suggest(name, methods)} (methods: {', '.join(methods)})"
            )


def _require_possible(plan: Plan) -> None:
    if not plan.methods or not plan.seeds:
        raise UserError(
            "a comparison needs at least one method and one seed: see sweep.methods and sweep.seeds"
        )
    if len(set(plan.seeds)) < len(plan.seeds):
        raise UserError(f"sweep.seeds={plan.seeds} names a seed twice: give each once")
    if plan.mode == "target" and plan.target is None:
        raise UserError("sweep.mode=target needs sweep.target: the value of sweep.monitor to train until")
    if plan.mode == "budget" and plan.seconds is None:
        raise UserError("sweep.mode=budget needs sweep.seconds: pre-computation and training of each run")
    if plan.baseline is not None and plan.baseline not in plan.methods:
        raise UserError(
            f"sweep.baseline={plan.baseline} is not one of the methods{suggest(plan.baseline, plan.methods)}"
        )


def _sweep_of_experiments(cfg: DictConfig) -> dict[str, Any]:
    """Experiments as a sweep under the protocol of the first, as far as ``cfg.sweep`` does not name it."""
    names, own = list(cfg.experiments), _plain(cfg.sweep)
    if len(set(names)) < len(names) or not names:
        raise UserError(f"experiments={names}: give at least one, each once")
    if cfg.methods is not None:
        raise UserError("methods= chooses among those of a sweep: leave it out beside experiments=")
    configs = {name: checked_config(name, [*config_options(), f"experiment={name}"]) for name in names}
    first = configs[names[0]]
    _require_one_kind(
        {name: "callbacks.monitor.sigma" in flattened(config) for name, config in configs.items()}
    )
    return (
        own
        | _ending(names[0], own, flattened(first))
        | {
            "title": own["title"] or f"{' and '.join(names)} compared",
            "seeds": own["seeds"] or [first["seed"]],
            "common": [*_protocol(flattened(first), cfg.data.size), *(own["common"] or [])],
            "methods": {name: [f"experiment={name}"] for name in names},
        }
    )


def _require_one_kind(denoises: Mapping[str, bool]) -> None:
    """Refuse experiments that observe different things: noisy images, or what an operator of their own makes of them."""
    by_noise = [name for name, is_so in denoises.items() if is_so]
    otherwise = [name for name, is_so in denoises.items() if not is_so]
    if by_noise and otherwise:
        raise UserError(
            f"experiments: {', '.join(by_noise)} denoise images (callbacks.monitor.sigma), {', '.join(otherwise)} restore "
            "what their own operator and noise observe, so no protocol is common: compare those of one kind, or measure "
            "each with python -m scoreexp.evaluate"
        )


def _ending(name: str, own: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """When the runs end: as the sweep's own settings say, else as the first experiment does.

    Args:
        name: the first experiment.
        own: the sweep.
        first: the experiment's settings, flat.
    """
    target = first.get("callbacks.stop.target") if own["target"] is None else own["target"]
    seconds = first.get("callbacks.budget.seconds") if own["seconds"] is None else own["seconds"]
    if target is None and seconds is None:
        raise UserError(
            f"experiment={name} sets no target: give sweep.target=VALUE, or sweep.seconds=NUMBER for equal time"
        )
    return {
        "mode": "budget" if target is None else "target",
        "monitor": own["monitor"] or first.get("callbacks.stop.monitor"),
        "target": target,
        "seconds": seconds,
    }


def _protocol(first: Mapping[str, Any], size: int | None) -> list[str]:
    """The overrides that give all experiments the protocol of the first, whose settings are given flat."""
    protocol = [f"{key}={_value(first[key])}" for key in PROTOCOL if key in first]
    return protocol if size is None else [*protocol, f"data.size={size}"]


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(str(value))


def pictures_of(path: str | Sequence[str] | None) -> list[str]:
    """The images that ``data.path`` of a comparison names: files, and those in folders, in order of their names.

    Raises:
        UserError: a folder holds no image, or one is given twice.
    """
    given = [] if path is None else [path] if isinstance(path, str) else list(path)
    found = [picture for name in given for picture in _pictures_in(name)]
    if twice := next((name for name in found if found.count(name) > 1), None):
        raise UserError(f"data.path names {twice} twice: give each image once")
    return found


def _pictures_in(name: str) -> list[str]:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return [name]
    inside = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in READABLE)
    if not inside:
        raise UserError(f"data.path={name} holds no image ({', '.join(READABLE)})")
    return inside
