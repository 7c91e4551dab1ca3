"""What every test of the study begins with; the runs are children of this process."""

import os
import signal

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
if hasattr(signal, "SIGHUP"):  # runs get it, also where the study runs under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def _single_thread():
    torch.set_num_threads(1)
