"""Which samples a batch holds: a function of (seed, step, rank), whatever loads them."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from scoreexp.core.batch import Batch
from scoreexp.data import CIFAR10, DataError, DataModule, Photo, Split, SwissRoll
from scoreexp.data.augment import Augmentation
from scoreexp.data.order import training_elements
from scoreexp.data.split import choose


class Numbers(DataModule):
    """One-pixel-high images that carry their own position."""

    def __init__(self, count=10, **common):
        super().__init__(**common)
        self.count = count

    @property
    def event_shape(self):
        return (1, 8, 8)

    def open_split(self, name):
        values = np.zeros((self.count, 1, 8, 8), np.uint8)
        values[:, 0, 0, :] = np.arange(self.count)[:, None]
        values[:, 0, :, 0] = 200  # a mark that tells a flip
        return Split(values)


def batches(data, count):
    return list(itertools.islice(data.train_dataloader(), count))


def on_rank(data, rank, world_size):
    data.trainer = SimpleNamespace(
        world_size=world_size, global_rank=rank, global_step=0, accumulate_grad_batches=1
    )
    return data


def equal(a: Batch, b: Batch):
    return all((p is None and q is None) or torch.equal(p, q) for p, q in zip(a, b))


def test_every_epoch_is_another_permutation_and_batches_straddle_epochs():
    elements = training_elements(np.arange(70), size=7, seed=3)
    epochs = elements.reshape(10, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 10
    pieces = [training_elements(np.arange(start, start + 5), size=7, seed=3) for start in range(0, 70, 5)]
    assert np.array_equal(np.concatenate(pieces), elements)
    assert not np.array_equal(training_elements(np.arange(70), size=7, seed=0), elements)


@pytest.mark.parametrize("count", [1, 3, 10, 64])
def test_batches_have_one_size_even_beyond_the_set(count):
    data = Numbers(count, batch_size=8)
    seen = torch.cat([batch.index for batch in batches(data, 3 * count)])
    assert [len(batch.x) for batch in batches(data, 5)] == [8] * 5
    assert torch.bincount(seen, minlength=count).tolist() == [24] * count  # 3 N batches of 8 are 24 epochs


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worker_processes_change_nothing(workers):
    options = {"batch_size": 6, "augment": True, "rotation": 10.0, "seed": 5}
    expected = batches(Numbers(num_workers=0, **options), 8)
    found = batches(Numbers(num_workers=workers, **options), 8)
    assert all(equal(a, b) for a, b in zip(expected, found, strict=True))


def test_seeds_name_batches_and_zero_is_a_seed():
    first, second, third = (batches(Numbers(augment=True, seed=seed), 3) for seed in (0, 1, 0))
    assert not any(torch.equal(a.x, b.x) for a, b in zip(first, second))
    assert all(equal(a, b) for a, b in zip(first, third))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_each_batch_out(world_size):
    options = {"batch_size": 8, "augment": True, "rotation": 5.0}
    whole = batches(Numbers(**options), 6)
    shares = [batches(on_rank(Numbers(**options), rank, world_size), 6) for rank in range(world_size)]
    for batch, *parts in zip(whole, *shares):
        assert torch.equal(batch.x, torch.cat([part.x for part in parts]))
        assert torch.equal(batch.index, torch.cat([part.index for part in parts]))


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(DataError, match=r"batch_size=8 is over all devices: give a multiple of the 3"):
        on_rank(Numbers(batch_size=8), 0, 3).setup("fit")


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_gives_every_sample_once_without_padding(world_size):
    ranks = [on_rank(Numbers(11, batch_size=6), rank, world_size) for rank in range(world_size)]
    loaders = [data.test_dataloader() for data in ranks]
    seen = [batch.index for loader in loaders for batch in loader]
    assert sorted(torch.cat(seen).tolist()) == list(range(11))
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]
    validation = torch.cat([batch.index for batch in Numbers(11, num_val=4).val_dataloader()])
    assert validation.tolist() == [0, 1, 2, 3]


def test_iteration_starts_at_the_first_batch_that_is_asked_for():
    whole = batches(Numbers(augment=True), 9)
    resumed = Numbers(augment=True)
    resumed.first_batch = lambda: 4
    assert all(equal(a, b) for a, b in zip(whole[4:], batches(resumed, 5), strict=True))


# --------------------------------------------------------------------------------- choice of samples


def test_halves_are_disjoint_cover_the_split_and_do_not_depend_on_the_seed():
    first, second = choose(101, half="first"), choose(101, half="second")
    assert sorted([*first, *second]) == list(range(101))
    assert abs(len(first) - len(second)) == 1
    assert first.tolist() != list(range(50))
    assert np.array_equal(Numbers(30, half="first", seed=9).train_positions, choose(30, half="first"))
    assert choose(101, half="second", num_images=5).tolist() == second[:5].tolist()


def test_num_images_and_indices_choose_training_samples():
    assert Numbers(num_images=3).train_positions.tolist() == [0, 1, 2]
    data = Numbers(indices=[7, 2], batch_size=4)
    assert sorted(batches(data, 1)[0].index.tolist()) == [2, 2, 7, 7]
    assert sum(len(batch.x) for batch in data.test_dataloader()) == 10  # evaluation keeps the whole split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 11}, r"num_images=11, but 10 training images.*1\.\.10"),
        ({"num_images": 6, "half": "first"}, r"num_images=6, but 5"),
        ({"indices": [3, 10]}, r"holds 10, .*positions 0\.\.9"),
        ({"indices": [-1]}, "holds -1"),
        ({"indices": []}, "names no image"),
        ({"indices": [1], "num_images": 1}, "num_images=null"),
    ],
)
def test_a_wrong_choice_of_samples_is_one_line(options, message):
    with pytest.raises(DataError, match=message) as error:
        Numbers(**options).setup("fit")
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------- augmentation


def test_half_the_images_are_flipped_and_only_left_to_right():
    x = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4).repeat(4000, 1, 1, 1)
    out = Augmentation(flip=True, rotation=0, seed=1)(x.clone(), np.arange(4000))
    flipped = (out == x.flip(-1)).all(dim=(1, 2, 3))
    assert (flipped | (out == x).all(dim=(1, 2, 3))).all()
    assert abs(int(flipped.sum()) - 2000) < 4.5 * 1000**0.5  # binomial, two-sided p = 1e-5


def test_an_image_is_augmented_anew_each_time_it_comes():
    x = torch.cat([batch.x for batch in batches(Numbers(1, batch_size=8, augment=True), 4)])
    marked = x[:, 0, 0, 0] == x[0, 0, 0, 0]
    assert 4 < int(marked.sum()) < 28  # binomial of 32: p = 2e-5


def test_draws_depend_on_the_place_alone():
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    augment = Augmentation(flip=True, rotation=20, seed=1)
    places = np.array([3, 1020, 1025, 5000, 7, 2048])
    whole = augment(x.clone(), places)
    one_by_one = [augment(x[i : i + 1].clone(), places[i : i + 1]) for i in range(6)]
    assert torch.equal(whole, torch.cat(one_by_one))


@pytest.mark.parametrize("shape", [(24, 24), (24, 32)])
def test_rotation_is_a_rotation_about_the_centre_within_its_limit(shape):
    rows, columns = np.indices(shape)
    image = np.sin(rows / 5) + np.cos(columns / 7) * rows / 24
    count = 200
    x = torch.tensor(image, dtype=torch.float32).repeat(count, 1, 1, 1)
    out = Augmentation(flip=False, rotation=30, seed=2)(x, np.arange(count)).numpy()[:, 0]
    angles = np.linspace(-30, 30, 121)
    inside = np.s_[8:-8, 8:-8]  # what the border mirrors is left out
    candidates = np.stack([ndimage.rotate(image, angle, reshape=False, order=1)[inside] for angle in angles])
    errors = np.abs(out[:, None][(slice(None), slice(None), *inside)] - candidates).max((2, 3))
    assert errors.min(1).max() < 0.02  # the angles are tried 0.5 degrees apart
    found = angles[errors.argmin(1)]
    assert abs(found.mean()) < 4.5 * 30 / 3**0.5 / count**0.5  # uniform in [-30, 30]
    assert found.std() == pytest.approx(30 / 3**0.5, rel=0.2)
    assert np.abs(found).max() > 25


def test_points_in_the_plane_are_not_augmented():
    with pytest.raises(DataError, match="are for images"):
        SwissRoll(augment=True).train_dataloader()


def test_statistics_are_those_of_the_samples_in_use():
    data = SwissRoll(points=500, num_images=300)
    x = data.split("train").values[:300].astype(np.float64)
    found = data.value_statistics
    assert found.mean == pytest.approx(x.mean(0), abs=1e-12)
    assert found.std == pytest.approx(x.std(0), abs=1e-12)
    assert (found.minimum, found.maximum) == (x.min(), x.max())
    channel = Photo(size=16).value_statistics.mean
    photo = Photo(size=16).split("train").values[0]
    assert channel == pytest.approx(photo.mean((1, 2)), abs=1e-6)


def test_classes_are_given_when_asked_for_and_long(tmp_path):
    from test_data_files import write_cifar

    write_cifar(tmp_path)
    assert batches(CIFAR10(root=str(tmp_path), batch_size=4), 1)[0].cond is None
    batch = batches(CIFAR10(root=str(tmp_path), batch_size=4, classes=True), 1)[0]
    assert batch.cond.dtype == batch.index.dtype == torch.long
    assert batch.x.dtype == torch.float32
