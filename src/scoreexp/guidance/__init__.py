"""Guidance: a denoiser in, a denoiser out, for every sampler and restorer."""

from scoreexp.guidance.classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
