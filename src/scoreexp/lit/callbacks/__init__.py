"""Lightning callbacks: evaluation by denoising, stopping, checkpoints, timing, progress, signals."""

from scoreexp.lit.callbacks.base import RunCallback as RunCallback
from scoreexp.lit.callbacks.budget import StopAtBudget as StopAtBudget
from scoreexp.lit.callbacks.checkpoints import Checkpoints as Checkpoints
from scoreexp.lit.callbacks.distribution_monitor import DistributionMonitor as DistributionMonitor
from scoreexp.lit.callbacks.langevin_study import LangevinStudy as LangevinStudy
from scoreexp.lit.callbacks.monitor import DenoisingMonitor as DenoisingMonitor
from scoreexp.lit.callbacks.monitor import GenerationMonitor as GenerationMonitor
from scoreexp.lit.callbacks.monitor import RestorationMonitor as RestorationMonitor
from scoreexp.lit.callbacks.noisy_monitor import NoisyMonitor as NoisyMonitor
from scoreexp.lit.callbacks.points_monitor import PointsMonitor as PointsMonitor
from scoreexp.lit.callbacks.population import PopulationBits as PopulationBits
from scoreexp.lit.callbacks.power_averages import PowerAverages as PowerAverages
from scoreexp.lit.callbacks.power_averages import reconstruct as reconstruct
from scoreexp.lit.callbacks.progress import TrainingProgress as TrainingProgress
from scoreexp.lit.callbacks.signals import Interrupted as Interrupted
from scoreexp.lit.callbacks.signals import StopOnSignal as StopOnSignal
from scoreexp.lit.callbacks.speech_monitor import SpeechMonitor as SpeechMonitor
from scoreexp.lit.callbacks.stopping import StopOnTarget as StopOnTarget
from scoreexp.lit.callbacks.timing import StageTimer as StageTimer
