"""The Lightning layer: modules, averaged weights, checkpoints. No mathematics here."""

from typing import TYPE_CHECKING

from scoreexp import on_first_use

if TYPE_CHECKING:
    from scoreexp.lit.ddgan import DDGAN as DDGAN
    from scoreexp.lit.elsewhere import PeerTraining as PeerTraining
    from scoreexp.lit.elsewhere import TrainedElsewhere as TrainedElsewhere
    from scoreexp.lit.ema import EMA as EMA
    from scoreexp.lit.ema import PowerEMA as PowerEMA
    from scoreexp.lit.exact_score import ExactScore as ExactScore
    from scoreexp.lit.module import DDPM as DDPM
    from scoreexp.lit.module import NonFiniteError as NonFiniteError
    from scoreexp.lit.module import ScoreModule as ScoreModule
    from scoreexp.lit.ridge import RidgeScore as RidgeScore
    from scoreexp.lit.score_cnn import ScoreCNN as ScoreCNN
    from scoreexp.lit.score_embedding import ScoreEmbedding as ScoreEmbedding

on_first_use(__name__)  # a checkpoint is read without Lightning
