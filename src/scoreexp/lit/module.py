"""The Lightning module of every score model: it wires the algebra to the loop and holds no mathematics of its own."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scoreexp.core.batch import Batch, are_labels
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.streams import generator, stream_seed
from scoreexp.core.types import NonNegativeInt, Probability
from scoreexp.data.module import DataModule, Samples
from scoreexp.data.order import Draw
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.embedding import EmbeddedImages
from scoreexp.lit.ema import EMA
from scoreexp.lit.progress_state import completed_progress
from scoreexp.networks.layers import Constrained, constrain
from scoreexp.objectives import Objective, TimeLaw
from scoreexp.optimizers.schedule_free import ScheduleFreeAdam, keeps_average


class NonFiniteError(UserError, FloatingPointError):
    """A loss or a weight became NaN or infinite.

    >>> import scoreexp as se
    >>> network = se.networks.MLP(event_shape=(2,), width=8, blocks=1)
    >>> denoiser = se.denoisers.Denoiser(network, se.denoisers.VPrediction(), se.schedules.VP())
    >>> _ = se.train(denoiser, torch.full((4, 2), float("nan")), steps=1)
    Traceback (most recent call last):
    scoreexp.lit.module.NonFiniteError: the loss is not finite at step 0 ...
    """


class ScoreModule(pl.LightningModule):
    """Train ``denoiser`` on ``objective``.

    Every random number of a training step is a function of (seed, batch index) alone: the noise levels and the noise
    of the *global* batch are drawn on each device and every rank takes its slice, so a resumed run and a run on another
    number of devices see the same draws. Dropout is seeded per step and rank.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.objectives import DenoisingScoreMatching, UniformTime, VWeighting
    >>> from scoreexp.schedules import VP
    >>> module = ScoreModule(
    ...     denoiser=Denoiser(MLP(event_shape=(2,), width=8, blocks=1), VPrediction(), VP()),
    ...     objective=DenoisingScoreMatching(VWeighting()),
    ...     time_law=UniformTime(),
    ...     optimizer=torch.optim.Adam,
    ...     ema=EMA(decay=0.999),
    ... )
    >>> module.evaluation_denoiser is module.averaged
    True

    Args:
        denoiser: network, preconditioning and schedule.
        objective: per-sample loss. One that is an ``nn.Module`` too has its parameters trained with the network's, and all
            of its state, such as a teacher, in the checkpoints.
        time_law: the law of the training times t. The state of one that learns is in the checkpoints.
        optimizer: constructor that takes the parameters (a Hydra ``_partial_``).
        warmup_steps: linear warm-up of the learning rate over this many optimiser steps.
        cooldown: share of ``trainer.max_steps`` at the end over which the learning rate falls linearly to 0.
        decay_steps: after this many steps the learning rate falls with the inverse square root of the step,
            ``lr / sqrt(max(step / decay_steps, 1))``; 0 for never.
        ema: decay law of the averaged weights, or None for none. With ``ScheduleFreeAdam`` the average is the optimiser's
            own, whatever this is.
        label_dropout: share of the labels that are left out in training, so that the model also knows the null label; of no
            effect where the data have no classes; images that condition the model stay.
        compile: run the network through ``torch.compile`` (in place: checkpoint keys stay the same).
        seed: names the random streams; 0 is a seed like any other.

    Attributes:
        losses: the losses of the last batch on this device, by name; their means over all devices when training is over.
            The means are logged every ``trainer.log_every_n_steps`` steps, at ``trainer.max_steps``, and at a step after
            which a callback stops the run, but not where an evaluation stops it, as at a target.

    Raises:
        ValueError: an argument is outside its domain, or the schedule has no such law of times.
    """

    needs_training: ClassVar[bool] = True  # False: ``prepare`` makes the model, which is then evaluated

    @checked
    def __init__(
        self,
        *,
        denoiser: Denoiser,
        objective: Objective,
        time_law: TimeLaw,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        warmup_steps: NonNegativeInt = 0,
        cooldown: Probability = 0.0,
        decay_steps: NonNegativeInt = 0,
        ema: EMA | None = None,
        label_dropout: Probability = 0.1,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.label_dropout = label_dropout
        self.denoiser = denoiser
        averages = ema is not None or keeps_average(optimizer)
        self.averaged = copy.deepcopy(denoiser).requires_grad_(False) if averages else None
        self.objective, self.time_law = objective, time_law
        time_law.sample(1, denoiser.schedule, generator("first time"))  # refuses before the run has begun
        self.make_optimizer, self.warmup_steps = optimizer, warmup_steps
        self.cooldown, self.decay_steps = cooldown, decay_steps
        self.ema, self.seed = ema, int(seed)
        self.losses: Mapping[str, Tensor] = {}
        self.record: dict[
            str, Any
        ] = {}  # plain data that lets a reader rebuild the model; written to checkpoints
        if compile:
            for module in (self.denoiser, self.averaged):
                if module is not None:
                    module.network.compile()

    @property
    def evaluation_denoiser(self) -> Denoiser:
        """The model that validation, testing and the checkpoint's reader use: averaged if there is an average."""
        return self.denoiser if self.averaged is None else self.averaged

    @property
    def parameter_count(self) -> int:
        """Number of weights of the denoiser."""
        return sum(parameter.numel() for parameter in self.denoiser.parameters())

    def prepare(self, data: DataModule) -> None:
        """Take what the model needs of the data before anything is trained or evaluated.

        Raises:
            UserError: nothing of the model can be trained.
        """
        if not any(parameter.requires_grad for parameter in self.denoiser.parameters()):
            raise UserError("the network has no weights to train: set model=exact_score, or another network")

    def before_training(self, data: DataModule, folder: Path) -> Mapping[str, float]:
        """What is done once the run has a folder; the seconds of each stage, which count as pre-computation."""
        return {}

    def require_embeddable(self, horizon: float) -> None:
        """Refuse to train on images that move along paths up to ``horizon``, as every model but one made for it does.

        Raises:
            UserError: names the remedy.
        """
        raise UserError(f"{type(self).__name__} cannot train on embedded images: set model=score_embedding")

    def embed(self, images: EmbeddedImages) -> None:
        """Train on these paths.

        Raises:
            UserError: as for ``require_embeddable``.
        """
        self.require_embeddable(images.times[-1].item())

    def _draws(self, batch_idx: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Times t[B] (on the CPU) and noise[B, *] of this rank's slice of the global batch ``batch_idx``."""
        local, world, rank = len(like), self.trainer.world_size, self.trainer.global_rank
        mine = slice(rank * local, (rank + 1) * local)
        times = self.time_law.sample(
            world * local, self.denoiser.schedule, generator(self.seed, "time", batch_idx)
        )
        noise_stream = generator(self.seed, "noise", batch_idx, device=like.device)
        noise = torch.randn(
            world * local, *like.shape[1:], generator=noise_stream, device=like.device, dtype=like.dtype
        )
        return times[mine], noise[mine]

    def _drop_labels(self, cond: Tensor, batch_idx: int) -> Tensor:
        """``cond[B]`` with the null label in a share of its places, drawn for the global batch."""
        local, rank = len(cond), self.trainer.global_rank
        stream = generator(self.seed, "label dropout", batch_idx)
        drawn = torch.rand(self.trainer.world_size * local, generator=stream)
        dropped = (drawn < self.label_dropout)[rank * local : (rank + 1) * local]
        return cond.masked_fill(dropped.to(cond.device), int(self.record["num_classes"]))

    def training_batch(self, batch: Batch, t: Tensor) -> Batch:
        """What the objective sees of ``batch`` at times ``t[B]``; for methods whose clean data depend on time."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        like = batch.x if batch.x is not None else batch.y
        if like is None:
            raise UserError(
                "the batch holds neither clean (x) nor observed (y) data: check the data configuration"
            )
        self._seed_dropout(stream_seed(self.seed, "dropout", batch_idx, self.trainer.global_rank))
        t, noise = self._draws(batch_idx, like)
        if self.label_dropout and are_labels(batch.cond):
            batch = batch._replace(cond=self._drop_labels(batch.cond, batch_idx))
        losses = self.objective(self.denoiser, self.training_batch(batch, t), t, noise)
        law, schedule = self.time_law, self.denoiser.schedule
        loss = (law.weights(t, schedule).to(losses) * losses if law.learns else losses).mean()
        if not math.isfinite(loss.item()):
            self._stop_on_non_finite(losses, t)
        if law.learns:
            law.observe(*self._of_all_devices(t, losses.detach()), schedule)
        self._book({"train/loss": loss.detach()})
        return loss

    def _book(self, losses: Mapping[str, Tensor]) -> None:
        """Keep the losses of this batch, and log them if its step has a row; before the step of the optimiser."""
        self.losses = losses
        every, step = self.trainer.log_every_n_steps, self.global_step + 1  # type: ignore[attr-defined]
        if (every and step % every == 0) or step == self.trainer.max_steps:
            self._log_losses()

    def _log_losses(self) -> None:
        for name, loss in self.losses.items():
            self.log(name, loss, on_step=True, on_epoch=False, prog_bar=True, sync_dist=True)

    def _of_all_devices(self, t: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Times and losses of the global batch, on the CPU: what the law learns is the same on every rank."""
        seen = torch.stack([t, losses.to(t)])
        if self.trainer.world_size > 1:
            seen = self.all_gather(seen.to(self.device)).cpu().movedim(0, 1).flatten(1)
        return seen[0], seen[1]

    def _seed_dropout(self, seed: int) -> None:
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:  # on the CPU it would store a stack trace for every other kind of device, at each step
            torch.manual_seed(seed)

    def _stop_on_non_finite(self, losses: Tensor, t: Tensor) -> None:
        ratios = self.denoiser.schedule.noise_level(t)[~torch.isfinite(losses)]
        levels = ", ".join(f"{r:.3g}" for r in ratios[:4].tolist())
        raise NonFiniteError(
            f"the loss is not finite at step {self.global_step} (noise-to-signal ratio {levels}); likely causes: a learning "
            "rate too high (optimizer.lr), fp16 overflow (try trainer.precision=bf16-mixed), or NaN in the data"
        )

    def require_finite_weights(self) -> None:
        """Refuse to go on, or to be saved, with a weight that is not finite.

        Raises:
            NonFiniteError: names the first such parameter.
        """
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(
                    f"weight {name} is not finite at step {self.global_step}; likely cause: a learning rate too high "
                    "(optimizer.lr) or fp16 overflow; the checkpoints on disk are from before and intact"
                )

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule
        if isinstance(data, DataModule):
            classes = data.num_classes is not None
            samples = Samples(data.split("train"), data.train_positions, classes=classes)
            self.objective.prepare(len(samples), lambda elements: samples[Draw(elements.numpy())])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Lightning's count for the logging interval is off by one after some resumes; the optimiser's is the truth.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self._accumulating():
            return
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step % every == 0 or self.trainer.should_stop):  # else no row is written
            self.log(
                "step", float(self.global_step), on_step=True, on_epoch=False
            )  # names the row by steps done
        if self.trainer.should_stop:  # which a callback may have set just now
            self._log_losses()
        if self.averaged is not None:
            optimizer = self.trainer.optimizers[0]
            if isinstance(optimizer, ScheduleFreeAdam):
                optimizer.average(self.averaged, self.denoiser)
            elif self.ema is not None:
                self.ema.update(self.averaged, self.denoiser, self.global_step)

    def on_train_end(self) -> None:
        reduce = self.trainer.strategy.reduce
        self.losses = {name: reduce(loss, reduce_op="mean") for name, loss in self.losses.items()}

    def _accumulating(self) -> bool:
        return bool(self.trainer.fit_loop.epoch_loop._should_accumulate())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The work of a validation batch is the callbacks': see ``scoreexp.lit.callbacks.DenoisingMonitor``."""

    def configure_optimizers(self) -> Any:
        learned = [*self.denoiser.parameters(), *getattr(self.objective, "parameters", list)()]
        optimizer = self.make_optimizer([p for p in learned if p.requires_grad])
        if any(isinstance(module, Constrained) for module in self.denoiser.modules()):
            if isinstance(optimizer, ScheduleFreeAdam):
                raise UserError(
                    "the network keeps the norms of its weights, which the average of ScheduleFreeAdam does not: set "
                    "optimizer=adam, or another network"
                )
            optimizer.register_step_post_hook(lambda *_: constrain(self.denoiser))
        if not (self.warmup_steps or self.cooldown or self.decay_steps):
            return optimizer
        law = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": law, "interval": "step"}}

    def _share_of_lr(self, step: int) -> float:
        share = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay_steps:
            share /= max(step / self.decay_steps, 1.0) ** 0.5
        if not self.cooldown:
            return share
        last = self.trainer.max_steps
        if last < 1:
            raise UserError(
                "model.cooldown needs the number of steps: set trainer.max_steps, or model.cooldown=0"
            )
        return share * min(1.0, max(0.0, (last - step) / (self.cooldown * last)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.require_finite_weights()
        checkpoint["scoreexp"] = self.record
        completed_progress(
            checkpoint["loops"], batches=self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        )


class DDPM(ScoreModule):
    """The baseline of Ho, Jain, Abbeel, 2020, https://arxiv.org/abs/2006.11239: noise prediction, ancestral sampling.

    What makes it a DDPM is its configuration (schedule, preconditioning, weighting); the class only names it.

    >>> from scoreexp.denoisers import EpsPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.objectives import DenoisingScoreMatching, DiscreteTime, EpsWeighting
    >>> from scoreexp.schedules import DDPM as DDPMSchedule
    >>> module = DDPM(
    ...     denoiser=Denoiser(MLP(event_shape=(2,), width=8, blocks=1), EpsPrediction(), DDPMSchedule()),
    ...     objective=DenoisingScoreMatching(EpsWeighting()),
    ...     time_law=DiscreteTime(steps=1000),
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> module.evaluation_denoiser(torch.zeros(1, 2), torch.tensor([0.5])).shape
    torch.Size([1, 2])
    """
