"""Models that were trained elsewhere, and other libraries' training loops, as runs: evaluated like every other."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scoreexp.bridge.peers import loops
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.data import DataModule
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.lit.module import ScoreModule
from scoreexp.objectives import Objective, TimeLaw
from scoreexp.runs.model import MODEL_PARTS, load
from scoreexp.system.child import run_child
from scoreexp.system.json_files import read_json, write_json

_PATIENCE = 600.0  # seconds beyond those of training, in which a peer imports and saves


class TrainedElsewhere(ScoreModule):
    """A checkpoint, of ours or of another library, that a run only evaluates: a row of a comparison.

    Network, preconditioning and schedule of the configuration are replaced by those of the checkpoint; objective, time law
    and optimiser are not used.

    >>> from scoreexp.denoisers import X0Prediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.objectives import DenoisingScoreMatching, UniformTime, X0Weighting
    >>> from scoreexp.schedules import VP
    >>> module = TrainedElsewhere(
    ...     denoiser=Denoiser(MLP(event_shape=(2,), width=8), X0Prediction(), VP()),
    ...     objective=DenoisingScoreMatching(X0Weighting()),
    ...     time_law=UniformTime(),
    ...     optimizer=torch.optim.Adam,
    ...     ckpt="network-snapshot.pkl",
    ... )
    >>> module.needs_training
    False

    Args:
        denoiser: as the configuration says; replaced.
        objective: not used.
        time_law: not used.
        optimizer: not used.
        seed: as of ``ScoreModule``.
        ckpt: what ``scoreexp.load`` takes (docs/bridge.md).
        trust: packages whose classes it may name.
    """

    needs_training: ClassVar[bool] = False

    @checked
    def __init__(
        self,
        *,
        denoiser: Denoiser,
        objective: Objective,
        time_law: TimeLaw,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        seed: int = 0,
        ckpt: str | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        super().__init__(
            denoiser=denoiser, objective=objective, time_law=time_law, optimizer=optimizer, seed=seed
        )
        self.ckpt, self.trust = ckpt, trust

    def prepare(self, data: DataModule) -> None:
        """Read the checkpoint.

        Raises:
            UserError: there is none, it cannot be read, or it models images of another number of channels.
        """
        if self.ckpt is None:
            raise UserError("model=trained_elsewhere needs the model: set model.ckpt=FILE")
        self.take(self.ckpt)

    def take(self, path: str | Path) -> None:
        """Become the model of a checkpoint.

        Raises:
            UserError: as of ``prepare``.
        """
        model = load(Path(path).expanduser().resolve(), trust=self.trust)
        shape = tuple(self.record["event_shape"])
        if model.event_shape[0] != shape[0] or len(model.event_shape) != len(shape):
            raise UserError(
                f"{path} models samples of shape {model.event_shape}, the data have {shape}: give data of that kind"
            )
        self.denoiser = model
        config, theirs = self.record["config"], model.record["config"]
        parts = {part: theirs[part] for part in MODEL_PARTS}
        asked = {part: config.get(part) for part in MODEL_PARTS}  # by which a resumed run knows itself
        self.record = {
            **self.record,
            "num_classes": model.record["num_classes"],
            "config": {
                **config,
                **parts,
                "source": theirs.get("source", {"format": "scoreexp"}),
                "asked": asked,
            },
        }


class NotTrainedYet(nn.Module):
    """Stands for a network that does not exist yet.

    >>> NotTrainedYet()(torch.zeros(1), torch.zeros(1))
    Traceback (most recent call last):
    scoreexp.core.errors.UserError: the model is trained by another library first: it has no values yet
    """

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError("the model is trained by another library first: it has no values yet")


class PeerTraining(TrainedElsewhere):
    """Another library's training loop, in an interpreter of its own, on the same images for the same seconds.

    The training images are given to the script as they are stored, without augmentation; the model that it writes is read by
    the bridge, which needs the library here too (docs/bridge.md). Its seconds, from its first step to its last, count as
    pre-computation.

    >>> from scoreexp.denoisers import X0Prediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.objectives import DenoisingScoreMatching, UniformTime, X0Weighting
    >>> from scoreexp.schedules import VP
    >>> module = PeerTraining(
    ...     denoiser=Denoiser(MLP(event_shape=(2,), width=8), X0Prediction(), VP()),
    ...     objective=DenoisingScoreMatching(X0Weighting()),
    ...     time_law=UniformTime(),
    ...     optimizer=torch.optim.Adam,
    ...     library="azula",
    ...     seconds=60.0,
    ... )
    >>> module.script.name, module.request["library"]
    ('loops.py', 'azula')

    Args:
        denoiser: as of ``TrainedElsewhere``.
        objective: not used.
        time_law: not used.
        optimizer: not used.
        seed: of the script's random numbers.
        trust: packages whose classes the model may name.
        library: one of those that ``bridge.peers.loops`` knows.
        python: interpreter that has the library; None for the one of this run.
        script: another script that takes the same request (``bridge/peers/loops.py``).
        seconds: of training.
        batch_size: images of a step.
        width: of its network at full resolution.
        device: ``cpu`` or ``cuda``.
    """

    @checked
    def __init__(
        self,
        *,
        denoiser: Denoiser,
        objective: Objective,
        time_law: TimeLaw,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        seed: int = 0,
        trust: Sequence[str] = (),
        library: Literal["diffusers", "denoising_diffusion_pytorch", "azula"] = "diffusers",
        python: str | None = None,
        script: str | None = None,
        seconds: FinitePositiveFloat | None = None,
        batch_size: PositiveInt = 16,
        width: PositiveInt = 64,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        super().__init__(
            denoiser=denoiser,
            objective=objective,
            time_law=time_law,
            optimizer=optimizer,
            seed=seed,
            trust=trust,
        )
        self.denoiser = Denoiser(NotTrainedYet(), denoiser.preconditioning, denoiser.schedule)
        self.denoiser.event_shape = denoiser.event_shape
        self.python = Path(python or sys.executable).expanduser()
        self.script = Path(script or loops.__file__).expanduser()
        self.seconds = seconds
        self.request = {
            "library": library,
            "batch_size": batch_size,
            "width": width,
            "device": device,
            "seed": seed,
        }

    def prepare(self, data: DataModule) -> None:
        """Refuse what would make the comparison unequal, before anything is written.

        Raises:
            UserError: the seconds are not given, the data are augmented, or interpreter or script is missing.
        """
        if self.seconds is None:
            raise UserError("model=peer trains for a time: set model.seconds, or callbacks.budget.seconds")
        if data.augment or data.rotation or data.gray_share:
            raise UserError(
                "model=peer gets images as they are stored: set data.augment=false, data.rotation=0"
            )
        for name, path in (("python", self.python), ("script", self.script)):
            if not path.is_file():
                raise UserError(
                    f"model.{name}={path} is no file: give that of an interpreter with the library"
                    if name == "python"
                    else f"model.{name}={path} is no file: give a script"
                )

    def before_training(self, data: DataModule, folder: Path) -> Mapping[str, float]:
        """Let the script train, and become the model that it writes.

        Raises:
            UserError: the script fails; the message has its last line and the file with all that it said.
            KeyboardInterrupt, SystemExit: a signal has stopped the run, and the script with all that it had started.
        """
        home = folder / "peer"
        home.mkdir(exist_ok=True)
        (home / "result.json").unlink(missing_ok=True)
        images = data.split("train").samples(data.train_positions)
        np.save(home / "images.npy", images.numpy())
        request = {
            **self.request, "seconds": self.seconds, "threads": torch.get_num_threads(), "out": str(home.resolve()),
            "images": str((home / "images.npy").resolve()),
        }  # fmt: skip
        write_json(home / "request.json", request)
        started = time.perf_counter()
        try:
            self._run(home)
        finally:
            (home / "images.npy").unlink()
        result = self.result(home, passed=time.perf_counter() - started)
        self.take(home / result["model"])
        self.record["config"]["source"] |= {key: result[key] for key in ("library", "steps") if key in result}
        return {"training elsewhere": result["seconds"]}

    def _run(self, home: Path) -> None:
        assert self.seconds is not None
        log = home / "output.log"
        try:
            with log.open("wb") as output:
                files = (self.python.absolute(), self.script.resolve(), (home / "request.json").resolve())
                code = run_child([str(file) for file in files], output, 2 * self.seconds + _PATIENCE)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{self.script} did not end in {2 * self.seconds + _PATIENCE:.0f} s: see {log}"
            ) from None
        except OSError as error:
            raise UserError(f"{self.python} cannot be run ({error.strerror}): set model.python") from error
        if code:
            said = log.read_text(errors="replace").strip().splitlines() or ["nothing said"]
            raise UserError(
                f"{self.script.name} failed under {self.python} ({said[-1][:160]}): see {log}; model.python=FILE names an "
                "interpreter that has the library"
            )

    @staticmethod
    def result(home: Path, passed: float) -> dict[str, Any]:
        """``result.json`` of a folder, checked: its model lies there, and its seconds are within those that passed.

        Raises:
            UserError: it is not so.
        """
        try:
            result = read_json(home / "result.json")
            model = (home / result["model"]).resolve()
            seconds = float(result["seconds"])
        except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
            raise UserError(
                f"{home / 'result.json'} lacks model or seconds ({type(error).__name__}): see bridge/peers/loops.py"
            ) from error
        if not model.is_relative_to(home.resolve()) or not model.exists():
            raise UserError(f"{home / 'result.json'} names {result['model']!r}, which is not in {home}")
        if not 0 <= seconds <= passed:
            raise UserError(f"{home / 'result.json'} states {seconds} seconds, more than have passed")
        return {**result, "seconds": seconds}
