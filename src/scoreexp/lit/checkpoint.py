"""Lightning's checkpoints, written and read as ``scoreexp.runs.checkpoint_file`` does, which needs no Lightning."""

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from scoreexp.runs.checkpoint_file import newest_intact as newest_intact
from scoreexp.runs.checkpoint_file import read_checkpoint as read_checkpoint
from scoreexp.runs.checkpoint_file import write_checkpoint as write_checkpoint
from scoreexp.runs.checkpoint_path import CheckpointError as CheckpointError


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin on top of ``write_checkpoint`` and ``read_checkpoint``.

    >>> import tempfile
    >>> io, checkpoint = DurableCheckpointIO(), {"state_dict": {}, "scoreexp": {"format": 1, "config": {}}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     io.save_checkpoint(checkpoint, f"{folder}/last.ckpt")
    ...     io.load_checkpoint(f"{folder}/last.ckpt") == checkpoint
    True
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)
