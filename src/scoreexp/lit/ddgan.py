"""Training of a denoising diffusion GAN: two optimisers, stepped by hand."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.streams import generator, stream_seed
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import FiniteNonNegativeFloat, NonNegativeInt, PositiveInt, Probability
from scoreexp.data.module import DataModule
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.denoisers.preconditioning import X0Prediction
from scoreexp.lit.ema import EMA
from scoreexp.lit.module import ScoreModule
from scoreexp.objectives import DiscreteTime, Objective, TimeLaw
from scoreexp.objectives.adversarial import (
    Step,
    discriminator_losses,
    generator_losses,
    gradient_penalties,
    step_of,
)

SURE = 0.01  # a loss of the discriminator below it: hardly a pair in a hundred is taken for one of the other kind
SAME = 1e-6  # a deviation of the logits below it: every pair gets the same


class DiscriminatorCollapseError(UserError):
    """The discriminator tells the generator nothing any more."""


class _Pairs(NamedTuple):
    """States at the two times of a step, of data and drawn, and the scales of that step."""

    step: Step
    x_t: Tensor
    of_data: Tensor
    drawn: Tensor


class DDGAN(ScoreModule):
    r"""A denoising diffusion GAN: each of a few large steps is drawn by a conditional GAN.

    1. :math:`x_s \sim q(x_s | x_0)`, :math:`x_t \sim q(x_t | x_s)` for one of the T steps from t to s, the pair of data;
    2. :math:`x_0' = G(x_t, z, t)`, :math:`x_s' \sim q(x_s | x_t, x_0')`, the drawn pair;
    3. one step of the discriminator D(x_s, x_t, t) on :math:`L_D` and, in every k-th batch, on R1 of the pairs of data,
       :math:`\frac{\gamma k}{2} |\nabla_{x_s} D|^2`;
    4. one step of the generator on :math:`L_G`.

    The losses are those of ``scoreexp.objectives.adversarial``. The denoiser is the generator: ``network=generator_mlp`` or
    ``generator_unet`` with ``precond=x0``, ``time_law=discrete`` with T steps and ``sampler=ddgan``. It has no posterior
    mean, so there is nothing to denoise with and no score. ``objective`` is not used. A batch is one training step.

    References: Z. Xiao, K. Kreis, A. Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs",
    2022, https://arxiv.org/abs/2112.07804; T. Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020,
    https://arxiv.org/abs/1912.04958, for the penalty in every k-th batch only, k times as large.

    >>> from functools import partial
    >>> from scoreexp import networks
    >>> from scoreexp.objectives import DenoisingScoreMatching, X0Weighting
    >>> from scoreexp.schedules import VP
    >>> network = networks.Generator(network=partial(networks.MLP, width=8), event_shape=(2,), latent_channels=4)
    >>> module = DDGAN(
    ...     denoiser=Denoiser(network, X0Prediction(), VP()),
    ...     discriminator=networks.PointDiscriminator,
    ...     objective=DenoisingScoreMatching(X0Weighting()),
    ...     time_law=DiscreteTime(steps=4),
    ...     optimizer=torch.optim.Adam,
    ...     discriminator_optimizer=torch.optim.Adam,
    ... )
    >>> module.automatic_optimization
    False

    Args:
        denoiser: the generator, with its schedule.
        discriminator: makes the network ``D(x_s, x_t, c_noise) -> [B]`` from ``event_shape`` (a Hydra ``_partial_``).
        objective: not used.
        time_law: the T times.
        optimizer: constructor of the generator's.
        discriminator_optimizer: constructor of the discriminator's.
        penalty: gamma of R1.
        penalty_every: k, batches between two penalties.
        patience: training stops after so many batches in a row in which the discriminator is useless, because it tells all
            pairs apart or says the same of all.
        warmup_steps: of both learning rates.
        cooldown: of both learning rates.
        ema: decay law of the generator's averaged weights, or None.
        compile: run the generator through ``torch.compile``.
        seed: names the random streams.

    Raises:
        ValueError: an argument is outside its domain.
        UserError: (in training) network, parameterisation, time law, precision or devices do not suit.
        DiscriminatorCollapseError: (in training) after ``patience`` useless batches.
    """

    bad_batches: Tensor

    @checked
    def __init__(
        self,
        *,
        denoiser: Denoiser,
        discriminator: Callable[..., nn.Module],
        objective: Objective,
        time_law: TimeLaw,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        discriminator_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        penalty: FiniteNonNegativeFloat = 0.05,
        penalty_every: PositiveInt = 15,
        patience: PositiveInt = 1000,
        warmup_steps: NonNegativeInt = 0,
        cooldown: Probability = 0.0,
        ema: EMA | None = None,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            denoiser=denoiser,
            objective=objective,
            time_law=time_law,
            optimizer=optimizer,
            warmup_steps=warmup_steps,
            cooldown=cooldown,
            ema=ema,
            compile=compile,
            seed=seed,
        )
        self.automatic_optimization = False
        self.discriminator = discriminator(event_shape=denoiser.event_shape)
        self.make_discriminator_optimizer = discriminator_optimizer
        self.penalty, self.penalty_every, self.patience = penalty, penalty_every, patience
        self.register_buffer(
            "bad_batches", torch.zeros(2, dtype=torch.long)
        )  # in a row: all told apart, all the same

    @property
    def steps(self) -> int:
        """T."""
        return int(getattr(self.time_law, "steps", 0))

    def prepare(self, data: DataModule) -> None:
        """Refuse what is no generator.

        Raises:
            UserError: names what must be set with ``model=ddgan``.
        """
        super().prepare(data)
        denoiser = self.denoiser
        suits = denoiser.latent_channels and isinstance(denoiser.preconditioning, X0Prediction)
        if not (suits and isinstance(self.time_law, DiscreteTime)):
            raise UserError(
                "model=ddgan trains a generator on a few times: set network=generator_mlp or generator_unet, precond=x0, "
                "time_law=discrete, time_law.steps=4 and sampler=ddgan with it"
            )

    def configure_callbacks(self) -> list[pl.Callback]:
        """None; but this is asked before Lightning's own checks of a trainer for two optimisers, which name no remedy."""
        trainer = self.trainer
        if trainer.world_size > 1:
            raise UserError(
                f"model=ddgan trains on one device, not on {trainer.world_size}: set trainer=gpu or cpu"
            )
        if trainer.precision == "16-mixed":
            raise UserError(
                "trainer.precision=16-mixed: the gradient penalty overflows in it, set trainer.precision=bf16-mixed"
            )
        if trainer.gradient_clip_val or trainer.accumulate_grad_batches != 1:
            raise UserError(
                "model=ddgan steps two optimisers in each batch: set trainer.gradient_clip_val=null and "
                "trainer.accumulate_grad_batches=1"
            )
        return []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._require_useful_discriminator()

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        if batch.x is None:
            raise UserError("the batch holds no clean data (x): check the data configuration")
        self._seed_dropout(stream_seed(self.seed, "dropout", batch_idx, self.trainer.global_rank))
        # not Lightning's wrapper for the discriminator: its steps would count as training steps
        _, of_discriminator = self.optimizers(use_pl_optimizer=False)  # type: ignore[misc]
        of_generator, _ = self.optimizers()  # type: ignore[misc]
        pairs = self._pairs(batch.x, batch_idx)  # 1. and 2.

        of_discriminator.zero_grad()
        losses = self._discriminator_losses(pairs, penalised=batch_idx % self.penalty_every == 0)  # 3.
        self._require_finite(losses, pairs)
        self.manual_backward(losses.mean())
        of_discriminator.step()

        of_generator.zero_grad()
        self.discriminator.requires_grad_(False)
        generator_loss = generator_losses(self._logits(pairs, pairs.drawn))  # 4.
        self._require_finite(generator_loss, pairs)
        self.manual_backward(generator_loss.mean())
        self.discriminator.requires_grad_(True)
        means = {"train/loss": generator_loss, "train/discriminator_loss": losses}
        self._book({name: values.detach().mean() for name, values in means.items()})
        of_generator.step()

        schedulers = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()  # type: ignore[call-arg]

    def _pairs(self, x_0: Tensor, batch_idx: int) -> _Pairs:
        t, noise = self._draws(batch_idx, x_0)
        step = step_of(self.denoiser.schedule, t, self.steps)
        x_s, x_t = step.forwards(x_0, noise, self._normal("transition", batch_idx, x_0))
        latent = self._normal("latent", batch_idx, x_0.new_empty(len(x_0), self.denoiser.latent_channels))
        x0_drawn = self.denoiser(x_t, t, latent)
        drawn = step.backwards(x_t, x0_drawn, self._normal("posterior", batch_idx, x_0))
        return _Pairs(step, x_t, x_s, drawn)

    def _normal(self, purpose: str, batch_idx: int, like: Tensor) -> Tensor:
        stream = generator(self.seed, purpose, batch_idx, device=like.device)
        return torch.randn(like.shape, generator=stream, device=like.device, dtype=like.dtype)

    def _logits(self, pairs: _Pairs, x_s: Tensor) -> Tensor:
        step = pairs.step
        of_s, of_t = torch.hypot(step.alpha_s, step.sigma_s), torch.hypot(step.alpha_t, step.sigma_t)
        c_noise = self.denoiser.preconditioning(step.alpha_t, step.sigma_t).c_noise
        x_t = pairs.x_t
        return self.discriminator(
            x_s / expand_to(of_s, x_s), x_t / expand_to(of_t, x_t), expand_to(c_noise, x_t).flatten()
        )

    def _discriminator_losses(self, pairs: _Pairs, penalised: bool) -> Tensor:
        of_data = pairs.of_data.requires_grad_(penalised)
        real, drawn = self._logits(pairs, of_data), self._logits(pairs, pairs.drawn.detach())
        losses = discriminator_losses(real, drawn)
        bad = torch.stack([losses.detach().mean() < SURE, torch.cat([real, drawn]).detach().std() < SAME])
        self.bad_batches = torch.where(bad, self.bad_batches + 1, 0)
        if penalised and self.penalty:
            losses = losses + self.penalty * self.penalty_every / 2 * gradient_penalties(real, of_data)
        return losses

    def _require_finite(self, losses: Tensor, pairs: _Pairs) -> None:
        if not torch.isfinite(losses).all():
            self._stop_on_non_finite(losses, pairs.step.t)

    def _require_useful_discriminator(self) -> None:
        sure, same = (int(n) >= self.patience for n in self.bad_batches)
        if sure or same:
            does = f"tells all pairs apart (loss below {SURE:g})" if sure else "says the same of every pair"
            raise DiscriminatorCollapseError(
                f"the discriminator has collapsed: for {self.patience} batches up to step {self.global_step} it {does}, so "
                "the generator learns nothing more; start again with a smaller model.discriminator_optimizer.lr, a larger "
                "model.penalty or another seed"
            )

    def configure_optimizers(self) -> Any:
        optimizers = [
            self.make_optimizer(p for p in self.denoiser.parameters() if p.requires_grad),
            self.make_discriminator_optimizer(self.discriminator.parameters()),
        ]
        if not (self.warmup_steps or self.cooldown):
            return optimizers
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(o, self._share_of_lr) for o in optimizers]
