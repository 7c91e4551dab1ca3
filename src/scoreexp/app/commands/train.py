"""One training run, from configuration to result."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scoreexp.app.commands.precompute import embed_training_images, one_at_a_time, require_embeddable
from scoreexp.app.composition import shell_command
from scoreexp.app.starting import adopt, own_checkpoint, require_further_steps, take_weights
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, Points, kind_of
from scoreexp.core.streams import stream_seed
from scoreexp.data import DataModule
from scoreexp.embedding import ImageEmbedding
from scoreexp.figures.images import curves
from scoreexp.lit import ExactScore, NonFiniteError, ScoreEmbedding, ScoreModule
from scoreexp.lit.callbacks import (
    Checkpoints,
    DenoisingMonitor,
    Interrupted,
    PointsMonitor,
    StageTimer,
    StopAtBudget,
    StopOnTarget,
)
from scoreexp.lit.checkpoint import DurableCheckpointIO, read_checkpoint
from scoreexp.lit.csv_logger import CSVLogger
from scoreexp.metrics.functional import WINDOW_SIZE
from scoreexp.runs.directory import RunDirectory, shown
from scoreexp.runs.model import build_denoiser, foreign_packages, model_record
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.processes import failing_together, is_first_process, require_all_processes

C = TypeVar("C", bound=pl.Callback)


class RunResult(NamedTuple):
    """What a run came to.

    Attributes:
        metrics: the last value of every logged metric, and ``best/ssim``.
        checkpoint: the best checkpoint (the last one where none was evaluated).
        seconds: by stage: ``train`` and ``evaluate``, over all resumes, and those of an embedding before them.
        run_dir: the run's directory.
        status: ``finished`` or why the run stopped earlier.
    """

    metrics: dict[str, float]
    checkpoint: Path
    seconds: dict[str, float]
    run_dir: Path
    status: str


class _Parts(NamedTuple):
    """What a run is made of, built from its configuration and accepted."""

    data: DataModule
    record: dict[str, Any]
    module: ScoreModule
    embedding: ImageEmbedding | None
    run: RunDirectory
    callbacks: dict[str, Any]
    trainer: pl.Trainer


def train(cfg: DictConfig) -> RunResult | None:
    """Train as ``cfg`` says; see ``conf/train.yaml``. Returns None after ``dry_run=true``.

    Raises:
        UserError: a setting cannot be used, or the run broke off; its message names the remedy.
        SystemExit: a signal has stopped the run: code 130 or 143.
    """
    _quiet()
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
    if isinstance(module, ExactScore):
        module.store(data.split("train").samples(data.train_positions))
    elif not any(p.requires_grad for p in module.denoiser.parameters()):
        raise UserError("the network has no weights to train: set model=exact_score, or another network")
    if cfg.ckpt and cfg.init_from:
        raise UserError(
            "ckpt and init_from are both set: the first goes on with a run, the second begins one"
        )
    if cfg.init_from:
        take_weights(module, cfg.init_from)
    embedding = instantiate(cfg.embedding) if cfg.embedding else None
    if embedding is not None:
        if not isinstance(module, ScoreEmbedding):
            raise UserError(
                f"{cfg.model._target_} cannot train on embedded images: set model=score_embedding"
            )
        require_embeddable(data)
        module.require_embeddable(embedding.times[-1])
    if cfg.dry_run:
        print(OmegaConf.to_yaml(cfg, resolve=True))
        _describe(cfg, module, data.batch_size)
        return None
    _require_gpu(cfg.trainer.accelerator)
    _require_exact_noise_levels(cfg.trainer.precision)
    run = RunDirectory(cfg.run_dir, cfg.resume)
    if cfg.ckpt and not run.continued:
        require_further_steps(Path(cfg.ckpt), record, cfg.trainer.max_steps)
    callbacks = {
        name: instantiate(node, **_provided(name, cfg, run)) for name, node in cfg.callbacks.items() if node
    }
    monitor = _find(callbacks, DenoisingMonitor) or _find(callbacks, PointsMonitor)
    _require_monitor_suits(monitor, module)
    trainer = instantiate(
        cfg.trainer,
        callbacks=list(callbacks.values()),
        logger=False,
        plugins=[DurableCheckpointIO()],
        default_root_dir=str(run.path),
    )
    require_all_processes(trainer.world_size)
    data.require_shares(trainer.world_size)
    return _Parts(data, record, module, embedding, run, callbacks, trainer)


def _run(cfg: DictConfig, parts: _Parts) -> RunResult:
    data, record, module, embedding, run, callbacks, trainer = parts
    table = CSVLogger(run.path / "metrics.csv")
    nodes = (cfg.logger or {}).values() if trainer.is_global_zero else ()
    further = [instantiate(node, _partial_=True) for node in nodes if node]
    trainer.loggers = [
        table,
        *(make(run_dir=str(run.path), run_config=record["config"], name=cfg.name) for make in further),
    ]
    start = _starting_point(run, cfg.ckpt, record, table, trainer.is_global_zero)
    if trainer.is_global_zero:
        run.describe(OmegaConf.to_yaml(cfg, resolve=True), trainer.strategy.root_device, cfg.seed)
        _describe(cfg, module, data.batch_size)
        print(f"run directory  {shown(run.path)}", flush=True)
    stops = [stop for kind in (StopOnTarget, StopAtBudget) if (stop := _find(callbacks, kind)) is not None]
    if start is not None and (over := _over_already(run, start, stops, trainer.max_steps)):
        print(f"nothing to do  this run is over: {over}", flush=True)
        return _stored_result(run)
    if embedding is not None and isinstance(module, ScoreEmbedding):
        pictures = run.pictures if trainer.is_global_zero else None
        with one_at_a_time(run.path, embedding):
            embedded, seconds = embed_training_images(data, embedding, cfg.seed, pictures)
        module.embed(embedded)
        if (timer := _find(callbacks, StageTimer)) is not None:
            timer.book_before(seconds)
    run.begun = True
    with failing_together(trainer, run.path):
        if isinstance(module, ExactScore):
            monitor = _find(callbacks, DenoisingMonitor)
            evaluations = 1 if monitor is None else monitor.confirm
            status = _evaluate_untrained(trainer, module, data, run, evaluations)
        else:
            status = _fit(trainer, module, data, run, start)
    status = next((stop.reason for stop in stops if stop.reason), status)
    foreign = foreign_packages(record["config"])
    return _conclude(trainer, callbacks, run, table, status, module.parameter_count, foreign)


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


def _find(callbacks: dict[str, Any], kind: type[C]) -> C | None:
    """The callback of this kind, if the configuration has one."""
    return next((callback for callback in callbacks.values() if isinstance(callback, kind)), None)


def _require_monitor_suits(monitor: DenoisingMonitor | PointsMonitor | None, module: ScoreModule) -> None:
    """Refuse a monitor that cannot evaluate this model, before anything is trained."""
    shape = module.denoiser.event_shape
    if isinstance(monitor, DenoisingMonitor) and not isinstance(kind_of(shape), Images):
        raise UserError(
            f"callbacks.monitor denoises pictures, but samples have the shape {shape}: set callbacks=points"
        )
    if isinstance(monitor, PointsMonitor) and kind_of(shape) != Points(2):
        raise UserError(
            f"callbacks.monitor is for points in the plane, but samples have the shape {shape}: "
            "set callbacks=default"
        )
    if isinstance(monitor, DenoisingMonitor) and min(shape[1:]) < WINDOW_SIZE:
        raise UserError(
            f"data.size={min(shape[1:])}: the SSIM of callbacks.monitor has windows of {WINDOW_SIZE} pixels, give at least "
            f"{WINDOW_SIZE} or set callbacks.monitor=null callbacks.stop=null"
        )
    if monitor is not None:
        monitor.require_reachable(module.denoiser.schedule)


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


def _provided(name: str, cfg: DictConfig, run: RunDirectory) -> dict[str, Any]:
    if name == "monitor":
        return {"sampler": instantiate(cfg.sampler), "folder": str(run.pictures), "seed": cfg.seed}
    return {"folder": str(run.checkpoints)} if name == "checkpoints" else {}


def _starting_point(
    run: RunDirectory, ckpt: str | None, record: dict[str, Any], table: CSVLogger, is_first: bool
) -> Path | None:
    """The checkpoint to go on from, or None; the metrics table is cut to its step."""
    path = own_checkpoint(run, record)
    if path is None and ckpt is not None:
        path = run.checkpoints / "last.ckpt"  # the others read it when they have met the first one
        if is_first:
            adopt(Path(ckpt), path)
    if path is None:
        if run.continued:
            print("resumed        no checkpoint had been saved yet: begins anew", flush=True)
    elif is_first:
        step = read_checkpoint(path)["global_step"]
        table.continue_from(int(step))
        print(
            f"resumed        from step {step}, {shown(path if run.continued else Path(str(ckpt)))}",
            flush=True,
        )
    return path


def _over_already(
    run: RunDirectory, start: Path, stops: Sequence[StopOnTarget | StopAtBudget], max_steps: int
) -> str | None:
    """Why there is nothing left to do for ``run``, or None: neither a step nor its conclusion is missing."""
    concluded = read_json(run.path / "metrics.json").get("step")
    if concluded is None or (saved := read_checkpoint(start))["global_step"] != concluded:
        return None
    for stop in stops:
        if stop.state_key in saved["callbacks"]:
            stop.load_state_dict(saved["callbacks"][stop.state_key])
        if stop.reason:
            return stop.reason
    if 0 <= max_steps <= saved["global_step"]:
        return f"it has trained {saved['global_step']} of trainer.max_steps={max_steps} steps"
    return None


def _stored_result(run: RunDirectory) -> RunResult:
    stored = read_json(run.path / "metrics.json")
    checkpoint = run.checkpoints / stored["checkpoint"]
    return RunResult(stored["metrics"], checkpoint, stored["seconds"], run.path, stored["status"])


def _fit(
    trainer: pl.Trainer,
    module: ScoreModule,
    data: pl.LightningDataModule,
    run: RunDirectory,
    start: Path | None,
) -> str:
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except Interrupted as interruption:
        with contextlib.suppress(OSError):  # the terminal may be gone
            saved = run.checkpoints / "last.ckpt"
            print(f"{interruption} at step {trainer.global_step}")
            print(f"checkpoint     {shown(saved) if saved.exists() else 'none: no step was finished'}")
            print(f"go on with     {_resume_command(run)}", flush=True)
        # a process that Lightning has started must not seem to have failed
        raise SystemExit(interruption.exit_code if trainer.is_global_zero else 0) from None
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory at step {trainer.global_step}: keep the global batch with trainer.accumulate_grad_batches=2 "
            "and half of data.batch_size, or set trainer.precision=bf16-mixed, or a smaller network.channels"
        ) from error
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}\n{_last_good(run)}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads data was killed at step {trainer.global_step}, perhaps because memory ran out: "
            f"set data.num_workers=0, or a smaller data.batch_size, and add resume=auto\n{_last_good(run)}"
        ) from error
    return "finished"


def _last_good(run: RunDirectory) -> str:
    saved = run.checkpoints / "last.ckpt"
    if not saved.exists():
        return "no checkpoint had been saved yet"
    return f"last good checkpoint: {shown(saved)} of step {read_checkpoint(saved)['global_step']}"


def _evaluate_untrained(
    trainer: pl.Trainer, module: ExactScore, data: DataModule, run: RunDirectory, evaluations: int
) -> str:
    """Evaluate a model that has nothing to train as often as a confirmed value asks, and save it."""
    for _ in range(evaluations):
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.save_checkpoint(run.checkpoints / "last.ckpt")
    return "finished"


def _conclude(
    trainer: pl.Trainer,
    callbacks: dict[str, Any],
    run: RunDirectory,
    table: CSVLogger,
    status: str,
    parameters: int,
    foreign: Sequence[str],
) -> RunResult:
    """Write metrics.json and the curves, and say what was reached and where it is."""
    metrics: dict[str, float] = {}
    for row in [*table.rows, trainer.callback_metrics]:  # a resumed run may have had no step left to log
        metrics.update({name: float(value) for name, value in row.items() if name != "step"})
    timer, checkpoints = _find(callbacks, StageTimer), _find(callbacks, Checkpoints)
    seconds = {} if timer is None else dict(timer.seconds)
    best = run.checkpoints / "best.ckpt"
    checkpoint = best if best.exists() else run.checkpoints / "last.ckpt"
    if checkpoints is not None and checkpoints.best_score is not None:
        metrics[f"best/{str(checkpoints.monitor).removeprefix('val/')}"] = checkpoints.best_score
        metrics["best/step"] = float(checkpoints.best_step or 0)
    result = RunResult(metrics, checkpoint, seconds, run.path, status)
    if not trainer.is_global_zero:
        return result
    curves(table.rows, ["train/loss"], run.pictures / "loss.png", ylabel="training loss", log=True)
    stop = _find(callbacks, StopOnTarget)
    curves(
        table.rows,
        ["val/ssim", "val/ssim_global"],
        run.pictures / "ssim.png",
        ylabel="SSIM of denoised validation pictures",
        targets={} if stop is None or stop.target is None else {"target": stop.target},
    )
    curves(
        table.rows,
        ["val/score_error", "val/sliced_wasserstein"],
        run.pictures / "points.png",
        ylabel="distance from the exact distribution",
        log=True,
    )
    write_json(  # last: where it lies, nothing is missing
        run.path / "metrics.json",
        {
            "status": status,
            "step": trainer.global_step,
            "metrics": metrics,
            "seconds": seconds,
            "checkpoint": checkpoint.name,
            "parameters": parameters,
        },
    )
    _say_conclusion(result, trainer.global_step, callbacks, foreign)
    return result


def _say_conclusion(result: RunResult, step: int, callbacks: dict[str, Any], foreign: Sequence[str]) -> None:
    metrics, monitor = result.metrics, _find(callbacks, DenoisingMonitor)
    before = sum(v for stage, v in result.seconds.items() if stage not in ("train", "evaluate"))
    status = result.status if f"at step {step}" in result.status else f"{result.status} after {step} steps"
    print(
        f"{status}, "
        + (f"{before:.1f} s of pre-computation, " if before else "")
        + f"{result.seconds.get('train', 0):.0f} s of training and {result.seconds.get('evaluate', 0):.0f} s of evaluation"
    )
    if monitor is not None and "val/ssim" in metrics:
        print(
            f"denoising from sigma {monitor.sigma:g}: SSIM {metrics['val/ssim']:.3f}, "
            f"global SSIM {metrics['val/ssim_global']:.3f}, PSNR {metrics['val/psnr']:.1f} dB; "
            f"best SSIM {metrics.get('best/ssim', metrics['val/ssim']):.3f}"
        )
        _say_where(result.run_dir, "pictures/best.png", "pictures/ssim.png")
    points = _find(callbacks, PointsMonitor)
    if points is not None and points.picture is not None:
        print(points.conclusion(metrics))
        _say_where(result.run_dir, points.picture, "pictures/points.png")
    checkpoint = shown(result.checkpoint)
    trust = (
        [f"trust=[{','.join(foreign)}]"] if foreign else []
    )  # without it no command reads the user's own classes
    print(f"checkpoint     {checkpoint}")
    if points is not None:
        commands = [shell_command("scoreexp.sample", trust, ckpt=checkpoint, n=2000, sampler="heun")]
    else:
        noisy = result.run_dir / "pictures" / "last" / "noisy.png"
        what = {"input": "noisy.png", "sigma": 0.2}
        if monitor is not None and noisy.exists():
            what = {"input": shown(noisy), "sigma": monitor.sigma}
        commands = [
            shell_command("scoreexp.denoise", trust, ckpt=checkpoint, **what, output="clean.png"),
            shell_command("scoreexp.sample", trust, ckpt=checkpoint, n=16),
        ]
    print("try next       " + f"\n{' ' * 15}".join(commands), flush=True)


def _say_where(run_dir: Path, picture: str | Path, curve: str) -> None:
    """Where the files of a run are, as far as it has come to write them."""
    beside = " and loss.png beside it" if (run_dir / "pictures" / "loss.png").exists() else ""
    for label, path, more in (
        ("picture", run_dir / picture, ""),
        ("curves", run_dir / curve, beside),
        ("table", run_dir / "metrics.csv", ""),
    ):
        if path.exists():
            print(f"{label:<15}{shown(path)}{more}")


def _describe(cfg: DictConfig, module: ScoreModule, batch_size: int) -> None:
    """What is about to be trained, in two lines."""
    parameters = module.parameter_count
    copies = 3 + (module.averaged is not None) + 1  # weights, gradients, two Adam moments, average
    shape = " x ".join(str(n) for n in module.record["event_shape"])
    print(f"experiment     {cfg.name}, seed {cfg.seed}: samples of {shape}, batches of {batch_size}")
    print(
        f"network        {type(module.denoiser.network).__name__}, {parameters / 1e6:.2f} M parameters "
        f"({copies * 4 * parameters / 2**20:.0f} MiB with optimiser, without activations), "
        f"{cfg.trainer.max_steps} steps",
        flush=True,
    )


def _resume_command(run: RunDirectory) -> str:
    kept = [argument for argument in sys.argv[1:] if argument.split("=")[0] not in ("run_dir", "resume")]
    return shell_command("scoreexp.train", kept, run_dir=shown(run.path), resume="auto")


def _quiet() -> None:
    """Keep off the terminal what other processes say too, and Lightning's remarks that no user can act on."""
    if not is_first_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*in eval mode at the start of training.*",
        ".*GPU available but not used.*",
        ".*sync_dist=True.*",  # what is logged is the same on all devices, or the first one's time
        ".*``compute`` method of metric .* was called before.*",  # a process without a picture to validate on
    ):
        warnings.filterwarnings("ignore", message)
