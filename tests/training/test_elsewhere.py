"""Rows of a comparison that are trained elsewhere: the same data, the same clock and the same metric."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, composed
from hydra.utils import instantiate
from omegaconf import DictConfig

import scoreexp
from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_unit
from scoreexp.lit import PeerTraining

# A loop without a library, or torch: its DRUNet has no weights but a last bias, the mean colour of the images.
STAND_IN = """
import json, struct, sys
from pathlib import Path
import numpy as np
request = json.loads(Path(sys.argv[1]).read_text())
images, out = np.load(request["images"]), Path(request["out"])
channels = images.shape[1]
shapes = {"m_head.weight": [1, channels + 1, 3, 3], "m_tail.weight": [channels, 1, 3, 3], "m_tail.bias": [channels]}
for part in ("down1.1", "down2.1", "down3.1", "up1.0", "up2.0", "up3.0"):
    block = part[:-1] + str(1 - int(part[-1]))
    shapes |= {f"m_{part}.weight": [1, 1, 2, 2], f"m_{block}.res.0.weight": [1, 1, 3, 3], f"m_{block}.res.2.weight": [1, 1, 3, 3]}
shapes |= {"m_body.res.0.weight": [1, 1, 3, 3], "m_body.res.2.weight": [1, 1, 3, 3]}
shapes |= {name[:-6] + "bias": [1] for name in shapes if name.endswith("weight") and not name.startswith("m_tail")}
header, body = {}, b""
for name, shape in shapes.items():
    values = (images.mean((0, 2, 3)) + 1) / 2 if name == "m_tail.bias" else np.zeros(shape)
    data = values.astype("<f4").tobytes()
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
    body += data
text = json.dumps(header).encode()
(out / "net.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
(out / "net.json").write_text(json.dumps({"sigma_range": [0.001, 1.0]}))
result = {"model": "net.safetensors", "seconds": 0.01, "steps": 3, "library": "stand-in"}
(out / "result.json").write_text(json.dumps(result))
"""  # noqa: E501


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., DictConfig]:
    """``conftest.tiny`` without what only a model that is trained here has."""
    kept = [word for word in TINY if not word.startswith(("model.", "network.", "experiment="))]
    return lambda *overrides, run="run": composed(
        "train", *kept, "callbacks.monitor.pictures=0", f"run_dir={tmp_path / run}", *overrides
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "loop.py").write_text(STAND_IN)
    return tmp_path / "loop.py"


def peer(script: Path, *overrides: str) -> list[str]:
    return [
        "model=peer", f"model.script={script}", f"model.python={sys.executable}", "callbacks.budget.seconds=5",
        "data.augment=false", "data.validate_on=train", *overrides,
    ]  # fmt: skip


def test_a_loop_of_another_library_is_a_run_like_any_other(tiny, script, capsys):
    cfg = tiny(*peer(script, "seed=5", "model.width=8"))
    result = train(cfg)
    request = json.loads((result.run_dir / "peer" / "request.json").read_text())
    said = {key: request[key] for key in ("seconds", "batch_size", "width", "seed", "device", "threads")}
    assert list(said.values()) == [5, 4, 8, 5, "cpu", torch.get_num_threads()]
    data = instantiate(cfg.data)
    data.setup("fit")
    images = to_unit(data.split("train").samples(data.train_positions))
    error = (images - images.mean((0, 2, 3), keepdim=True))[: cfg.data.num_val].square().flatten(1).mean(1)
    assert result.metrics["val/psnr"] == pytest.approx(float(-10 * error.log10().mean()), abs=1e-3)
    assert result.seconds["training elsewhere"] == 0.01
    model = scoreexp.load(result.checkpoint)
    assert (
        model(torch.randn(1, *model.event_shape), torch.ones(1, dtype=torch.float64)).std((2, 3)).max() < 1e-6
    )
    source = model.record["config"]["source"]
    assert (source["format"], source["library"], source["steps"]) == ("drunet", "stand-in", 3)
    train(tiny(*peer(script, "seed=5", "model.width=8"), "resume=auto"))
    assert "nothing to do" in capsys.readouterr().out
    file = result.run_dir / "peer" / "net.safetensors"  # the same file as a row without training
    again = train(
        tiny("model=trained_elsewhere", f"model.ckpt={file}", "data.validate_on=train", run="other")
    )
    assert again.metrics["val/psnr"] == pytest.approx(result.metrics["val/psnr"], abs=1e-6)


def test_what_keeps_a_peer_from_being_compared_is_said_at_once(tiny, script, tmp_path):
    for overrides, message in (
        (peer(script, "model.seconds=null"), "set model.seconds, or callbacks.budget.seconds"),
        (peer(script, "data.augment=true"), "images as they are stored: set data.augment=false"),
        (peer(tmp_path / "none.py"), "none.py is no file"),
        (["model=trained_elsewhere"], "set model.ckpt=FILE"),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny(*overrides))
        assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_loop_that_fails_is_one_line(tiny, script):
    script.write_text("raise ImportError('no library')")
    with pytest.raises(UserError, match=r"failed under .*no library.*model.python=FILE names") as error:
        train(tiny(*peer(script)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"model": "a.pth"}, "lacks model or seconds"),
        ({"model": "../loop.py", "seconds": 1}, "which is not in"),
        ({"model": "a.pth", "seconds": 1}, "which is not in"),
        ({"model": "here.pth", "seconds": 9.0}, "states 9.0 seconds, more than have passed"),
    ],
)
def test_what_a_loop_states_is_not_taken_on_trust(tmp_path, script, result, message):
    home = tmp_path / "peer"
    home.mkdir()
    (home / "here.pth").touch()
    (home / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=message):
        PeerTraining.result(home, passed=1.0)
