"""The first weights of small classifiers of noisy samples."""

import torch
from torch import nn


def draw_weights(network: nn.Module, random: torch.Generator) -> None:
    """Draw matrices uniformly within ``1 / sqrt(inputs)``; vectors are 0."""
    for weights in network.parameters():
        bound = weights.shape[-1] ** -0.5 if weights.ndim > 1 else 0.0
        nn.init.uniform_(weights, -bound, bound, generator=random)
