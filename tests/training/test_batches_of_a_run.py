"""Lightning goes through the batches of a data module: resumed, and shared out among processes."""

import itertools
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch

from scoreexp.data import SwissRoll


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch.index.tolist())
        return self.layer(batch.x.mean().view(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_goes_on_with_the_batches_of_the_uninterrupted_one(tmp_path, accumulate):
    def fit(steps, checkpoint=None):
        module = Recorder()
        trainer = pl.Trainer(
            max_steps=steps, accumulate_grad_batches=accumulate, accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, SwissRoll(points=11, batch_size=4), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module.seen

    whole = fit(7)
    assert fit(3) + fit(7, tmp_path / "last.ckpt") == whole
    assert len(whole) == 7 * accumulate


_TWO_RANKS = """
import sys
import pytorch_lightning as pl, torch
from scoreexp.data import SwissRoll

class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen = {"train": [], "test": []}
    def training_step(self, batch, _):
        self.seen["train"].append(batch.index.tolist())
        return self.layer(batch.x).sum()
    def test_step(self, batch, _):
        self.seen["test"].append(batch.index.tolist())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

if __name__ == "__main__":
    trainer = pl.Trainer(max_steps=4, accelerator="cpu", devices=2, strategy="ddp", logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    module, data = Recorder(), SwissRoll(points=110, batch_size=8, num_val=3)
    trainer.fit(module, data)
    trainer.test(module, data)
    torch.save(module.seen, f"{sys.argv[1]}/{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_real_ranks_share_batches_and_evaluate_without_duplicates(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(_TWO_RANKS)
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True, timeout=240)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    data = SwissRoll(points=110, batch_size=8)
    whole = [batch.index.tolist() for batch in itertools.islice(data.train_dataloader(), 4)]
    assert [a + b for a, b in zip(first["train"], second["train"], strict=True)] == whole
    tested = itertools.chain.from_iterable(first["test"] + second["test"])
    assert sorted(tested) == list(range(11))
