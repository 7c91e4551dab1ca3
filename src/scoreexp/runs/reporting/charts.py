"""Charts as inline SVG: they scale, print sharply and need nothing from outside the page."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

# Okabe and Ito's colours, distinguishable for all kinds of colour vision, without the yellow, which paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3d3d3d", "#8c6bb1")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "", "7 3")
STAGE_TONES = ("#2f3b45", "#8a98a5", "#d5dbe1")
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 42


class Line(NamedTuple):
    """A curve ``(x, y)``."""

    points: Sequence[tuple[float, float]]
    colour: str
    dash: str = ""
    thick: bool = False
    title: str = ""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover an interval."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    scale = 10 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line], *, xlabel: str, ylabel: str, target: float | None = None, high: float | None = None
) -> str:
    """Curves over a common axis.

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
        return '<p class="note">No evaluation has been logged yet.</p>'
    x_end = max(xs) or 1.0
    top = high if high is not None else max(ys)
    low = min([*ys, target] if target is not None else ys)
    low = max(0.0, math.floor(low * 10) / 10) if top <= 1 else low
    low = low if top > low else top - 1

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_end

    def up(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (min(y, top) - low) / (top - low))

    label = html.escape(f"{ylabel} against {xlabel}")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for y in ticks(low, top):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{up(y) + 3.5:.1f}" text-anchor="end">{y:g}</text>'
        )
    for x in ticks(0, x_end, 6):
        parts.append(
            f'<line class="axis" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{HEIGHT - BOTTOM}" '
            f'y2="{HEIGHT - BOTTOM + 4}"/>'
            f'<text class="tick" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{x:g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(xlabel)}</text>"
    )
    if target is not None:
        parts.append(
            f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(target):.1f}" y2="{up(target):.1f}"/>'
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{up(target) + 12:.1f}" text-anchor="end">'
            f"target {target:g}</text>"
        )
    for line in lines:
        finite = [(x, y) for x, y in line.points if math.isfinite(y)]
        drawn = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in finite)
        width, opacity = (2.4, 1) if line.thick else (1, 0.45)
        title = f"<title>{html.escape(line.title)}</title>" if line.title else ""
        if len(finite) == 1:
            x, y = finite[0]
            parts.append(
                f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="{4 if line.thick else 2.5}" fill="{line.colour}">'
                f"{title}</circle>"
            )
        elif finite:
            parts.append(
                f'<polyline points="{drawn}" fill="none" stroke="{line.colour}" stroke-width="{width}" '
                f'stroke-opacity="{opacity}" stroke-dasharray="{line.dash if line.thick else ""}" '
                f'stroke-linejoin="round">{title}</polyline>'
            )
    return "".join([*parts, "</svg>"])


class Bar(NamedTuple):
    """A horizontal bar of stacked parts ``(tone, value)``."""

    label: str
    colour: str
    parts: Sequence[tuple[str, float]]
    note: str


def bar_chart(bars: Sequence[Bar], *, xlabel: str) -> str:
    """Stacked horizontal bars, one per method."""
    row, width, left, right = 28, 900, 165, 235
    longest = max((sum(value for _, value in bar.parts) for bar in bars), default=0) or 1.0
    height = row * len(bars) + 40
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(xlabel)}">']
    for x in ticks(0, longest, 6):
        at = left + (width - left - right) * x / longest
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height - 34}"/>'
            f'<text class="tick" x="{at:.1f}" y="{height - 20}" text-anchor="middle">{x:g}</text>'
        )
    for i, bar in enumerate(bars):
        y, at = i * row + 6, float(left)
        parts.append(
            f'<rect x="0" y="{y + 4}" width="10" height="10" fill="{bar.colour}"/>'
            f'<text class="label" x="16" y="{y + 13}">{html.escape(bar.label)}</text>'
        )
        for tone, value in bar.parts:
            length = (width - left - right) * value / longest
            parts.append(
                f'<rect x="{at:.1f}" y="{y}" width="{length:.1f}" height="18" fill="{tone}" stroke="#fff" '
                'stroke-width="0.5"/>'
            )
            at += length
        parts.append(f'<text class="tick" x="{at + 8:.1f}" y="{y + 13}">{html.escape(bar.note)}</text>')
    middle = (left + width - right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{height - 4}" text-anchor="middle">{html.escape(xlabel)}</text>'
    )
    return "".join([*parts, "</svg>"])
