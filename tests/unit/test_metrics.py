"""Metrics: equal to scikit-image, means over pictures for any batches and devices, bad ranges refused."""

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from scoreexp.metrics import (
    MSE,
    PSNR,
    SSIM,
    GlobalSSIM,
    MetricSpec,
    PictureMetric,
    RescaledSSIM,
    mse,
    psnr,
    ssim,
    ssim_global,
    ssim_rescaled,
)

CLASSES = [(MSE, mse), (PSNR, psnr), (SSIM, ssim), (GlobalSSIM, ssim_global)]


def pictures(count=7, channels=3, height=24, width=37, seed=0):
    """Crops of a photograph and noisy copies with a different noise level each."""
    photo = torch.from_numpy(data.chelsea() / 255.0).float().movedim(-1, 0)[:channels]
    clean = torch.stack([photo[:, 30 * i : 30 * i + height, 40 * i : 40 * i + width] for i in range(count)])
    generator = torch.Generator().manual_seed(seed)
    level = torch.linspace(0.02, 0.5, count).reshape(-1, 1, 1, 1)
    return clean + level * torch.randn(clean.shape, generator=generator), clean


def skimage_ssim(x, y):
    return structural_similarity(
        x.double().clamp(0, 1).numpy(),
        y.double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=0,
    )


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(3, 24, 37), (1, 11, 11), (3, 64, 64), (2, 12, 90)]
)
def test_ssim_and_psnr_equal_scikit_image(channels, height, width):
    noisy, clean = pictures(3, channels, height, width)
    expected = [skimage_ssim(x, y) for x, y in zip(noisy, clean)]
    # Both compute in double precision from the same formula.
    np.testing.assert_allclose(ssim(noisy, clean).numpy(), expected, rtol=0, atol=1e-10)
    x, y = noisy.double().clamp(0, 1).numpy(), clean.double().numpy()
    expected = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(x, y)]
    np.testing.assert_allclose(psnr(noisy, clean).numpy(), expected, rtol=0, atol=1e-10)


def test_global_ssim_by_its_definition():
    noisy, clean = pictures(1)
    x, y = noisy.double().clamp(0, 1).numpy().ravel(), clean.double().numpy().ravel()
    covariance = np.cov(x, y, bias=True)
    expected = (2 * x.mean() * y.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
    expected /= (x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)
    assert ssim_global(noisy, clean).item() == pytest.approx(expected, abs=1e-12)


def test_the_two_kinds_of_ssim_differ():
    noisy, clean = pictures(1, height=64, width=64)
    assert abs(ssim(noisy, clean).item() - ssim_global(noisy, clean).item()) > 0.01


@pytest.mark.parametrize(("cls", "function"), CLASSES)
def test_mean_over_pictures_for_any_batches(cls, function):
    noisy, clean = pictures()
    expected = function(noisy, clean).mean().item()
    for sizes in ([7], [1] * 7, [3, 4], [6, 1]):
        metric = cls()
        for x, y in zip(noisy.split(sizes), clean.split(sizes)):
            metric.update(x, y)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-6)  # single precision sums
        metric.reset()
        assert metric.count.item() == 0


@pytest.mark.parametrize(("cls", "function"), CLASSES)
def test_devices_add_up_by_pictures(cls, function):
    """The states' reductions over two devices with 5 and 2 pictures give the mean over all 7."""
    noisy, clean = pictures()
    devices = [cls(), cls()]
    for metric, part in zip(devices, (slice(0, 5), slice(5, 7))):
        metric.update(noisy[part], clean[part])
    total = cls()
    for name, reduction in total._reductions.items():
        setattr(total, name, reduction(torch.stack([getattr(metric, name) for metric in devices])))
    total._update_count = 1
    assert total.compute().item() == pytest.approx(function(noisy, clean).mean().item(), rel=1e-6)


@pytest.mark.parametrize(("cls", "function"), CLASSES)
def test_no_graph_is_kept_and_halves_are_widened(cls, function):
    noisy, clean = pictures()
    metric = cls()
    metric.update(noisy.bfloat16().requires_grad_(), clean)
    assert not metric.total.requires_grad
    assert metric.compute().item() == pytest.approx(
        function(noisy.bfloat16().float(), clean).mean().item(), rel=1e-6
    )


def test_equal_pictures():
    clean = pictures()[1]
    assert mse(clean, clean).eq(0).all()
    assert psnr(clean, clean).isinf().all()
    assert torch.allclose(ssim(clean, clean), torch.ones(7, dtype=torch.float64))
    assert torch.allclose(ssim_global(clean, clean), torch.ones(7, dtype=torch.float64))


def test_psnr_is_the_mean_of_decibels():
    target = torch.zeros(2, 1, 11, 11)
    prediction = torch.stack([torch.full((1, 11, 11), 0.1), torch.full((1, 11, 11), 1.0)])
    metric = PSNR()
    metric.update(prediction, target)
    assert metric.compute().item() == pytest.approx((20 + 0) / 2, abs=1e-5)


@pytest.mark.parametrize(("cls", "function"), CLASSES)
def test_predictions_are_clamped_and_bad_targets_refused(cls, function):
    noisy, clean = pictures()
    assert torch.equal(function(noisy, clean), function(noisy.clamp(0, 1), clean))
    for target in (2 * clean - 1, 255 * clean):
        with pytest.raises(ValueError, match=r"target has values .*must be in \[0, 1\]"):
            cls().update(noisy, target)
    with pytest.raises(ValueError, match="shape"):
        cls().update(noisy[:, :1], clean)


def test_nan_predictions_are_not_hidden():
    noisy, clean = pictures()
    noisy[0, 0, 12, 12] = float("nan")
    for _, function in CLASSES:
        assert function(noisy, clean)[0].isnan()
        assert not function(noisy, clean)[1:].isnan().any()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 10, 32), (3, 32, 32)])
def test_ssim_refuses_pictures_below_its_window(shape):
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.zeros(shape), torch.zeros(shape))


class Whole(PictureMetric):
    """One value for all pictures, against the contract."""

    spec = MetricSpec("whole", "lower", needs="pairs")

    def per_picture(self, prediction, target):
        return (prediction - target).abs().mean()


def test_a_metric_without_a_value_for_each_picture_is_refused():
    with pytest.raises(
        ValueError, match=r"Whole.per_picture gave values of shape \(\) for 7 pictures.*\[7\]"
    ):
        Whole().update(*pictures())


def test_rescaled_ssim_equals_scikit_image_of_the_rescaled_image():
    noisy, clean = pictures(3)
    scaled = [(x - x.min()) / (x.max() - x.min()) for x in noisy.double()]
    expected = [
        structural_similarity(x.numpy(), y.double().numpy(), data_range=1.0, channel_axis=0)
        for x, y in zip(scaled, clean)
    ]
    np.testing.assert_allclose(ssim_rescaled(noisy, clean).numpy(), expected, rtol=0, atol=1e-10)
    metric = RescaledSSIM()
    metric.update(noisy, clean)  # not clamped before
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-6)
    black, same = torch.zeros(1, 3, 7, 7), torch.full((1, 3, 7, 7), 0.4)
    torch.testing.assert_close(
        ssim_rescaled(same, clean[:1, :, :7, :7]), ssim_rescaled(black, clean[:1, :, :7, :7])
    )
    with pytest.raises(ValueError, match="at least 7"):
        ssim_rescaled(noisy[..., :6], clean[..., :6])
