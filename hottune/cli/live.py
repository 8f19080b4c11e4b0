"""The live view of a study: a few lines at the bottom of a terminal, gone when the stage ends.

Search 5/14 servers  ━━━━━━━━━━━━──────────────  3 min 20 s, ETA 6 min 00 s, study up to 14 min 10 s
Now  ncmoe 31 + hot 16/60 ub 512 t 3: request 2 of 4: code-cpp, 512 tokens in, 100 out           12 s
VRAM ██████████████████┃████░░░░░  9,310 of 12,288 MiB, peak 9,402                         hits 75.2%
Best ncmoe 31 + hot 22/60 ub 512 t 3                                       turn 1.23 s, 1.31× layers
     single measurement, not a verdict
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from hottune.progress import StudyState
from hottune.report.verdicts import NOTHING, ratio
from hottune.report.wording import share
from hottune.units import format_seconds

#: Looks at the clock a second: seconds are what changes. Drawing takes a few ms of the client's own process.
PER_SECOND = 2
#: Lines do not get longer than this: they would only be harder to read, and wrap when a window shrinks.
WIDEST = 110
WIDEST_BAR, NARROWEST_BAR = 30, 6
#: Set in terminals that cut long lines off when they shrink; all others wrap them.
NO_REFLOW = ("XTERM_VERSION", "STY")

Part = tuple[str, str]  # text and style


class StudyView:
    """Draws the latest state until it is stopped; then nothing of it stays, and the cursor is back."""

    def __init__(self, out: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state = StudyState("")
        self._drawn: list[int] = []  # columns of each line that is on the screen
        self._live = _Reflowing(
            self, console=out, refresh_per_second=PER_SECOND, transient=True, vertical_overflow="crop"
        )
        self._live.erase_wrapped = self._erase_wrapped

    def show(self, state: StudyState) -> None:
        """Draw this state from now on."""
        self._state = state
        if not self._live.is_started:
            self._live.start(refresh=True)

    def stop(self) -> None:
        """Take the view off the screen."""
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the state as it is now."""
        found = lines(self._state, self._clock(), console.width, console.height)
        self._drawn = [line.cell_len for line in found]
        yield from found

    def _erase_wrapped(self, width: int) -> Control:
        """Return what erases the rows by which drawn lines have grown in a window that is narrower now."""
        more = sum(max(0, math.ceil(columns / max(1, width)) - 1) for columns in self._drawn)
        if not more or any(os.environ.get(name) for name in NO_REFLOW):
            return Control()
        erase = (ControlType.ERASE_IN_LINE, 2)
        return Control(ControlType.CARRIAGE_RETURN, erase, *((ControlType.CURSOR_UP, 1), erase) * more)


class _Reflowing(Live):
    """A Live that finds its lines again after a terminal has wrapped them anew."""

    erase_wrapped: Callable[[int], Control]

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase what Rich, which counts lines as it drew them, would leave above the view."""
        return [self.erase_wrapped(self.console.width), *super().process_renderables(renderables)]


def lines(state: StudyState, now: float, width: int, height: int) -> list[Text]:
    """Return the lines of a study's state, what matters most first.

    Args:
        state: what to show.
        now: the time, as `time.monotonic()` tells it.
        width: columns of the screen; no line reaches the last one, where some terminals wrap.
        height: lines of the screen; at most all but one are used.
    """
    room = max(1, min(width - 1, WIDEST))
    blocks = [
        [_stage(state, now, room)],
        [_doing(state, now, room)],
        [_vram(state, room)],
        _best(state, room),  # the number never without what it rests on
    ]
    shown: list[Text] = []
    for block in blocks:
        if shown and len(shown) + len(block) > height - 1:
            break
        shown += block
    return shown


def _stage(state: StudyState, now: float, room: int) -> Text:
    head: Part = (f"{state.stage} {state.done}/{state.total} servers", "bold")
    times = [format_seconds(max(0.0, now - state.began_at))]
    for words, end in (("ETA", state.stage_ends_at), ("study up to", state.study_ends_at)):
        if end is not None and end > now:  # an end that is past says nothing
            times.append(f"{words} {format_seconds(end - now)}")
    done = state.done / state.total if state.total else 0.0
    for count in range(len(times), 0, -1):
        tail: Part = (", ".join(times[:count]), "")
        left = room - len(head[0]) - len(tail[0]) - 4
        if left >= NARROWEST_BAR:
            return _line(room, head, ("  ", ""), *_stage_bar(done, min(left, WIDEST_BAR)), ("  ", ""), tail)
    return _line(room, (f"{state.stage} {state.done}/{state.total}", "bold"), ("  " + times[0], ""))


def _doing(state: StudyState, now: float, room: int) -> Text:
    if not state.label:
        return _spread(room, ("Now  ", "dim"), ("between two servers", "dim"), ("", ""))
    since: Part = (format_seconds(max(0.0, now - state.label_at)), "")
    return _spread(room, ("Now  ", "dim"), (state.doing, ""), since)


def _vram(state: StudyState, room: int) -> Text:
    hits: Part = (f"hits {share(state.hit_rate)}", "cyan" if state.hit_rate is not None else "dim")
    used = NOTHING if state.vram_mib is None else f"{state.vram_mib:,.0f}"
    amount = used + (f" of {state.ceiling_mib:,.0f}" if state.ceiling_mib else "") + " MiB"
    peak = f", peak {state.vram_peak_mib:,.0f}" if state.vram_peak_mib is not None else ""
    for words in (amount + peak, amount):
        left = room - 5 - len(words) - len(hits[0]) - 4
        if state.ceiling_mib and left >= NARROWEST_BAR:
            bar = _vram_bar(state, state.ceiling_mib, min(left, WIDEST_BAR))
            head = [("VRAM ", "dim"), *bar, ("  ", "")]
            return _line(room, *head, *_apart(room - sum(len(text) for text, _ in head), (words, ""), hits))
    return _spread(room, ("VRAM ", "dim"), (amount, ""), hits)


def _best(state: StudyState, room: int) -> list[Text]:
    best = state.best
    if best is None:
        return [_spread(room, ("Best ", "dim"), ("nothing measured yet", "dim"), ("", ""))]
    against = f", {ratio(best.ratio)} {best.baseline}" if best.ratio is not None else ""
    value: Part = (f"{best.value}{against}", "bold")
    return [
        _spread(room, ("Best ", "dim"), (best.label, ""), value),
        _line(room, (f"     {best.basis}", "dim")),
    ]


def _stage_bar(done: float, width: int) -> list[Part]:
    full = round(width * min(1.0, max(0.0, done)))
    return [("━" * full, "green"), ("─" * (width - full), "dim")]


def _vram_bar(state: StudyState, ceiling_mib: float, width: int) -> list[Part]:
    """Return used, free and the mark of the peak; all is full from the ceiling on, and red above it."""
    used, peak = state.vram_mib or 0.0, state.vram_peak_mib
    full = round(width * min(1.0, used / ceiling_mib))
    cells = [("█", "red" if used > ceiling_mib else "blue")] * full + [("░", "dim")] * (width - full)
    if peak is not None and peak > 0:
        cells[max(0, round(width * min(1.0, peak / ceiling_mib)) - 1)] = ("┃", "yellow")
    return cells


def _spread(room: int, head: Part, middle: Part, tail: Part) -> Text:
    """Return a line with `tail` at its right end; the middle is what gets cut where they do not fit."""
    return _line(room, head, *_apart(room - len(head[0]), middle, tail))


def _apart(room: int, left: Part, right: Part) -> list[Part]:
    if not right[0]:
        return [left]
    space = room - len(right[0]) - 2
    text = left[0] if len(left[0]) <= space else left[0][: max(0, space - 1)] + "…"
    return [(text, left[1]), (" " * max(1, room - len(text) - len(right[0])), ""), right]


def _line(room: int, *parts: Part) -> Text:
    text = Text.assemble(*_pairs(parts), no_wrap=True, overflow="ellipsis", end="\n")
    text.truncate(room, overflow="ellipsis")
    return text


def _pairs(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if part[0]]
