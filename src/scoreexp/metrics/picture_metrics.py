"""Means over images as torchmetrics objects: running sums, so memory does not grow and devices add up."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from scoreexp.metrics import functional
from scoreexp.metrics.spec import MetricSpec


class PictureMetric(Metric):
    """Mean over all images seen, on all devices, of a value per image.

    ``update(prediction[B, C, H, W], target[B, C, H, W])`` takes values in [0, 1]: predictions are clamped to
    it, a target outside it is refused. The mean is over images, so it does not depend on the batches they
    came in.

    >>> class MeanAbsoluteError(PictureMetric):
    ...     spec = MetricSpec("mae", "lower", needs="pairs")
    ...
    ...     def per_picture(self, prediction, target):
    ...         return (prediction - target).abs().flatten(1).mean(1)
    >>> metric = MeanAbsoluteError()
    >>> metric.update(torch.full((2, 1, 4, 4), 0.75), torch.full((2, 1, 4, 4), 0.5))
    >>> metric.compute()
    tensor(0.2500)
    """

    is_differentiable = False
    full_state_update = False
    spec: ClassVar[MetricSpec]
    is_clamped: ClassVar[bool] = True  # predictions, to [0, 1]
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def per_picture(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The value of each image: ``[B]``."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch; raises the errors of the function of the metric's name."""
        prediction = prediction.clamp(0, 1) if self.is_clamped else prediction
        values = self.per_picture(prediction, target)  # Metric.update keeps no graph
        if values.shape != prediction.shape[:1]:
            raise ValueError(
                f"{type(self).__name__}.per_picture gave values of shape {tuple(values.shape)} for {len(prediction)} "
                f"pictures: give one for each, [{len(prediction)}]"
            )
        self.total += values.sum()
        self.count += len(values)

    def compute(self) -> Tensor:
        """The mean over images, a scalar; not a number before the first image."""
        return self.total / self.count


class MSE(PictureMetric):
    """Mean over images of ``functional.mse``.

    >>> import torch
    >>> import scoreexp as se
    >>> metric = se.metrics.MSE()
    >>> metric.update(torch.full((2, 3, 8, 8), 0.75), torch.full((2, 3, 8, 8), 0.5))
    >>> metric.compute()
    tensor(0.0625)
    """

    spec = MetricSpec("mse", "lower", needs="pairs", title="MSE", usual=True)

    def per_picture(self, prediction: Tensor, target: Tensor) -> Tensor:
        return functional.mse(prediction, target)


class PSNR(PictureMetric):
    """Mean over images of ``functional.psnr``: of the decibels, not the decibels of the mean error.

    An image that is reproduced exactly makes the mean infinite.

    >>> import torch
    >>> import scoreexp as se
    >>> metric = se.metrics.PSNR()
    >>> metric.update(torch.full((2, 3, 8, 8), 0.6), torch.full((2, 3, 8, 8), 0.5))
    >>> round(metric.compute().item(), 2)
    20.0
    """

    spec = MetricSpec("psnr", "higher", needs="pairs", unit="dB", title="PSNR", digits=".1f", usual=True)

    def per_picture(self, prediction: Tensor, target: Tensor) -> Tensor:
        return functional.psnr(prediction, target)


class SSIM(PictureMetric):
    """Mean over images of ``functional.ssim``: Gaussian window 11 x 11, sigma 1.5, data range 1, RGB.

    >>> import torch
    >>> import scoreexp as se
    >>> metric, picture = se.metrics.SSIM(), torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    >>> metric.update(picture, picture)
    >>> round(metric.compute().item(), 4)
    1.0
    """

    spec = MetricSpec("ssim", "higher", needs="pairs", title="SSIM", digits=".3f", usual=True)

    def per_picture(self, prediction: Tensor, target: Tensor) -> Tensor:
        return functional.ssim(prediction, target)


class GlobalSSIM(PictureMetric):
    """Mean over images of ``functional.ssim_global``: one window over the image and all channels.

    >>> import torch
    >>> import scoreexp as se
    >>> metric, picture = se.metrics.GlobalSSIM(), torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    >>> metric.update(1 - picture, picture)
    >>> round(metric.compute().item(), 2)
    -0.99
    """

    spec = MetricSpec("ssim_global", "higher", needs="pairs", title="global SSIM", digits=".3f", usual=True)

    def per_picture(self, prediction: Tensor, target: Tensor) -> Tensor:
        return functional.ssim_global(prediction, target)


class RescaledSSIM(PictureMetric):
    """Mean over images of ``functional.ssim_rescaled``: uniform windows 7 x 7, the prediction rescaled by its extremes.

    >>> import torch
    >>> import scoreexp as se
    >>> metric, picture = se.metrics.RescaledSSIM(), torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    >>> metric.update(7 * picture - 3, picture)
    >>> round(metric.compute().item(), 4)
    1.0
    """

    spec = MetricSpec("ssim_rescaled", "higher", needs="pairs", title="SSIM of rescaled images", digits=".3f")
    is_clamped = False

    def per_picture(self, prediction: Tensor, target: Tensor) -> Tensor:
        return functional.ssim_rescaled(prediction, target)


class MSSSIM(PictureMetric):
    """Mean over images of ``functional.ms_ssim``: five scales, Gaussian window 11 x 11, at least 161 pixels a side.

    >>> import torch
    >>> import scoreexp as se
    >>> metric, picture = se.metrics.MSSSIM(), torch.linspace(0, 1, 161 * 161).reshape(1, 1, 161, 161)
    >>> metric.update(picture, picture)
    >>> round(metric.compute().item(), 4)
    1.0
    """

    spec = MetricSpec("ms_ssim", "higher", needs="pairs", title="MS-SSIM", digits=".3f")

    def per_picture(self, prediction: Tensor, target: Tensor) -> Tensor:
        return functional.ms_ssim(prediction, target)
