"""What a metric says of itself, once: its name, which values are the better ones, their unit, and what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from scoreexp.core.checked import checked

Direction = Literal["higher", "lower", "neither"]
Mode = Literal["max", "min"]
Kind = Literal["pictures", "points"]
Needs = Literal["pairs", "pictures", "points", "training set", "model", "oracle", "likelihood"]


@checked
@dataclass(frozen=True)
class MetricSpec:
    """The class attribute ``spec`` of a metric; all arguments are literals, since it is also read without an import.

    >>> spec = MetricSpec("psnr", "higher", needs="pairs", unit="dB", title="PSNR")
    >>> spec.mode, f"{20.1234:{spec.digits}} {spec.unit}"
    ('max', '20.12 dB')

    Args:
        name: by which it is asked for, and with which its values' names begin.
        direction: which values are the better ones.
        needs: what it is computed from, and so how it is called:
            ``pairs``: ``update(denoised, clean)`` and ``compute()``, images ``[B, C, H, W]`` in [0, 1];
            ``pictures``: ``SampleMetric``, generated images and features of real ones;
            ``points``, ``training set``: ``SetMetric``, generated samples and real ones, or those trained on;
            ``model``: ``ModelMetric``, the model and generated and real samples;
            ``oracle``: ``OracleMetric``, a model and the exact distribution;
            ``likelihood``: ``LikelihoodMetric``, log-densities.
        kinds: of samples that it is for.
        unit: of its values, such as ``dB``; empty for a pure number.
        title: in words, for legends and tables; empty: the name with blanks.
        digits: how a table writes a value, as in ``f"{value:.4g}"``.
        usual: whether it is measured where no metric is named.
        published: its name where features are those of the published Inception network.
        values: names and directions of its values where they are several.
    """

    name: str
    direction: Direction
    needs: Needs
    kinds: tuple[Kind, ...] = ("pictures",)
    unit: str = ""
    title: str = ""
    digits: str = ".4g"
    usual: bool = False
    published: str = ""
    values: tuple[tuple[str, Direction], ...] = ()

    @property
    def mode(self) -> Mode | None:
        """``max`` or ``min``, whichever value is the best; None where neither is."""
        modes: dict[Direction, Mode] = {"higher": "max", "lower": "min"}
        return modes.get(self.direction)

    def direction_of(self, value_name: str) -> Direction:
        """Which values of this name are the better ones."""
        return dict(self.values).get(value_name, self.direction)

    @property
    def value_names(self) -> tuple[str, ...]:
        """What its values are called, without what they were measured on."""
        return tuple(name for name, _ in self.values) or (self.name,)


class Measurement(NamedTuple):
    """A value as its metric gives it.

    Attributes:
        name: one of the spec's ``value_names``.
        value: the number.
        settings: the metric's own, which must agree for two values to be comparable.
        caveat: what a reader must know; empty if there is nothing.
    """

    name: str
    value: float
    settings: Mapping[str, Any] = MappingProxyType({})
    caveat: str = ""
