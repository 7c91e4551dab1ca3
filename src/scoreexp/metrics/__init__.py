"""Measures of the distance between a picture and its reference, and between generated and real pictures."""

from typing import TYPE_CHECKING

from scoreexp import on_first_use

if TYPE_CHECKING:
    from scoreexp.metrics.card import MetricCard, MetricValue, card_differences, metric_name
    from scoreexp.metrics.catalogue import spec_of
    from scoreexp.metrics.distribution import (
        gaussian_kernel,
        kid,
        median,
        median_distance,
        memorisation,
        mmd,
        nearest_neighbours,
        polynomial_kernel,
        precision_recall,
        sliced_wasserstein,
    )
    from scoreexp.metrics.features import (
        ExportedExtractor,
        FeatureExtractor,
        PixelFeatures,
        RandomConvFeatures,
    )
    from scoreexp.metrics.frechet import FeatureStatistics, frechet_distance
    from scoreexp.metrics.functional import ms_ssim, mse, psnr, ssim, ssim_global
    from scoreexp.metrics.inception import InceptionFeatures, MissingWeightsError
    from scoreexp.metrics.picture_metrics import MSE, MSSSIM, PSNR, SSIM, GlobalSSIM, PictureMetric
    from scoreexp.metrics.reference import Reference, make_reference, split_digest, split_images
    from scoreexp.metrics.sample_metrics import (
        FrechetDistance,
        KernelDistance,
        PrecisionRecall,
        SampleMetric,
        SlicedWasserstein,
    )
    from scoreexp.metrics.spec import MetricSpec
else:  # a figure needs no torchmetrics
    __getattr__ = on_first_use(
        __name__,
        {
            "card": ["MetricCard", "MetricValue", "card_differences", "metric_name"],
            "catalogue": ["spec_of"],
            "distribution": [
                "gaussian_kernel",
                "kid",
                "median",
                "median_distance",
                "memorisation",
                "mmd",
                "nearest_neighbours",
                "polynomial_kernel",
                "precision_recall",
                "sliced_wasserstein",
            ],
            "features": ["ExportedExtractor", "FeatureExtractor", "PixelFeatures", "RandomConvFeatures"],
            "frechet": ["FeatureStatistics", "frechet_distance"],
            "functional": ["ms_ssim", "mse", "psnr", "ssim", "ssim_global"],
            "inception": ["InceptionFeatures", "MissingWeightsError"],
            "picture_metrics": ["MSE", "MSSSIM", "PSNR", "SSIM", "GlobalSSIM", "PictureMetric"],
            "reference": ["Reference", "make_reference", "split_digest", "split_images"],
            "sample_metrics": [
                "FrechetDistance",
                "KernelDistance",
                "PrecisionRecall",
                "SampleMetric",
                "SlicedWasserstein",
            ],
            "spec": ["MetricSpec"],
        },
    )

__all__ = [
    "MSE",
    "MSSSIM",
    "PSNR",
    "SSIM",
    "ExportedExtractor",
    "FeatureExtractor",
    "FeatureStatistics",
    "FrechetDistance",
    "GlobalSSIM",
    "InceptionFeatures",
    "KernelDistance",
    "MetricCard",
    "MetricSpec",
    "MetricValue",
    "MissingWeightsError",
    "PictureMetric",
    "PixelFeatures",
    "PrecisionRecall",
    "RandomConvFeatures",
    "Reference",
    "SampleMetric",
    "SlicedWasserstein",
    "card_differences",
    "frechet_distance",
    "gaussian_kernel",
    "kid",
    "make_reference",
    "median",
    "median_distance",
    "memorisation",
    "metric_name",
    "mmd",
    "ms_ssim",
    "mse",
    "nearest_neighbours",
    "polynomial_kernel",
    "precision_recall",
    "psnr",
    "sliced_wasserstein",
    "spec_of",
    "split_digest",
    "split_images",
    "ssim",
    "ssim_global",
]
