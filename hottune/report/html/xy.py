"""Points and lines over two axes from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hottune.report.html.svg import WIDTH, Scale, dot, line, text, tick_label, ticks, titled

_LEFT, _RIGHT, _TOP, _PLOT, _BOTTOM = 40.0, 12.0, 26.0, 184.0, 40.0
#: Least distance of two letters in a row, and the height of such a row.
_APART, _LANE = 10.0, 12.0


@dataclass(frozen=True)
class Point:
    """A mark at (x, y).

    Args:
        x: horizontal value.
        y: vertical value.
        words: shown when the pointer rests on it.
        shape: `circle`, `square` or `diamond`.
        kind: style of the page.
    """

    x: float
    y: float
    words: str
    shape: str = "circle"
    kind: str = "p0"


@dataclass(frozen=True)
class Line:
    """A line through points; with `steps` it goes level to the next point, then up or down."""

    points: Sequence[tuple[float, float]]
    kind: str
    steps: bool = False


@dataclass(frozen=True)
class Flag:
    """A letter above the plot, for what has an x but no y: a trial that failed."""

    x: float
    letter: str
    words: str


def plot(
    x_axis: str,
    y_axis: str,
    *,
    points: Sequence[Point] = (),
    lines: Sequence[Line] = (),
    flags: Sequence[Flag] = (),
    y_end: float | None = None,
) -> tuple[str, float]:
    """Draw points and lines.

    Args:
        x_axis: title of the horizontal axis, with its unit.
        y_axis: the same of the vertical one, written above it.
        points: marks, drawn over the lines.
        lines: drawn in their order.
        flags: letters above the plot, in as many rows as keep them apart.
        y_end: end of the vertical axis; None = what the values need.

    Returns:
        The SVG elements, and the height they need.
    """
    xs = [*(item.x for item in points), *(x for item in lines for x, _ in item.points)]
    xs += [flag.x for flag in flags]
    ys = [*(item.y for item in points), *(y for item in lines for _, y in item.points)]
    across, up = ticks(max(xs, default=1.0)), ticks(max(ys, default=1.0) if y_end is None else y_end)
    # A mark at 0 keeps clear of the labels of the other axis.
    x = Scale(across[-1], _LEFT + 8, WIDTH - _RIGHT)
    lanes = _lanes([x.at(flag.x) for flag in flags])
    top = _TOP + _LANE * (max(lanes, default=-1) + 1)
    height = top + _PLOT + _BOTTOM
    y = Scale(up[-1], height - _BOTTOM, top)
    parts = [line(_LEFT, y.at(step), WIDTH - _RIGHT, y.at(step), "grid") for step in up]
    parts += [text(_LEFT - 5, y.at(step) + 4, tick_label(step), anchor="end") for step in up]
    parts += [text(x.at(step), height - _BOTTOM + 15, tick_label(step), anchor="middle") for step in across]
    parts += [text((_LEFT + WIDTH - _RIGHT) / 2, height - 7, x_axis, anchor="middle", kind="axis")]
    parts += [text(2, 12, y_axis, kind="axis")]
    parts += [_path(item, x, y) for item in lines]
    parts += [titled(dot(x.at(p.x), y.at(p.y), p.kind, p.shape), p.words) for p in points]
    parts += [
        titled(
            text(x.at(flag.x), top - 7 - _LANE * lane, flag.letter, anchor="middle", kind="flag"), flag.words
        )
        for flag, lane in zip(flags, lanes, strict=True)
    ]
    return "\n".join(parts), height


def _lanes(places: Sequence[float]) -> list[int]:
    """Return the row of each letter, the lowest where it has room; places ascend."""
    last: list[float] = []
    found = []
    for place in places:
        lane = next((row for row, at in enumerate(last) if place - at >= _APART), len(last))
        last[lane:] = [place, *last[lane + 1 :]]
        found.append(lane)
    return found


def _path(item: Line, x: Scale, y: Scale) -> str:
    places = [(x.at(first), y.at(second)) for first, second in item.points]
    if not places:
        return ""
    path = f"M{places[0][0]:g} {places[0][1]:g}"
    for across, up in places[1:]:
        path += f"H{across:g}V{up:g}" if item.steps else f"L{across:g} {up:g}"
    return f'<path d="{path}" class="{item.kind}"/>'
