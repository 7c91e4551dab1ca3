"""A run that is measured by what it generates."""

import numpy as np
import pytest
from PIL import Image

from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.system.json_files import read_json


def test_a_run_is_stopped_on_what_it_generates(tiny, tmp_path):
    words = ["callbacks.stop.target=-1.0", "trainer.max_steps=6", "callbacks.monitor.pictures=1"]
    result = train(tiny("experiment=photo32_generated_ddim", *words))
    assert -1 <= result.metrics["val/ssim_rescaled"] <= 1
    assert read_json(tmp_path / "run" / "metrics.json")["step"] == 4  # two evaluations, each after two steps
    shown = {path.stem: Image.open(path) for path in (tmp_path / "run" / "pictures" / "last").iterdir()}
    assert set(shown) == {"clean", "start", "generated"}
    start, clean = (np.asarray(shown[name], float) for name in ("start", "clean"))
    assert start.std() > 1.5 * clean.std()  # noise
    with pytest.raises(UserError, match="ssim_rescaled is not logged by this run: set callbacks=generation"):
        train(tiny("callbacks.stop.monitor=val/ssim_rescaled", "callbacks.stop.target=0.9", run="other"))
