"""The score-matching CNN and its regression baseline."""

from scoreexp.lit.module import ScoreModule


class ScoreCNN(ScoreModule):
    """A denoiser of one noise level, from Nguyen, Senequier, Arthaud, "Score-Based Denoising with Reverse-Time SDEs".

    What makes it a score model or a regression is its configuration: the loss ``|sigma^2 s(x + sigma z) + sigma z|^2`` of
    the one and ``|f(x + sigma z) - x|^2`` of the other are the same function of the posterior mean (Tweedie's formula),
    and network and preconditioning differ. The class only names it.
    """
