r"""Training on observations alone: the forward model stands inside the denoiser.

Of each signal S two observations are known, a context ``c``, by which the denoiser is conditioned, and a view ``o = A S``,
on which the diffusion runs:

.. math:: o_t = \alpha o + \sigma z, \qquad \hat S = \mathrm{model}(A^T o_t, t, c), \qquad E\, w(t)\, |A \hat S - o|^2 .

The minimiser has ``A S_hat = E[A S | o_t, c]``: parts of S that no view shows are not determined. The signals of the data
enter through the operators only. To draw, a sampler runs on ``denoisers.Rendered(model, A)`` with ``cond = c``.

Reference: A. Tewari, T. Yin, G. Cazenavette, S. Rezchikov, J. Tenenbaum, F. Durand, W. Freeman, V. Sitzmann, "Diffusion with
Forward Models: Solving Stochastic Inverse Problems Without Direct Supervision", 2023, https://arxiv.org/abs/2306.11719.
Scenes in three dimensions, and the paper's further loss on the context, are not part of this.
"""

from collections.abc import Sequence

from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.streams import stream_seed
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.denoisers.rendered import Rendered
from scoreexp.objectives.base import noise_name, streams_of
from scoreexp.objectives.denoising_score_matching import DenoisingScoreMatching
from scoreexp.objectives.weightings import Weighting
from scoreexp.observations import LinearOperator, NoiseModel, Observation, Operator


class ForwardModelMatching(DenoisingScoreMatching):
    """``loss = w(alpha, sigma) mean |A model(A^T o_t, t, c) - o|^2``, with one of the views for each batch.

    The view, the noise of ``o_t`` and that of the context are named by the noise of the call.

    >>> import torch
    >>> from scoreexp.denoisers import Denoiser, EDMPrediction
    >>> from scoreexp.objectives import X0Weighting
    >>> from scoreexp.observations import GaussianNoise, RandomMask
    >>> from scoreexp.schedules import VP
    >>> class Zero(torch.nn.Module):
    ...     def forward(self, x, c_noise, cond=None):
    ...         return 0 * x + 0 * cond
    >>> views = [RandomMask(8, seed=i) for i in range(4)]
    >>> objective = ForwardModelMatching(views, RandomMask(8, seed=4), GaussianNoise(0.1), X0Weighting())
    >>> x = torch.zeros(4, 3, 8, 8)
    >>> objective(Denoiser(Zero(), EDMPrediction(), VP()), Batch(x=x), torch.full((4,), 0.5), torch.ones_like(x)).shape
    torch.Size([4])

    Args:
        views: the operators ``A``, one or more.
        context: the operator of the context; what it changes in shape is pulled back to that of the signal.
        noise: of the context.
        weighting: ``w``.

    Raises:
        ValueError: there is no view; on a call, for a batch without data.
    """

    @checked
    def __init__(
        self, views: Sequence[LinearOperator], context: Operator, noise: NoiseModel, weighting: Weighting
    ) -> None:
        super().__init__(weighting)
        if not views:
            raise ValueError("views is empty: give one operator or more")
        self.views, self.context, self.noise = list(views), context, noise

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        x = batch.x
        if x is None:
            return super().__call__(model, batch, t, noise)  # says what is missing
        view = self.views[stream_seed(noise_name(noise), "view") % len(self.views)]
        observed = Observation.simulate(x, self.context, self.noise, streams_of(noise, "context"))
        c, o = observed.pulled_back(x.shape[1:]), view(x)
        z = streams_of(noise, "view noise").normal(o)
        return super().__call__(Rendered(model, view), batch._replace(x=o, cond=c), t, z)
