"""What every data set of conf/data promises; a new yaml is tested without editing this, given its files."""

import inspect
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate

from scoreexp.app.conf_dir import conf_dir
from scoreexp.data import DataModule
from scoreexp.data.wav import Wav, write_wav

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from test_data_files import write_celeba, write_cifar, write_ffhq, write_folder, write_mnist

NAMES = sorted(path.stem for path in (conf_dir() / "data").glob("*.yaml"))
COMMON = [name for name in inspect.signature(DataModule.__init__).parameters if name != "self"]
WRITERS = {
    "CIFAR10": lambda root, node: write_cifar(root),
    "MNIST": lambda root, node: write_mnist(root),
    "FashionMNIST": lambda root, node: write_mnist(root),
    "CelebA": lambda root, node: write_celeba(root),
    "FFHQ": lambda root, node: write_ffhq(root, node.source),
    "Crops": lambda root, node: write_folder(root),
    "Cubes": lambda root, node: write_cubes(root),
    "Folder": lambda root, node: write_folder(root),
    "Speech": lambda root, node: write_speech(root, node.rate),
}


def write_cubes(root):
    for number in range(12):
        np.save(root / f"{number}.npy", np.random.default_rng(number).random((3, 20, 24)))


def write_speech(root, rate):
    for number in range(6):
        samples = np.random.default_rng(number).normal(0, 0.1, 3000).astype(np.float32)
        write_wav(root / f"{number}.wav", Wav(samples, rate))


def config(name, *overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("inspect", [f"data={name}", *overrides]).data


@pytest.fixture(scope="module", params=NAMES)
def data(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    node = config(request.param, f"data.root={root}", "data.num_workers=0", "data.batch_size=5")
    write = WRITERS.get(node._target_.rsplit(".", 1)[-1])
    if write is not None:
        write(root, node)
    if request.param in ("folder", "faces64", "crops", "cubes"):
        node.size = 16
    if request.param == "crops":
        node.reduction, node.crops = [1.0, 1.0], 3
    if request.param == "speech":
        node.frames = 16
    if "classes" in node:
        node.classes = True
    module = instantiate(node)
    module.setup("fit")
    return module


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_has_the_same_keys_and_no_unknown_one(name):
    node = config(name)
    assert set(COMMON) <= set(node)
    target = get_class(node._target_)
    own = set(inspect.signature(target.__init__).parameters) - {"self", "common"}
    assert set(node) - set(COMMON) - {"_target_"} == own - set(COMMON)
    assert not node.download
    assert len((conf_dir() / "data" / f"{name}.yaml").read_text().splitlines()) < 25


def test_batches_are_model_values_of_the_announced_shape(data):
    for batch in itertools.islice(data.train_dataloader(), 3):
        assert batch.x.shape == (5, *data.event_shape)
        assert batch.x.dtype == torch.float32
        assert batch.x.abs().max() <= 1.05  # the Swiss Roll's noise has no bound
        assert batch.y is None or batch.y.shape == batch.x.shape
        assert batch.score is None
        assert batch.index.dtype == torch.long
        assert set(batch.index.tolist()) <= set(data.train_positions.tolist())
        if data.num_classes is None:
            assert batch.cond is None
        else:
            assert batch.cond.shape == (5,)
            assert 0 <= int(batch.cond.min()) <= int(batch.cond.max()) < data.num_classes


def test_two_loaders_agree_and_each_evaluation_sample_comes_once(data):
    first, second = (next(iter(data.train_dataloader())) for _ in range(2))
    assert torch.equal(first.x, second.x)
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        indices = torch.cat([batch.index for batch in loader]).tolist()
        count = len(data.split(split))
        assert indices == list(range(min(count, data.num_val) if split == "val" else count))


def test_statistics_and_names_describe_the_training_samples(data):
    statistics = data.value_statistics
    channels = data.event_shape[0]
    assert len(statistics.mean) == len(statistics.std) == channels
    assert -1.05 <= statistics.minimum < statistics.maximum <= 1.05
    assert np.isfinite([*statistics.mean, *statistics.std]).all()
    assert len(data.names) in (0, len(data.train_positions))
