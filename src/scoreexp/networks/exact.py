r"""The network that training on a finite set of images would end at, with nothing left to train.

For data that take one of ``N`` values with equal probability the posterior mean is known,

.. math:: E[x_0 | x_t] = \sum_i w_i x_i, \qquad
          w = \mathrm{softmax}_i\left( -\frac{|x_t - \alpha x_i|^2}{2 \sigma^2} \right),

and every network with enough capacity and training tends to it: it says what an experiment on few images measures,
which is memorisation, and how far each method is from that limit. See ``scoreexp.numerics.oracles.EmpiricalImages``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.numerics.oracles import EmpiricalImages


class ExactPosteriorMean(nn.Module):
    """``F(x, c_noise) = E[x_0 | x_t]`` of the stored images, for ``x = x_t / sqrt(alpha^2 + sigma^2)``.

    That is the network of ``scoreexp.denoisers.X0Prediction``, so it works at every noise level of every schedule
    (levels beyond 1e4, infinity too, are one to ``c_noise``; the mean of the images is off there by a ten-thousandth).
    It has no parameters; its state is the images. Until ``store`` is called they are one grey image. Class labels are
    ignored.

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.ExactPosteriorMean(event_shape=(2,))
    >>> network.store(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    >>> model = se.denoisers.Denoiser(network, se.denoisers.X0Prediction(), se.schedules.EDM())
    >>> model(torch.tensor([[0.9, 0.9], [0.0, 0.0]]), torch.tensor([0.1, 0.1]))
    tensor([[1., 1.],
            [0., 0.]])

    Args:
        event_shape: shape ``*`` of one sample.
        num_classes: not used.
    """

    downsampling_factor = 1
    images: Tensor

    @checked
    def __init__(self, *, event_shape: tuple[int, ...], num_classes: int | None = None) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("images", torch.zeros(1, *self.event_shape))

    def store(self, images: Tensor) -> None:
        """Take ``images[N, *]``, in the model's range [-1, 1], as the data.

        Raises:
            ValueError: if their shape is not that of the network, or there is none.
        """
        if tuple(images.shape[1:]) != self.event_shape or not len(images):
            raise ValueError(
                f"images of shape {tuple(images.shape)}: pass [N, *] with at least one of {self.event_shape}"
            )
        self.images = images.to(self.images)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        ratio = (4 * c_noise.double()).exp()  # sigma / alpha
        scaled = torch.hypot(torch.ones_like(ratio), ratio)  # x_t / alpha = scaled x
        oracle = EmpiricalImages(self.images)
        return oracle.posterior_mean(
            x.double() * scaled.reshape(-1, *[1] * (x.ndim - 1)), torch.ones_like(ratio), ratio
        ).to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}images")
        if isinstance(stored, Tensor) and stored.shape[1:] == self.event_shape:  # as many as the file holds
            self.images = torch.empty_like(stored, device=self.images.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
