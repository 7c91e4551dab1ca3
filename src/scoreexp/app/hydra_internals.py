"""What scoreexp takes from Hydra's private packages: all of it is imported here.

Hydra's public entries do not suffice. ``hydra.main`` composes, makes the run's folder and sets up logging before anything
can be checked; ``hydra.compose`` knows no command line and works on the configuration of the whole process, of which a
sweep and a comparison compose many. These names may change with any version of Hydra, so pyproject.toml bounds it.
"""

from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper as BasicSweeper
from hydra._internal.hydra import Hydra as Hydra
from hydra._internal.utils import create_config_search_path
from hydra._internal.utils import get_args_parser as get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.utils import JobReturn, configure_log, run_job
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, read_write


def hydra_of(task_name: str, folder: Path, extra: Path | None = None) -> Hydra:
    """Hydra over a configuration folder, apart from the process's own.

    Args:
        task_name: what is composed for, as ``hydra.job.name``.
        folder: holds the primary configurations.
        extra: a further folder, whose files come after those of ``folder``: ``--config-dir``.
    """
    search_path = create_config_search_path(str(folder))
    if extra is not None:
        search_path.prepend("command-line", f"file://{extra}", anchor=SearchPathQuery(provider="schema"))
    return Hydra(task_name=task_name, config_loader=ConfigLoaderImpl(config_search_path=search_path))


def run_composed(hydra: Hydra, config_name: str, cfg: DictConfig, task: TaskFunction) -> JobReturn:
    """``Hydra.run`` with a configuration that is composed already, which costs a fifth of a second.

    Args:
        hydra: has composed it.
        config_name: of the primary configuration.
        cfg: with Hydra's own node.
        task: called with ``cfg`` without that node, in the run's folder.
    """
    with read_write(cfg.hydra):
        cfg.hydra.mode = RunMode.RUN
    configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)
    callbacks = Callbacks(cfg)
    callbacks.on_run_start(config=cfg, config_name=config_name)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    done = run_job(task, cfg, "hydra.run.dir", None, context)
    callbacks.on_run_end(config=cfg, config_name=config_name, job_return=done)
    _ = done.return_value  # raises what the task has raised
    return done
