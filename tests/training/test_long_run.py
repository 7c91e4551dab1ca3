"""What a run holds does not grow with the number of its steps."""

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from scoreexp.app.commands.train import train

pytestmark = pytest.mark.integration

FILES = Path("/proc/self/fd")
STEPS = (20, 40, 80)  # before the evaluation of that step; the first census imports what it touches


class Census(pl.Callback):
    """Count what is alive at certain steps."""

    def __init__(self):
        self.garbage, self.tensors, self.objects, self.open_files = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx + 1 not in STEPS:
            return
        self.garbage.append(gc.collect())
        alive = gc.get_objects()
        self.tensors.append(sum(isinstance(o, torch.Tensor) for o in alive))
        self.objects.append(Counter(type(o) for o in alive if type(o) not in (Counter, list)))
        self.open_files.append(sorted(os.readlink(f) for f in FILES.iterdir() if f.is_symlink()))


@pytest.mark.skipif(not FILES.is_dir(), reason="needs Linux's list of open files")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_nothing_piles_up_over_the_steps(tiny, monkeypatch):
    census, original = Census(), pl.Trainer.__init__

    def observed(self, *args, callbacks=(), **kwargs):
        original(self, *args, callbacks=[*callbacks, census], **kwargs)

    monkeypatch.setattr(pl.Trainer, "__init__", observed)
    train(
        tiny(
            "trainer.max_steps=81",
            "trainer.val_check_interval=10",
            "callbacks.checkpoints.every_n_steps=20",
            "callbacks.monitor.pictures=4",
        )
    )
    first, last = 1, 2
    assert len(census.objects) == len(STEPS)
    assert census.tensors[first] == census.tensors[last]
    assert census.open_files[first] == census.open_files[last]
    grown = census.objects[last] - census.objects[first]
    assert not {kind: n for kind, n in grown.items() if n >= 4}, (
        "one for each of the four evaluations in between"
    )
    # a drawn picture is some 8,000 objects in cycles
    assert census.garbage[last] < 2000
