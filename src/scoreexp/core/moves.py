"""Where names have moved: checkpoints, configurations and ``_target_``s that were written before keep working.

A name is looked up by its longest prefix in ``MOVED``; names that never moved stand for themselves. An entry is added when
a module moves and never removed.
"""

from collections.abc import Mapping
from typing import Any

MOVED: Mapping[str, str] = {
    f"scoreexp.{old}": f"scoreexp.{new}"
    for old, new in {
        # from 0.1, where most modules lay at the root
        "angular_flow": "denoisers.angular_flow",
        "app_help": "app.help",
        "atomic": "system.atomic",
        "batch": "core.batch",
        "build": "runs.model",
        "callbacks": "lit.callbacks",
        "comparing": "app.commands.compare",
        "composition": "app.composition",
        "conf_dir": "app.conf_dir",
        "config_check": "app.config_check",
        "data.noise_level": "observations.noise.level",
        "data.ranges": "core.ranges",
        "data.score_cache": "embedding.cache",
        "denoiser": "denoisers.denoiser",
        "denoising": "app.commands.denoise",
        "devices": "system.devices",
        "early_checks": "app.early_checks",
        "errors": "core.errors",
        "evaluating": "app.commands.evaluate",
        "field_figures": "figures.fields",
        "fokker_planck": "numerics.fokker_planck",
        "folder_lock": "system.locks",
        "inspection": "app.commands.inspect",
        "jobs": "app.jobs",
        "launchers": "app.launchers",
        "likelihood": "diagnostics.likelihood",
        "linalg": "numerics.linalg",
        "lit.checkpoint_file": "runs.checkpoint_file",
        "lit.checkpoint_path": "runs.checkpoint_path",
        "machine": "system.machine",
        "ode": "numerics.ode",
        "ops": "core.tensors",
        "oracles": "numerics.oracles",
        "parameter_types": "core.types",
        "point_figures": "figures.points",
        "precomputing": "app.commands.precompute",
        "preconditioning": "denoisers.preconditioning",
        # as the yaml files name them: a run goes on only where these names agree
        **{
            f"preconditioning.{kind}Prediction": f"denoisers.{kind}Prediction"
            for kind in ("EDM", "Eps", "Score", "V", "X0")
        },
        "processes": "system.processes",
        "reporting": "runs.reporting",
        "run_directory": "runs.directory",
        "sampling": "app.commands.sample",
        "signatures": "app.signatures",
        "spectral_torch": "numerics.spectral_torch",
        "starting": "app.starting",
        "step_progress": "app.progress",
        "stop_signals": "system.signals",
        "streams": "core.streams",
        "sweep": "app.sweep",
        "tiling": "restorers.tiling",
        "training": "app.commands.train",
        "untrusted": "system.untrusted",
        "wandb_logging": "app.wandb_logging",
        # a class that has left its module
        "callbacks.distribution_monitor.TooFewPicturesError": "metrics.real_samples.TooFewPicturesError",
        "lit.callbacks.distribution_monitor.TooFewPicturesError": "metrics.real_samples.TooFewPicturesError",
    }.items()
}


def current_name(name: str) -> str:
    """The dotted name under which what was called ``name`` is found today.

    >>> current_name("scoreexp.preconditioning.EDMPrediction")
    'scoreexp.denoisers.EDMPrediction'
    >>> current_name("torch.optim.Adam")
    'torch.optim.Adam'
    """
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        if (moved := MOVED.get(".".join(parts[:length]))) is not None:
            return ".".join([moved, *parts[length:]])
    return name


def with_current_names(node: Any) -> Any:
    """A copy of plain data in which every ``_target_`` has its current name.

    >>> with_current_names({"net": [{"_target_": "scoreexp.callbacks.StageTimer"}]})
    {'net': [{'_target_': 'scoreexp.lit.callbacks.StageTimer'}]}
    """
    if isinstance(node, Mapping):
        return {
            key: current_name(value)
            if key == "_target_" and isinstance(value, str)
            else with_current_names(value)
            for key, value in node.items()
        }
    if isinstance(node, (list, tuple)):
        return [with_current_names(value) for value in node]
    return node
