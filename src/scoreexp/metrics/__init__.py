"""Measures of the distance between a picture and its reference, values in [0, 1]."""

from scoreexp.metrics.functional import mse, psnr, ssim, ssim_global
from scoreexp.metrics.picture_metrics import MSE, PSNR, SSIM, GlobalSSIM, PictureMetric

__all__ = ["MSE", "PSNR", "SSIM", "GlobalSSIM", "PictureMetric", "mse", "psnr", "ssim", "ssim_global"]
