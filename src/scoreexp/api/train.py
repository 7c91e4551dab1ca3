"""Train a denoiser on data in memory."""

import logging
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeInt, PositiveInt
from scoreexp.data import DataModule
from scoreexp.data.split import Split, SplitName
from scoreexp.denoisers import Denoiser
from scoreexp.lit.ema import EMA
from scoreexp.lit.module import ScoreModule
from scoreexp.objectives import DenoisingScoreMatching, EDMWeighting, LogNormalNoise, Objective, TimeLaw
from scoreexp.system.denormals import no_denormals


class TensorData(DataModule):
    """Samples ``[N, *]`` in the units of the model, all in memory.

    >>> data = TensorData(torch.zeros(10, 2), batch_size=4, seed=0)
    >>> data.event_shape, next(iter(data.train_dataloader())).x.shape
    ((2,), torch.Size([4, 2]))
    """

    def __init__(self, samples: Tensor, *, batch_size: int, seed: int) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.samples = samples

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.samples.shape[1:])

    def open_split(self, name: SplitName) -> Split:
        return Split(self.samples.numpy())


@checked
def train(
    denoiser: Denoiser,
    data: Tensor,
    *,
    steps: NonNegativeInt = 1000,
    objective: Objective | None = None,
    time_law: TimeLaw | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    batch_size: PositiveInt = 64,
    ema: EMA | None = None,
    seed: int = 0,
) -> Denoiser:
    """Train on samples in memory; returns the trained denoiser (its average where one is kept), in evaluation mode.

    The same seed gives the same weights. For runs with evaluation, checkpoints and figures use ``python -m scoreexp.train``.

    >>> import torch, scoreexp as se
    >>> network = se.networks.MLP(event_shape=(2,), width=16, blocks=1)
    >>> denoiser = se.denoisers.Denoiser(network, se.denoisers.EDMPrediction(), se.schedules.VP())
    >>> model = se.train(denoiser, torch.randn(100, 2), steps=2)
    >>> model.training
    False

    Args:
        denoiser: network, preconditioning and schedule; trained in place.
        data: ``[N, *]`` floating point, images in [-1, 1].
        steps: of the optimiser.
        objective: loss of each sample; by default denoising score matching with EDM's weighting.
        time_law: law of the training times; by default EDM's log-normal noise levels.
        optimizer: takes the parameters; by default Adam with learning rate 1e-3.
        batch_size: samples per step.
        ema: decay of averaged weights, or None for none.
        seed: names every random stream.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there is no sample, or one of another shape than the network's.
    """
    if not data.is_floating_point():
        raise TypeError(f"data is {data.dtype}: give a floating point tensor [N, *], images in [-1, 1]")
    if data.ndim and not len(data):
        raise ValueError(f"data has shape {tuple(data.shape)}, no sample: give one at least")
    if data.ndim < 2 or denoiser.event_shape not in (None, tuple(data.shape[1:])):
        raise ValueError(
            f"data has shape {tuple(data.shape)}: the network takes samples of {denoiser.event_shape}"
        )
    module = ScoreModule(
        denoiser=denoiser,
        objective=objective or DenoisingScoreMatching(EDMWeighting()),
        time_law=time_law or LogNormalNoise(),
        optimizer=optimizer or partial(torch.optim.Adam, lr=1e-3),
        ema=ema,
        seed=seed,
    )
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings(), no_denormals():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and loggers
        trainer = pl.Trainer(
            accelerator="auto",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, TensorData(data.cpu().float(), batch_size=batch_size, seed=seed))
    model = module.evaluation_denoiser.eval()
    if model.event_shape is None:  # a network of images of any size: samples are drawn of that of the data
        model.event_shape = tuple(data.shape[1:])
    return model
