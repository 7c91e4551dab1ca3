"""What `python -m scoreexp.inspect` writes and prints."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from test_data_files import write_cifar

from scoreexp.app.commands.inspect import contact_sheet, inspect_data
from scoreexp.app.conf_dir import conf_dir
from scoreexp.data import DataError
from scoreexp.data.wav import Wav, write_wav


def config(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("inspect", list(overrides))


def test_inspection_counts_and_describes_what_is_there(tmp_path, capsys):
    write_cifar(tmp_path / "set")
    overrides = [
        "data=cifar10",
        f"data.root={tmp_path / 'set'}",
        "data.num_images=6",
        f"run_dir={tmp_path / 'run'}",
    ]
    inspect_data(config(*overrides))
    found = json.loads((tmp_path / "run" / "data.json").read_text())
    assert found["samples"] == {"train": 15, "val": 3, "test": 3, "trained on": 6}
    assert found["event_shape"] == [3, 32, 32]
    assert found["classes"] == [3, 1, 0, 0, 0, 0, 0, 0, 0, 2]  # labels 0, 9, 0 and 1, 9, 0
    assert sum(found["histogram"]["share"]) == pytest.approx(1)
    printed = capsys.readouterr().out
    assert "15 train (6 in use), 3 val, 3 test" in printed
    assert (tmp_path / "run" / "contact_sheet.png").exists()


def test_inspection_compares_every_checksum(tmp_path):
    write_cifar(tmp_path / "set")
    arguments = ["data=cifar10", f"data.root={tmp_path / 'set'}", f"run_dir={tmp_path / 'run'}"]
    inspect_data(config(*arguments))
    prepared = tmp_path / "set" / ".scoreexp-cache" / "cifar10-train.cache"
    data = bytearray(prepared.read_bytes())
    data[30_000] ^= 1
    prepared.write_bytes(data)
    with pytest.raises(DataError, match="wrong checksum"):
        inspect_data(config(*arguments))


def test_contact_sheet_shows_each_picture_in_its_place(tmp_path):
    x = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 32, 32)
    contact_sheet(x, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 66, 3 * 66, 3)
    centres = sheet[32::66, 32::66, 0].reshape(-1)
    assert centres.tolist() == [0, 64, 128, 191, 255, 255]


def test_the_sheet_of_speech_shows_amplitudes_and_that_of_a_cube_three_bands(tmp_path):
    tone = np.sin(2 * np.pi * 3000 * np.arange(24000) / 16000).astype(np.float32)
    (tmp_path / "speech").mkdir()
    for n in range(12):
        write_wav(tmp_path / "speech" / f"{n}.wav", Wav(tone, 16000))
    speech = [
        "data=speech",
        f"data.root={tmp_path / 'speech'}",
        "data.snr=[90,90]",
        "data.frames=64",
        "data.val_fraction=0.3",
        "data.test_fraction=0.3",
    ]
    inspect_data(config(*speech, f"run_dir={tmp_path / 'a'}"))
    with Image.open(tmp_path / "a" / "contact_sheet.png") as sheet:
        assert sheet.mode == "L"
        brightest = np.asarray(sheet)[:256].astype(float).mean(1).argmax()
    assert abs(brightest - (255 - 3000 * 510 / 16000)) <= 1  # 3 kHz, from the bottom

    bands = np.broadcast_to(np.arange(7, dtype=np.float32)[:, None, None], (7, 40, 16))
    np.save(tmp_path / "cube.npy", bands)
    cube = ["data=cubes", f"data.root={tmp_path / 'cube.npy'}", "data.size=16", "data.crops=2"]
    inspect_data(config(*cube, f"run_dir={tmp_path / 'b'}"))
    sheet = np.asarray(Image.open(tmp_path / "b" / "contact_sheet.png"))
    np.testing.assert_allclose(sheet[0, 0], 255 * np.array([1, 3, 5]) / 6, atol=1)
