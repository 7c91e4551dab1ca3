r"""A linear classifier in closed form: ridge regression of the classes, one-hot, on centred features.

.. math:: W = Y^T X (X^T X + \lambda v n I)^{-1},

with the mean variance ``v`` of the features, solved for the smaller of the number of features and of samples. The ridge is
white noise of variance ``lambda v`` on the features: pixels that hardly vary get no weight.

It is the probe of a representation and the task that restored data are judged by: nothing is tuned, and the same data give
the same classifier.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat


class LinearClassifier(NamedTuple):
    """Scores ``weight x + bias`` of each class; called with ``x[B, *]`` it gives the classes ``[B]``.

    Attributes:
        weight: ``[K, D]``, float64.
        bias: ``[K]``.
    """

    weight: Tensor
    bias: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """``[B, K]``."""
        return x.flatten(1).to(self.weight) @ self.weight.T + self.bias

    def __call__(self, x: Tensor) -> Tensor:
        """The class of the largest score of each sample, ``[B]``."""
        return self.scores(x).argmax(1)

    def accuracy(self, x: Tensor, labels: Tensor) -> Tensor:
        """1 for each sample that is classified rightly, else 0, ``[B]`` float64."""
        return (self(x) == labels.to(self.weight.device)).double()


@checked
@torch.no_grad()
def fit_linear_classifier(x: Tensor, labels: Tensor, ridge: FinitePositiveFloat = 0.1) -> LinearClassifier:
    """Fit the classifier.

    >>> x = torch.tensor([[-1.0, 5.0], [-2.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
    >>> fit_linear_classifier(x, torch.tensor([0, 0, 1, 1]))(torch.tensor([[-0.5, 0.0], [2.0, 9.0]]))
    tensor([0, 1])

    Args:
        x: features ``[N, *]``.
        labels: classes ``[N]`` (long), from 0.
        ridge: ``lambda``, in units of the features' mean variance.

    Raises:
        ValueError: there are not as many labels as samples, or fewer than two classes.
    """
    if len(x) != len(labels) or len(labels.unique()) < 2:
        raise ValueError(
            f"{len(x)} samples with {len(labels)} labels of {len(labels.unique())} class(es): give one label for each "
            "sample, and samples of two classes or more"
        )
    rows = x.flatten(1).double()
    mean = rows.mean(0)
    rows = rows - mean
    ridge = ridge * max(float(rows.square().mean()), 1e-12)
    y = F.one_hot(labels.to(rows.device)).double()
    share = y.mean(0)
    n, d = rows.shape
    if d <= n:
        gram = rows.T @ rows + ridge * n * torch.eye(d, dtype=rows.dtype, device=rows.device)
        weight = torch.linalg.solve(gram, rows.T @ (y - share)).T
    else:
        gram = rows @ rows.T + ridge * n * torch.eye(n, dtype=rows.dtype, device=rows.device)
        weight = (rows.T @ torch.linalg.solve(gram, y - share)).T
    return LinearClassifier(weight, share - weight @ mean)
