"""What a run asks of its callbacks beyond Lightning's hooks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from scoreexp.lit.module import ScoreModule


class Curves(NamedTuple):
    """A plot of logged values against the step.

    Attributes:
        names: of the values; those that were never logged are left out.
        file: name of the PNG among the run's figures.
        ylabel: label of the vertical axis.
        log: logarithmic vertical axis.
    """

    names: Sequence[str]
    file: str
    ylabel: str
    log: bool = False


class NextCommand(NamedTuple):
    """A command of scoreexp to go on with.

    Attributes:
        name: such as ``denoise``.
        settings: its keys and values, but for the checkpoint.
    """

    name: str
    settings: Mapping[str, Any]


class RunCallback(pl.Callback):
    """A callback that the run asks about more than the training loop; one that has nothing to say keeps these answers.

    >>> class LastLoss(RunCallback):
    ...     def conclusion(self, metrics):
    ...         return f"loss of the last step {metrics['train/loss']:.2f}"
    >>> LastLoss().conclusion({"train/loss": 0.5})
    'loss of the last step 0.50'

    Attributes:
        reason: why it has stopped the run, or None. A run that is over stays over when it is resumed, so the state that
            it comes from belongs to ``state_dict``.
        evaluations: how many evaluations in a row its values stand on.
        curves: what is plotted when the run is over.
        picture: file of the figure that shows the result of the run, or None while there is none.
    """

    reason: str | None = None
    evaluations: int = 1
    curves: Sequence[Curves] = ()
    picture: Path | None = None

    def require_suits(self, module: ScoreModule) -> None:
        """Refuse a model that it cannot work with, before anything is trained or written.

        Raises:
            UserError: names what does not suit and the remedy.
        """

    def book_before(self, seconds: Mapping[str, float]) -> None:
        """Hear of stages, such as a pre-computation, that the run went through before training."""

    def stage_seconds(self) -> Mapping[str, float]:
        """Seconds of the run by stage."""
        return {}

    def targets(self) -> Mapping[str, float]:
        """Values at which it stops the run, by the name under which they are logged."""
        return {}

    def results(self) -> Mapping[str, float]:
        """What it adds to the logged values of a run that is over."""
        return {}

    def conclusion(self, metrics: Mapping[str, float]) -> str | None:
        """What it says of a run that is over, in a line; ``metrics``: the last values as logged, and all ``results``."""
        return None

    def next_commands(self) -> Sequence[NextCommand]:
        """What the model can be used for."""
        return ()


class Monitor(RunCallback):
    """A callback that evaluates the model during training, and its final weights whatever the interval is.

    >>> from types import SimpleNamespace
    >>> trainer = SimpleNamespace(max_steps=10, global_step=10, should_stop=False)
    >>> Monitor().on_train_batch_end(trainer, None, None, None, 9)
    >>> trainer.should_stop  # which makes Lightning evaluate once more
    True
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.max_steps == trainer.global_step:
            trainer.should_stop = True
