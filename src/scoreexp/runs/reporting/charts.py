"""The geometry of charts; ``templates/charts.html.jinja`` draws them as SVG, which scales and prints sharply."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Okabe and Ito's colours, distinguishable for all kinds of colour vision, without the yellow, which paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3d3d3d", "#8c6bb1")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "", "7 3")
STAGE_TONES = ("#2f3b45", "#8a98a5", "#d5dbe1")
ROW = 28  # height of a bar with the space around it


class Pen(NamedTuple):
    """How a method is drawn."""

    colour: str
    dash: str = ""


class Line(NamedTuple):
    """A curve ``(x, y)``."""

    points: Sequence[tuple[float, float]]
    pen: Pen
    thick: bool = False
    title: str = ""


class Frame(NamedTuple):
    """The size of a chart, and the edges of what lies between its axes."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int


class Tick(NamedTuple):
    """A value on an axis and where it lies."""

    at: float
    value: float


class LineChart(NamedTuple):
    """Curves over a common axis, in the units of the frame."""

    frame: Frame
    xlabel: str
    ylabel: str
    across: list[Tick]
    up: list[Tick]
    target: Tick | None
    lines: list[Line]


class Bar(NamedTuple):
    """A horizontal bar of stacked parts ``(tone, value)``."""

    label: str
    colour: str
    parts: Sequence[tuple[str, float]]
    note: str


class Part(NamedTuple):
    """A part of a bar as it lies in the chart."""

    tone: str
    at: float
    length: float


class PlacedBar(NamedTuple):
    """A bar as it lies in the chart; ``end`` is that of its last part."""

    label: str
    colour: str
    note: str
    top: int
    parts: list[Part]
    end: float


class BarChart(NamedTuple):
    """Stacked horizontal bars over a common axis, in the units of the frame."""

    frame: Frame
    xlabel: str
    across: list[Tick]
    bars: list[PlacedBar]


def pens(methods: Iterable[str]) -> dict[str, Pen]:
    """A colour and a dash for each method.

    >>> pens(["ddpm", "ours"])["ours"]
    Pen(colour='#D55E00', dash='7 3')
    """
    return {m: Pen(PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)]) for i, m in enumerate(methods)}


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover an interval.

    >>> ticks(0, 100)
    [0, 20, 40, 60, 80, 100]
    """
    if not high > low:
        return [low]
    raw = (high - low) / about
    scale = 10 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line], *, xlabel: str, ylabel: str, target: float | None = None, high: float | None = None
) -> LineChart | None:
    """Curves over a common axis; None where there is nothing finite to draw.

    >>> chart = line_chart([Line([(0, 0.5), (10, 0.9)], Pen("#000000"))], xlabel="step", ylabel="SSIM")
    >>> [tick.value for tick in chart.across]
    [0, 2, 4, 6, 8, 10]

    Args:
        lines: drawn in their order.
        xlabel: of the horizontal axis, which starts at 0.
        ylabel: of the vertical one.
        target: a horizontal line.
        high: upper end of the vertical axis, by default the largest value.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    if not xs or not ys:
        return None
    frame = Frame(width=530, height=300, left=48, right=506, top=12, bottom=258)
    x_end = max(xs) or 1.0
    top = high if high is not None else max(ys)
    low = min([*ys, target] if target is not None else ys)
    low = max(0.0, math.floor(low * 10) / 10) if top <= 1 else low
    low = low if top > low else top - 1

    def across(x: float) -> float:
        return frame.left + (frame.right - frame.left) * x / x_end

    def up(y: float) -> float:
        return frame.top + (frame.bottom - frame.top) * (1 - (min(y, top) - low) / (top - low))

    return LineChart(
        frame,
        xlabel,
        ylabel,
        across=[Tick(across(x), x) for x in ticks(0, x_end, 6)],
        up=[Tick(up(y), y) for y in ticks(low, top)],
        target=None if target is None else Tick(up(target), target),
        lines=[
            line._replace(points=[(across(x), up(y)) for x, y in line.points if math.isfinite(y)])
            for line in lines
        ],
    )


def bar_chart(bars: Sequence[Bar], *, xlabel: str) -> BarChart:
    """Stacked horizontal bars, one per method.

    >>> chart = bar_chart([Bar("ours", "#000000", [("#888888", 2.0), ("#444444", 3.0)], "5 s")], xlabel="seconds")
    >>> [part.length for part in chart.bars[0].parts]
    [176.0, 264.0]
    """
    height = ROW * len(bars) + 40
    frame = Frame(width=900, height=height, left=165, right=605, top=0, bottom=height - 34)
    longest = max((sum(value for _, value in bar.parts) for bar in bars), default=0) or 1.0
    scale = (frame.right - frame.left) / longest
    placed = []
    for i, bar in enumerate(bars):
        parts, end = [], float(frame.left)
        for tone, value in bar.parts:
            parts.append(Part(tone, end, scale * value))
            end += scale * value
        placed.append(PlacedBar(bar.label, bar.colour, bar.note, i * ROW + 6, parts, end))
    across = [Tick(frame.left + scale * x, x) for x in ticks(0, longest, 6)]
    return BarChart(frame, xlabel, across, placed)
