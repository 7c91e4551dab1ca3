"""The score-matching CNN and its regression baseline."""

from scoreexp.lit.module import ScoreModule


class ScoreCNN(ScoreModule):
    """A denoiser of one noise level, from Nguyen, Senequier, Arthaud, "Score-Based Denoising with Reverse-Time SDEs".

    What makes it a score model or a regression is its configuration: the loss ``|sigma^2 s(x + sigma z) + sigma z|^2`` of
    the one and ``|f(x + sigma z) - x|^2`` of the other are the same function of the posterior mean (Tweedie's formula),
    and network and preconditioning differ. The class only names it.

    >>> import torch
    >>> from scoreexp import networks
    >>> from scoreexp.denoisers import Denoiser, ScorePrediction
    >>> from scoreexp.objectives import DenoisingScoreMatching, ScoreWeighting, UniformTime
    >>> from scoreexp.schedules import ConstantNoise
    >>> network = networks.ScoreCNN(event_shape=(1, 16, 16), widths=(4,))
    >>> module = ScoreCNN(
    ...     denoiser=Denoiser(network, ScorePrediction(), ConstantNoise(0.2)),
    ...     objective=DenoisingScoreMatching(ScoreWeighting()),
    ...     time_law=UniformTime(),
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> module.denoiser(torch.zeros(1, 1, 16, 16), torch.tensor([0.5])).shape
    torch.Size([1, 1, 16, 16])
    """
