r"""The score of noisy images, by an amortised residual denoising auto-encoder: the training of Noise2Score.

.. math:: E\, | u + s\, R(y + s u) |^2, \qquad u \sim N(0, I), \quad s \sim N(0, \delta^2),

for noisy images ``y``, whose minimiser tends to ``grad log p(y)`` as ``\delta`` is lowered. For Gaussian ``y`` of variance
``v`` the best linear ``R`` is ``-(y - E y) / (v + 3 \delta^2)``. ``R`` is the score of the model, so that a model of the one
noise level of the images, ``schedule=constant``, returns Tweedie's posterior mean of Gaussian noise by itself, and
``restorers.Noise2Score`` that of other noise.

References:
    J. H. Lim, A. Courville, C. Pal, C.-W. Huang, "AR-DAE: Towards Unbiased Neural Entropy Gradient Estimation", 2020,
    https://arxiv.org/abs/2006.05164;
    K. Kim, J. C. Ye, "Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean Images", 2021,
    https://arxiv.org/abs/2106.07009.
"""

from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import streams_of
from scoreexp.objectives.noisy_images import OfNoisyImages, noisy_images


class ARDAE(OfNoisyImages):
    """See the module's formula; ``delta`` falls geometrically from ``largest`` to ``smallest``.

    >>> import torch
    >>> import scoreexp as se
    >>> model = se.denoisers.OracleDenoiser(
    ...     se.oracles.Gaussian(torch.zeros(2), torch.ones(2)), se.schedules.ConstantNoise(0.1))
    >>> objective = ARDAE(largest=0.1, smallest=0.1)
    >>> objective(model, Batch(x=torch.ones(3, 2)), torch.full((3,), 0.5), torch.ones(3, 2)).shape
    torch.Size([3])

    Args:
        largest: first ``delta``, in units of [-1, 1].
        smallest: last ``delta``.
        ramp: calls in training, which are steps, over which it falls.
        window: side in pixels of the random square of each batch that is used; None is the whole image.

    Raises:
        ValueError: a parameter is outside its domain, or ``smallest`` exceeds ``largest``.
    """

    @checked
    def __init__(
        self,
        largest: PositiveFloat = 0.2,
        smallest: PositiveFloat = 0.02,
        ramp: PositiveInt = 1000,
        window: PositiveInt | None = 64,
    ) -> None:
        super().__init__(ramp, window)
        if smallest > largest:
            raise ValueError(f"smallest={smallest:g} must be at most largest={largest:g}")
        self.largest, self.smallest = largest, smallest

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        y, noise = self.in_window(noisy_images(batch), noise, model.downsampling_factor)
        delta = self.largest * (self.smallest / self.largest) ** self.progress()
        scale = delta * expand_to(streams_of(noise, "scale").normal(noise.flatten(1)[:, 0]), y)
        residual = noise + scale * model.score(y + scale * noise, t, batch.cond)
        return mean_per_sample(residual**2)
