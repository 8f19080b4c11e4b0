"""Horizontal bars, one group an arm, with intervals and single samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hottune.report.html.svg import WIDTH, Scale, line, text, tick_label, ticks, titled

_LEFT, _RIGHT, _LABEL, _BAR, _GAP, _TOP = 8.0, 88.0, 18.0, 15.0, 8.0, 4.0


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        value: its length.
        words: what stands right of it.
        low: lower end of its interval; None = no interval.
        high: upper end.
        samples: single values, drawn as dots.
        kind: style: `b0` to `b2`, `won` for what is recommended.
    """

    value: float
    words: str
    low: float | None = None
    high: float | None = None
    samples: Sequence[float] = ()
    kind: str = "b0"


@dataclass(frozen=True)
class Group:
    """Bars that belong together, below their label."""

    label: str
    bars: Sequence[Bar] = field(default_factory=tuple)


def bars(groups: Sequence[Group], axis: str, reference: tuple[float, str] | None = None) -> tuple[str, float]:
    """Draw groups of bars from 0.

    Args:
        groups: from top to bottom.
        axis: title of the axis, with its unit.
        reference: a value with its name, drawn as a vertical line through all groups.

    Returns:
        The SVG elements, and the height they need.
    """
    every = [bar for group in groups for bar in group.bars]
    tops = [value for bar in every for value in (bar.value, *bar.samples)]
    # An interval of two samples is so wide that it would leave the bars no room: it is cut at the end.
    reach = max([*tops, 0.0])
    ends = [min(bar.high, 1.5 * reach) for bar in every if bar.high is not None]
    steps = ticks(max([reach, *ends, *([reference[0]] if reference else [])]))
    scale = Scale(steps[-1], _LEFT, WIDTH - _RIGHT)
    bottom = _TOP + sum(_LABEL + _BAR * len(group.bars) + _GAP for group in groups)
    parts = [line(scale.at(step), _TOP, scale.at(step), bottom, "grid") for step in steps]
    parts += [text(scale.at(step), bottom + 13, tick_label(step), anchor="middle") for step in steps]
    parts += [text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 28, axis, anchor="middle", kind="axis")]
    y = _TOP
    for group in groups:
        parts.append(text(_LEFT, y + 12, group.label, kind="label"))
        y += _LABEL
        for bar in group.bars:
            parts.append(_bar(bar, scale, y, group.label))
            y += _BAR
        y += _GAP
    if reference:
        at = scale.at(reference[0])
        parts += [line(at, _TOP, at, bottom, "reference"), text(at + 4, _TOP + 9, reference[1])]
    return "\n".join(parts), bottom + 34


def _bar(bar: Bar, scale: Scale, y: float, label: str) -> str:
    start, end, middle = scale.at(0), scale.at(bar.value), y + (_BAR - 3) / 2
    shape = (
        f'<rect x="{start:g}" y="{y:g}" width="{max(end - start, 0.5):g}" height="{_BAR - 3:g}" '
        f'class="{bar.kind}"/>'
    )
    if bar.low is not None and bar.high is not None:
        low, high = scale.at(bar.low), scale.at(bar.high)
        shape += line(low, middle, high, middle, "whisker")
        ends = [low, high] if bar.high <= scale.end else [low]
        shape += "".join(line(x, middle - 4, x, middle + 4, "whisker") for x in ends)
    shape += "".join(
        f'<circle cx="{scale.at(value):g}" cy="{middle:g}" r="2" class="sample"/>' for value in bar.samples
    )
    return titled(shape, f"{label}: {bar.words}") + text(WIDTH - 2, y + 10, bar.words, anchor="end")
