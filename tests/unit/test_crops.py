"""Crops of photographs, gray batches, and the network and learning rate that the bundled prior is trained with."""

import numpy as np
import pytest
import torch
from PIL import Image

from scoreexp.data import Crops, DataError
from scoreexp.data.image_io import write_image
from scoreexp.lit.module import ScoreModule
from scoreexp.networks import DenoisingUNet


@pytest.fixture
def photographs(tmp_path):
    """Images whose red is the row, green the column and blue the image, so that a pixel tells where it comes from."""
    for i, (height, width) in enumerate([(40, 60), (64, 64), (20, 90)]):
        rows, columns = np.mgrid[:height, :width] / 100
        write_image(tmp_path / f"{i}.png", np.stack([rows, columns, np.full_like(rows, i / 10)], -1))
    return tmp_path


def crops(root, **settings):
    return Crops(root=root, size=16, crops=40, val_fraction=0, test_fraction=0, **settings)


def slopes(sample):
    """Change of the row and of the column from one pixel of a sample to the next, in pixels of the photograph."""
    rows, columns = sample[0], sample[1]
    rows, columns = rows.numpy(), columns.numpy()
    return (rows[13, 8] - rows[2, 8]) * 50 / 11, (columns[8, 13] - columns[8, 2]) * 50 / 11


def test_crops_are_squares_of_every_scale_that_fits(photographs):
    split = crops(photographs, reduction=(1.0, 3.0)).split("train")
    assert len(split) == 120
    scales = {}
    for sample, name in zip(split.samples(np.arange(120)), split.names, strict=True):
        down, across = slopes(sample)
        assert float(down) == pytest.approx(float(across), abs=0.1)  # of pixels rounded to 8 bits
        scales.setdefault(name, []).append(float(down + across) / 2)
    assert max(scales["2.png"]) < 20 / 16 + 0.2  # 20 rows
    assert min(scales["1.png"]) < 1.4
    assert max(scales["1.png"]) == pytest.approx(3, abs=0.3)


def test_without_reduction_a_crop_is_the_pixels_themselves(photographs):
    split = crops(photographs, reduction=(1.0, 1.0)).split("train")
    sample = (split.samples(np.array([50]))[0] + 1) * 127.5
    top, left = round(float(sample[0, 0, 0]) / 2.55), round(float(sample[1, 0, 0]) / 2.55)
    with Image.open(photographs / split.names[50]) as image:
        pixels = np.asarray(image)[top : top + 16, left : left + 16]
    np.testing.assert_allclose(sample.permute(1, 2, 0), pixels, atol=1e-3)


def test_an_image_that_is_too_small_is_named(photographs):
    write_image(photographs / "tiny.png", np.zeros((9, 30, 3)))
    with pytest.raises(
        DataError, match=r"tiny.png has 30 x 9 pixels, too few for data.size=16.*on_bad_image=skip"
    ):
        crops(photographs).split("train")
    assert len(crops(photographs, on_bad_image="skip").split("train")) == 120
    with pytest.raises(ValueError, match=r"reduction=\[3.0, 2.0\]"):
        crops(photographs, reduction=(3.0, 2.0))


def test_gray_batches_are_whole_and_come_at_their_rate(photographs):
    data = crops(photographs, gray_share=0.25, batch_size=4)
    stream = iter(data.train_dataloader())
    colour = iter(crops(photographs, batch_size=4).train_dataloader())
    luma = torch.tensor([0.299, 0.587, 0.114])
    gray = 0
    for _ in range(200):
        x, full = next(stream).x, next(colour).x
        if x.shape[1] == 1:
            gray += 1
            torch.testing.assert_close(x[:, 0], torch.einsum("bchw,c->bhw", full, luma))
        else:
            torch.testing.assert_close(x, full)
    assert 30 <= gray <= 70  # 50 in the mean, with a standard deviation of 6


def test_a_gray_image_is_three_equal_channels_to_the_network():
    network = DenoisingUNet(event_shape=(3, 16, 16), widths=(16, 32), blocks=1)
    torch.nn.init.normal_(network.head.weight)
    x, c_noise = torch.randn(2, 1, 16, 8), torch.tensor([-0.5, 0.1])
    expected = network(x.expand(-1, 3, -1, -1), c_noise).mean(1, keepdim=True)
    torch.testing.assert_close(network(x, c_noise), expected)
    assert not torch.allclose(network(x, c_noise), network(x, c_noise + 0.3))


@pytest.mark.parametrize(
    ("cooldown", "decay_steps", "shares"),
    [
        (0.5, 0, [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]),
        (0.0, 0, [0.5] + [1] * 10),
        (
            0.0,
            4,
            [0.5, 1, 1, 1, 1, *[(4 / step) ** 0.5 for step in range(5, 11)]],
        ),  # lr / sqrt(max(step / 4, 1))
    ],
)
def test_the_learning_rate_warms_up_decays_and_cools_down(cooldown, decay_steps, shares):
    class Stub:
        warmup_steps = 2
        trainer = type("Trainer", (), {"max_steps": 10})

    stub = Stub()
    stub.cooldown, stub.decay_steps = cooldown, decay_steps
    assert [ScoreModule._share_of_lr(stub, step) for step in range(11)] == pytest.approx(shares)
