"""One training run, from configuration to result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scoreexp.app.commands.precompute import embed_training_images, one_at_a_time, require_embeddable
from scoreexp.app.ending import RunResult, conclude, stored_result
from scoreexp.app.fitting import evaluate_untrained, fit
from scoreexp.app.signatures import from_run, resolve, signature
from scoreexp.app.starting import over_already, require_further_steps, starting_point, take_weights
from scoreexp.app.terminal import quiet_training, say, say_labelled
from scoreexp.core.errors import UserError
from scoreexp.core.streams import stream_seed
from scoreexp.data import DataModule
from scoreexp.embedding import ImageEmbedding
from scoreexp.lit import ScoreModule
from scoreexp.lit.callbacks import RunCallback
from scoreexp.lit.checkpoint import DurableCheckpointIO
from scoreexp.lit.csv_logger import CSVLogger
from scoreexp.runs.directory import RunDirectory, shown
from scoreexp.runs.model import build_denoiser, model_record
from scoreexp.system.denormals import no_denormals
from scoreexp.system.processes import failing_together, require_all_processes

NO_EXPERIMENT = "train"  # the name of a run in conf/train.yaml, which an experiment replaces


class _Parts(NamedTuple):
    """What a run is made of, built from its configuration and accepted."""

    data: DataModule
    record: dict[str, Any]
    module: ScoreModule
    embedding: ImageEmbedding | None
    run: RunDirectory
    callbacks: Sequence[RunCallback]
    trainer: pl.Trainer


def train(cfg: DictConfig) -> RunResult | None:
    """Train as ``cfg`` says; see ``conf/train.yaml``. Returns None after ``dry_run=true``.

    Raises:
        UserError: a setting cannot be used, or the run broke off; its message names the remedy.
        SystemExit: a signal has stopped the run: code 130 or 143.
    """
    quiet_training()
    with no_denormals():  # before torch starts its threads
        if (parts := _build(cfg)) is None:
            return None
        with parts.run.opened():  # from here on the run leaves traces: every setting has been accepted
            return _run(cfg, parts)


def _build(cfg: DictConfig) -> _Parts | None:
    """The parts of a run, or None where it is only to be described."""
    data = instantiate(cfg.data)
    data.setup("fit")
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    record = model_record(config, data.event_shape, data.num_classes)
    module = build_module(cfg, record)
    module.prepare(data)
    if cfg.ckpt and cfg.init_from:
        raise UserError("ckpt and init_from are both set: the first resumes a run, the second starts one")
    if cfg.init_from:
        take_weights(module, cfg.init_from)
    embedding = instantiate(cfg.embedding) if cfg.embedding else None
    if embedding is not None:
        module.require_embeddable(embedding.times[-1])
        require_embeddable(data)
    if cfg.dry_run:
        say(OmegaConf.to_yaml(cfg, resolve=True))
        _describe(cfg, module, data.batch_size)
        return None
    _require_gpu(cfg.trainer.accelerator)
    _require_exact_noise_levels(cfg.trainer.precision)
    run = RunDirectory(cfg.run_dir, cfg.resume)
    if cfg.ckpt and not run.continued:
        require_further_steps(Path(cfg.ckpt), record, cfg.trainer.max_steps)
    callbacks = _build_callbacks(cfg, run)
    asked = [callback for callback in callbacks if isinstance(callback, RunCallback)]
    for callback in asked:
        callback.require_suits(module)
    trainer = instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=False,
        plugins=[DurableCheckpointIO()],
        default_root_dir=str(run.path),
    )
    require_all_processes(trainer.world_size)
    data.require_shares(trainer.world_size)
    return _Parts(data, record, module, embedding, run, asked, trainer)


def _run(cfg: DictConfig, parts: _Parts) -> RunResult:
    data, record, module, embedding, run, callbacks, trainer = parts
    table = CSVLogger(run.path / "metrics.csv")
    nodes = (cfg.logger or {}).values() if trainer.is_global_zero else ()
    further = [instantiate(node, _partial_=True) for node in nodes if node]
    trainer.loggers = [
        table,
        *(make(run_dir=str(run.path), run_config=record["config"], name=cfg.name) for make in further),
    ]
    max_steps = trainer.max_steps if module.needs_training else 0
    start = starting_point(run, cfg.ckpt, record, table, trainer.is_global_zero)
    if trainer.is_global_zero:
        run.describe(OmegaConf.to_yaml(cfg, resolve=True), trainer.strategy.root_device, cfg.seed)
        _describe(cfg, module, data.batch_size)
        say_labelled("run directory", shown(run.path))
    if start is not None and (over := over_already(run, start, callbacks, max_steps)):
        say_labelled("nothing to do", f"this run is over: {over}")
        return stored_result(run)
    if embedding is not None:
        pictures = run.pictures if trainer.is_global_zero else None
        with one_at_a_time(run.path, embedding):
            embedded, seconds = embed_training_images(data, embedding, cfg.seed, pictures)
        module.embed(embedded)
        for callback in callbacks:
            callback.book_before(seconds)
    if before := module.before_training(data, run.path):
        for callback in callbacks:
            callback.book_before(before)
    run.begun = True
    with failing_together(trainer, run.path):
        if module.needs_training:
            fit(trainer, module, data, run, start)
        else:
            evaluations = max((callback.evaluations for callback in callbacks), default=1)
            evaluate_untrained(trainer, module, data, run, evaluations)
    return conclude(trainer, module, callbacks, run, table)


def _build_callbacks(cfg: DictConfig, run: RunDirectory) -> list[pl.Callback]:
    """The callbacks of a run, each with the parts of the run that its constructor asks for, see ``FromRun``."""
    parts = {
        "sampler": instantiate(cfg.sampler),
        "pictures": str(run.pictures),
        "checkpoints": str(run.checkpoints),
        "seed": cfg.seed,
    }
    callbacks = []
    for node in filter(None, cfg.callbacks.values()):
        definition = resolve(node._target_)
        asked = from_run(signature(definition)) if definition is not None else {}
        callbacks.append(instantiate(node, **{name: parts[part] for name, part in asked.items()}))
    return callbacks


def build_module(cfg: DictConfig, record: dict[str, Any]) -> ScoreModule:
    """The Lightning module of a run; its initial weights are a function of ``cfg.seed``."""
    torch.manual_seed(stream_seed(cfg.seed, "initial weights"))
    module = instantiate(
        cfg.model,
        denoiser=build_denoiser(record),
        objective=instantiate(cfg.objective),
        time_law=instantiate(cfg.time_law),
        optimizer=instantiate(cfg.optimizer),
        seed=cfg.seed,
    )
    module.record = record
    return module


def _require_gpu(accelerator: Any) -> None:
    """Refuse a GPU that this machine has not."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not (any(found.values()) if accelerator == "gpu" else found.get(accelerator, True)):
        raise UserError(
            f"trainer.accelerator={accelerator}: torch finds no such GPU here: set trainer.accelerator=cpu, or auto"
        )


def _require_exact_noise_levels(precision: Any) -> None:
    """Refuse half precision for everything: noise levels rounded to 8 bits are told apart no longer."""
    if str(precision) in ("16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={precision} rounds the noise levels that the network sees: set {str(precision)[:-4]}mixed"
        )


def _describe(cfg: DictConfig, module: ScoreModule, batch_size: int) -> None:
    """What is about to be trained, in two lines."""
    parameters = module.parameter_count
    copies = 3 + (module.averaged is not None) + 1  # weights, gradients, two Adam moments, average
    shape = module.record["event_shape"]
    samples = (
        f"points of {shape[0]} coordinates"
        if len(shape) == 1
        else f"samples of {' x '.join(map(str, shape))}"
    )
    if cfg.name == NO_EXPERIMENT:
        say_labelled(
            "note",
            "no experiment is chosen: what is not given is a default; --help lists all experiment=NAME",
        )
    say_labelled("experiment", f"{cfg.name}, seed {cfg.seed}: {samples}, batches of {batch_size}")
    say_labelled(
        "network",
        f"{type(module.denoiser.network).__name__}, {parameters / 1e6:.2f} M parameters "
        f"({copies * 4 * parameters / 2**20:.0f} MiB with optimiser, without activations), "
        f"{cfg.trainer.max_steps if module.needs_training else 0} steps",
    )
