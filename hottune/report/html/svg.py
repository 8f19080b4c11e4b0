"""What every chart is made of: a scale, ticks at round numbers, text, and the figure around it.

Charts are drawn 360 units wide and shown about that large, so their text keeps a readable size on a phone;
a wide screen shows several beside each other. Colours come from the page's style, so that dark mode and
print change them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hottune.report.html.markup import Cell, esc, slug, table

WIDTH = 360


@dataclass(frozen=True)
class Figure:
    """A chart with the numbers behind it.

    Args:
        title: heading of the figure, unique on the page.
        description: what it shows, in a sentence; read by screen readers.
        height: of the drawing, in its own units (the width is `WIDTH`).
        body: SVG elements.
        head: column titles of the table of data.
        rows: that table.
        note: how to read it, shown below; may be empty.
    """

    title: str
    description: str
    height: float
    body: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def html(self) -> str:
        """Return the figure; its data are in a part that opens, without a script."""
        name = slug(self.title)
        note = f'<p class="note">{esc(self.note)}</p>' if self.note else ""
        return (
            f'<figure><figcaption>{esc(self.title)}</figcaption>\n<svg viewBox="0 0 {WIDTH} {self.height:g}" '
            f'role="img" aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">'
            f'{esc(self.title)}</title><desc id="{name}-desc">{esc(self.description)}</desc>\n{self.body}\n'
            f"</svg>{note}<details><summary>Data: {esc(self.title)}</summary>"
            f"{table(self.title, self.head, self.rows)}</details></figure>"
        )


@dataclass(frozen=True)
class Scale:
    """A linear scale from 0 to `end`, drawn from `start_at` to `end_at`.

    Args:
        end: largest value; larger ones are drawn at the end.
        start_at: coordinate of 0.
        end_at: coordinate of `end`.
    """

    end: float
    start_at: float
    end_at: float

    def at(self, value: float) -> float:
        """Return the coordinate of a value, inside the scale."""
        part = min(max(value / self.end, 0.0), 1.0)
        return round(self.start_at + part * (self.end_at - self.start_at), 2)


def ticks(largest: float, wanted: int = 4) -> list[float]:
    """Return about `wanted` steps of 1, 2 or 5 times a power of ten, from 0 to at least the largest value.

    A largest value of nothing (1e-12 or less) counts as 1: an axis needs a length.
    """
    largest = largest if largest > 1e-12 else 1.0
    rough = largest / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(largest / step * 0.999) + 1)]


def tick_label(value: float) -> str:
    """Return a tick as short as it can be: `5k`, `20`, `0.5`."""
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """Return a line of text; the baseline is at `y`."""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{place}{style}>{esc(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line in a style of the page."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>'


def titled(shape: str, words: str) -> str:
    """Return a shape with a text that shows when the pointer rests on it."""
    return f"<g><title>{esc(words)}</title>{shape}</g>"


def dot(x: float, y: float, kind: str, shape: str = "circle") -> str:
    """Return a mark: `circle`, `square` or `diamond`; shapes tell apart what colours alone would not."""
    if shape == "square":
        return f'<rect x="{x - 3.5:g}" y="{y - 3.5:g}" width="7" height="7" class="{kind}"/>'
    if shape == "diamond":
        return f'<path d="M{x:g} {y - 5.5:g}l5.5 5.5-5.5 5.5-5.5-5.5z" class="{kind}"/>'
    return f'<circle cx="{x:g}" cy="{y:g}" r="4" class="{kind}"/>'
