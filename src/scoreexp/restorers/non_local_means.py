"""Non-local means: every pixel the mean of those whose surroundings look like its own, by scikit-image.

Reference: A. Buades, B. Coll, J.-M. Morel, "A non-local algorithm for image denoising", 2005,
https://doi.org/10.1109/CVPR.2005.38; the fast form of J. Darbon et al., "Fast nonlocal filtering applied to electron
cryomicroscopy", 2008, https://doi.org/10.1109/ISBI.2008.4541250.
"""

import numpy as np
import torch
from skimage.restoration import denoise_nl_means
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.restorers.filtering import ImageFilter


class NonLocalMeans(ImageFilter):
    """On the CPU, with the noise taken off the distances between patches.

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> observation = Observation(torch.full((1, 3, 8, 8), 0.5), Identity(), GaussianNoise(0.1))
    >>> float(NonLocalMeans()(observation, streams=ImageStreams([0])).x.mean())
    0.5

    Args:
        strength: how far patches may differ, in units of ``sigma``, > 0.
        patch: side of the patches in pixels.
        reach: how far similar patches are looked for, in pixels.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image with white Gaussian noise.
    """

    @checked
    def __init__(self, strength: PositiveFloat = 0.6, patch: PositiveInt = 5, reach: PositiveInt = 6) -> None:
        self.strength, self.patch, self.reach = strength, patch, reach

    def apply(self, y: Tensor, sigma: float) -> Tensor:
        images = [
            denoise_nl_means(
                one if len(one) > 1 else one[0],  # of one channel scikit-image returns the transpose
                patch_size=self.patch,
                patch_distance=self.reach,
                h=self.strength * sigma,
                sigma=sigma,
                fast_mode=True,
                channel_axis=0 if len(one) > 1 else None,
            )
            for one in y.detach().cpu().double().numpy()
        ]
        return torch.from_numpy(np.stack(images)).reshape(y.shape).to(y)
