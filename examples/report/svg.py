"""Two kinds of chart as inline SVG, drawn without any library: bars for days, a line with marks for seconds.

Quantities become floats here and nowhere else: a bar's height on a screen is no amount of money.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from markupsafe import Markup

LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 22
BAR = Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {}</title></rect>')
CURVE = Markup('<polygon class="under" points="{} {}"/><polyline class="over" points="{}"/>')
RULE = Markup('<line class="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
MARK_LINE = Markup('<g class="mark {}"><line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/></g>')
MARK_LABEL = Markup(
    '<g class="mark {}"><circle cx="{:.1f}" cy="{}" r="4"/><text x="{:.1f}" y="{}" text-anchor="{}">{}</text></g>'
)
BEGIN = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>')


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a second of a line chart; `kind` is its colour (a CSS class)."""

    at_s: float
    label: str
    kind: str


def nice_ceiling(value: Decimal) -> Decimal:
    """Return the next 1, 2, 2.5, 4, 5 or 8 times a power of ten, for the top of an axis.

    >>> [str(nice_ceiling(Decimal(text)).normalize()) for text in ("0", "3.1", "74", "99", "0.021")]
    ['1', '4', '8E+1', '1E+2', '0.025']
    """
    if value <= 0:
        return Decimal(1)
    power = Decimal(10) ** value.adjusted()
    steps = (Decimal(step) for step in ("1", "2", "2.5", "4", "5", "8", "10"))
    return next(step * power for step in steps if step * power >= value)


def short(value: Decimal) -> str:
    """Write a figure for an axis: at most four characters and a prefix.

    >>> [short(Decimal(text)) for text in ("0", "0.025", "7.5", "1250", "40000", "3100000")]
    ['0', '0.025', '7.5', '1.25k', '40k', '3.1M']
    """
    for limit, suffix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= limit:
            return f"{_plain(value / limit)}{suffix}"
    return _plain(value)


def _plain(value: Decimal) -> str:
    rounded = value.quantize(Decimal("0.01")) if value >= 1 else value.quantize(Decimal("0.0001"))
    return f"{rounded.normalize():f}"


def draw_bars(
    values: Sequence[tuple[str, Decimal]], *, title: str, width: int = 330, height: int = 150, every: int = 5
) -> Markup:
    """Draw one bar for each labelled value.

    Args:
        every: Which labels stand under the axis: the first and each n-th.
    """
    top = nice_ceiling(max((value for _, value in values), default=Decimal(0)))
    inner, tall = width - LEFT - RIGHT, height - TOP - BOTTOM
    slot = inner / max(len(values), 1)
    parts = [_open(width, height, title), *_grid(top, width, tall)]
    for index, (label, value) in enumerate(values):
        high = float(value / top) * tall
        left = LEFT + index * slot
        parts.append(BAR.format(left + slot * 0.12, TOP + tall - high, slot * 0.76, high, label, f"{value:,f}"))
        if index == 0 or (index + 1) % every == 0:
            parts.append(_text(left + slot / 2, height - 7, label, "middle"))
    return Markup("").join([*parts, Markup("</svg>")])


def draw_line(
    points: Sequence[tuple[float, Decimal]],
    *,
    title: str,
    threshold: Decimal,
    threshold_label: str,
    marks: Sequence[Mark],
    width: int = 1040,
    height: int = 250,
) -> Markup:
    """Draw a value over the seconds of a run, the threshold that it crosses, and what followed."""
    end_s = max([at_s for at_s, _ in points] + [mark.at_s for mark in marks], default=1.0) or 1.0
    end_s *= 1.02
    top = nice_ceiling(max([value for _, value in points] + [threshold]) * Decimal("1.05"))
    inner, tall = width - LEFT - RIGHT, height - TOP - BOTTOM - 16

    def across(at_s: float) -> float:
        return LEFT + inner * at_s / end_s

    def down(value: Decimal) -> float:
        return TOP + tall - float(value / top) * tall

    step_s = int(nice_ceiling(Decimal(str(end_s / 8))).to_integral_value(ROUND_CEILING))
    seconds = [_text(across(at_s), TOP + tall + 15, f"{at_s} s", "middle") for at_s in range(0, int(end_s) + 1, step_s)]
    corners = " ".join(f"{across(at_s):.1f},{down(value):.1f}" for at_s, value in points)
    floor = f"{across(points[-1][0]):.1f},{TOP + tall} {across(points[0][0]):.1f},{TOP + tall}" if points else ""
    parts = [
        _open(width, height, title),
        *_grid(top, width, tall),
        *seconds,
        CURVE.format(corners, floor, corners),
        RULE.format("threshold", LEFT, width - RIGHT, down(threshold), down(threshold)),
        Markup('<text class="threshold-label" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            LEFT + inner * 0.7, down(threshold) - 5, threshold_label
        ),
    ]
    places = [(across(mark.at_s), TOP + 8 + 16 * row, mark) for row, mark in enumerate(marks)]
    parts += [MARK_LINE.format(mark.kind, left, left, TOP, TOP + tall) for left, _, mark in places]
    for left, y, mark in places:  # over all the lines
        side, anchor = (-8, "end") if left > width - 120 else (8, "start")
        parts.append(MARK_LABEL.format(mark.kind, left, y, left + side, y + 4, anchor, mark.label))
    return Markup("").join([*parts, Markup("</svg>")])


def _open(width: int, height: int, title: str) -> Markup:
    return BEGIN.format(width, height, title, title)


def _grid(top: Decimal, width: int, tall: int) -> list[Markup]:
    lines = []
    for quarter in (0, 2, 4):
        y = TOP + tall - tall * quarter / 4
        lines.append(RULE.format("grid", LEFT, width - RIGHT, y, y))
        lines.append(_text(LEFT - 6, y + 4, short(top * quarter / 4), "end"))
    return lines


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="axis" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
