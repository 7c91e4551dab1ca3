"""Measures of the distance between an image and its reference, and between generated and real images."""

from typing import TYPE_CHECKING

from scoreexp import on_first_use

if TYPE_CHECKING:
    from scoreexp.metrics.card import MetricCard as MetricCard
    from scoreexp.metrics.card import MetricValue as MetricValue
    from scoreexp.metrics.card import card_differences as card_differences
    from scoreexp.metrics.card import metric_name as metric_name
    from scoreexp.metrics.catalogue import spec_of as spec_of
    from scoreexp.metrics.distribution import gaussian_kernel as gaussian_kernel
    from scoreexp.metrics.distribution import kid as kid
    from scoreexp.metrics.distribution import median as median
    from scoreexp.metrics.distribution import median_distance as median_distance
    from scoreexp.metrics.distribution import memorisation as memorisation
    from scoreexp.metrics.distribution import mmd as mmd
    from scoreexp.metrics.distribution import nearest_neighbours as nearest_neighbours
    from scoreexp.metrics.distribution import polynomial_kernel as polynomial_kernel
    from scoreexp.metrics.distribution import precision_recall as precision_recall
    from scoreexp.metrics.distribution import sliced_wasserstein as sliced_wasserstein
    from scoreexp.metrics.efficientnet import EfficientNetLite0Features as EfficientNetLite0Features
    from scoreexp.metrics.features import ExportedExtractor as ExportedExtractor
    from scoreexp.metrics.features import FeatureExtractor as FeatureExtractor
    from scoreexp.metrics.features import PixelFeatures as PixelFeatures
    from scoreexp.metrics.features import RandomConvFeatures as RandomConvFeatures
    from scoreexp.metrics.frechet import FeatureStatistics as FeatureStatistics
    from scoreexp.metrics.frechet import frechet_distance as frechet_distance
    from scoreexp.metrics.functional import ms_ssim as ms_ssim
    from scoreexp.metrics.functional import mse as mse
    from scoreexp.metrics.functional import psnr as psnr
    from scoreexp.metrics.functional import spectral_angle as spectral_angle
    from scoreexp.metrics.functional import ssim as ssim
    from scoreexp.metrics.functional import ssim_global as ssim_global
    from scoreexp.metrics.functional import ssim_rescaled as ssim_rescaled
    from scoreexp.metrics.inception import InceptionFeatures as InceptionFeatures
    from scoreexp.metrics.inception import MissingWeightsError as MissingWeightsError
    from scoreexp.metrics.picture_metrics import MSE as MSE
    from scoreexp.metrics.picture_metrics import MSSSIM as MSSSIM
    from scoreexp.metrics.picture_metrics import PSNR as PSNR
    from scoreexp.metrics.picture_metrics import SSIM as SSIM
    from scoreexp.metrics.picture_metrics import GlobalSSIM as GlobalSSIM
    from scoreexp.metrics.picture_metrics import PictureMetric as PictureMetric
    from scoreexp.metrics.picture_metrics import RescaledSSIM as RescaledSSIM
    from scoreexp.metrics.reference import Reference as Reference
    from scoreexp.metrics.reference import make_reference as make_reference
    from scoreexp.metrics.reference import split_digest as split_digest
    from scoreexp.metrics.reference import split_images as split_images
    from scoreexp.metrics.sample_metrics import FrechetDistance as FrechetDistance
    from scoreexp.metrics.sample_metrics import KernelDistance as KernelDistance
    from scoreexp.metrics.sample_metrics import PrecisionRecall as PrecisionRecall
    from scoreexp.metrics.sample_metrics import SampleMetric as SampleMetric
    from scoreexp.metrics.sample_metrics import SlicedWasserstein as SlicedWasserstein
    from scoreexp.metrics.spec import MetricSpec as MetricSpec

on_first_use(__name__)  # a figure needs no torchmetrics
