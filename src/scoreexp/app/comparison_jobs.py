"""The runs of a comparison: their settings, their jobs, and whether their results can be compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig

from scoreexp.app.composition import composed
from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.config_check import check_config
from scoreexp.app.jobs import Job, quoted
from scoreexp.core.errors import UserError
from scoreexp.runs.reporting import Plan, conditions
from scoreexp.runs.reporting.reading import read_config
from scoreexp.runs.reporting.runs import slug
from scoreexp.runs.reporting.settings import method_settings
from scoreexp.train import PROVIDED, SCHEMA

MODULE = "scoreexp.train"


class Case(NamedTuple):
    """One run of a comparison; ``image`` is None where the method's settings name the data."""

    method: str
    seed: int
    image: str | None

    @property
    def swept(self) -> list[str]:
        """What it has for itself, as overrides."""
        image = [] if self.image is None else [f"data.path={self.image}"]
        return [f"method={slug(self.method)}", *image, f"seed={self.seed}"]


def cases_of(plan: Plan, methods: Sequence[str]) -> list[Case]:
    """The runs of some methods of a plan: of all methods with the first seed, then with the next."""
    return [Case(method, seed, image) for seed, image in plan.cases for method in methods]


def job_of(plan: Plan, case: Case, root: Path) -> Job:
    """The job of a run in the comparison's folder."""
    method, seed, image = case
    return Job(
        f"{method}, seed {seed}" if image is None else f"{method}, {image}, seed {seed}",
        MODULE,
        (*config_options(), *overrides_of(plan, method, image), f"seed={seed}"),
        plan.folder(root, method, seed, image),
    )


def config_options() -> list[str]:
    """The options by which a job finds the configuration folders of this command."""
    if not HydraConfig.initialized():
        return []
    folders = {source.provider: source.path for source in HydraConfig.get().runtime.config_sources}
    options = {"--config-path": folders["main"], "--config-dir": folders.get("command-line")}
    return [f"{key}={path}" for key, path in options.items() if path not in (None, str(conf_dir()))]


def overrides_of(plan: Plan, method: str, image: str | None = None) -> list[str]:
    """What a method is trained with, without its seed: its own settings first, then those that are equal for all."""
    target = plan.target if plan.mode == "target" else None
    equal = [
        f"callbacks.stop.monitor={plan.monitor}",
        f"callbacks.stop.target={_number(target)}",
        f"callbacks.budget.seconds={_number(plan.seconds)}",
    ]
    if plan.mode == "budget":
        equal.append("trainer.max_steps=-1")
    picture = [] if image is None else [f"data.path={quoted(image)}", "data.name=null"]
    return [*plan.methods[method], *picture, *plan.shared, *equal]


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def checked_configs(cases: Sequence[Case], jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """The configuration of each method, of which its seeds and images need not be composed again.

    Raises:
        UserError: one cannot be composed or does not pass the check, or a job's folder holds a run with other settings.
    """
    configs: dict[str, dict[str, Any]] = {}
    for case, job in zip(cases, jobs):
        if case.method not in configs:
            configs[case.method] = checked_config(job.name, [*job.overrides, job.folder_override])
        config = configs[case.method]
        if case.image is not None:
            config = config | {"data": config["data"] | {"path": case.image}}
        _require_same_settings(job, config)
    return configs


def checked_config(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The configuration that a training command composes.

    Args:
        name: begins the message of an error.
        words: its command line.

    Raises:
        UserError: it cannot be composed or does not pass the check.
    """
    try:
        config = composed(words, "train")
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if problems := check_config(config, schema=SCHEMA, provided=PROVIDED):
        raise UserError("\n".join(f"{name}: {problem}" for problem in problems))
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
