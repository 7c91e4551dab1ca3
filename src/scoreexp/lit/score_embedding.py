"""Training on images that move along pre-computed score fields."""

from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.errors import UserError
from scoreexp.embedding import EmbeddedImages
from scoreexp.lit.module import ScoreModule
from scoreexp.objectives import StableTargetScoreMatching


class ScoreEmbedding(ScoreModule):
    """A score model of the embedded images x(t) instead of x_0; without embedded images an ordinary one.

    The network then learns E[x(t) | x(t) + sigma(t) z]; see ``scoreexp.embedding`` for the method and its
    references.

    >>> import torch
    >>> from scoreexp.denoisers import Denoiser, VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.objectives import DenoisingScoreMatching, UniformTime, VWeighting
    >>> from scoreexp.schedules import VP
    >>> module = ScoreEmbedding(
    ...     denoiser=Denoiser(MLP(event_shape=(1, 8, 8), width=8, blocks=1), VPrediction(), VP()),
    ...     objective=DenoisingScoreMatching(VWeighting()),
    ...     time_law=UniformTime(),
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> module.embed(EmbeddedImages([0.0, 1.0], torch.stack([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])))
    >>> batch = Batch(x=torch.zeros(1, 1, 8, 8), index=torch.tensor([0]))
    >>> module.training_batch(batch, t=torch.tensor([0.25])).x.unique()
    tensor([0.2500])
    """

    embedded: EmbeddedImages | None = None

    def embed(self, images: EmbeddedImages) -> None:
        super().embed(images)
        self.embedded = images

    def require_embeddable(self, horizon: float) -> None:
        """Refuse paths that end at ``horizon`` before the schedule does, or an objective that averages over x_0.

        Raises:
            UserError: names both times, or the objective.
        """
        if isinstance(self.objective, StableTargetScoreMatching):
            raise UserError(
                "objective=stable_target averages clean images, but embedded ones move with time: "
                "set embedding=none, or another objective"
            )
        t_max = self.denoiser.schedule.t_max
        if t_max > horizon * (1 + 1e-6):
            raise UserError(
                f"the embedding ends at time {horizon:g}, the schedule at {t_max:g}: set "
                f"embedding.precomputation.horizon={t_max:g}, or choose another schedule"
            )

    def training_batch(self, batch: Batch, t: Tensor) -> Batch:
        if self.embedded is None:
            return batch
        if batch.index is None:
            raise UserError("the batch does not say which images it holds (index): embedding needs that")
        return batch._replace(x=self.embedded.at(batch.index, t).to(self.device))
