"""Lightning callbacks: evaluation by denoising, stopping, checkpoints, timing, progress, signals."""

from scoreexp.callbacks.budget import StopAtBudget as StopAtBudget
from scoreexp.callbacks.checkpoints import Checkpoints as Checkpoints
from scoreexp.callbacks.distribution_monitor import DistributionMonitor as DistributionMonitor
from scoreexp.callbacks.langevin_study import LangevinStudy as LangevinStudy
from scoreexp.callbacks.monitor import DenoisingMonitor as DenoisingMonitor
from scoreexp.callbacks.points_monitor import PointsMonitor as PointsMonitor
from scoreexp.callbacks.progress import TrainingProgress as TrainingProgress
from scoreexp.callbacks.signals import Interrupted as Interrupted
from scoreexp.callbacks.signals import StopOnSignal as StopOnSignal
from scoreexp.callbacks.stopping import StopOnTarget as StopOnTarget
from scoreexp.callbacks.timing import StageTimer as StageTimer
