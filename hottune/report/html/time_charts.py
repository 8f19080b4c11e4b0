"""Charts over the time that a server was driven: hit rate and VRAM, a line an arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hottune.outcomes import Measurement, Timeline
from hottune.report.html.arm_charts import measured
from hottune.report.html.markup import Cell
from hottune.report.html.svg import Figure
from hottune.report.html.xy import Line, Point, plot
from hottune.report.schema import Report
from hottune.report.timeline import driven, merged, middles, warmup_end_s
from hottune.report.wording import share

#: How the n-th line looks, in words and in styles; more lines could not be told apart.
_MARKS = (
    "solid, circles",
    "dashed, diamonds",
    "dotted, squares",
    "dash-dotted, circles",
    "long dashes, diamonds",
    "thin, squares",
)
_SHAPES = ("circle", "diamond", "square") * 2
_POINTS = ("p0", "p1", "p2") * 2
#: Marks on a line, which carry its values for the pointer; more would hide the line.
_MARKED = 8
#: Rows of an arm in the table of data; the JSON file has them all.
_ROWS = 20


def hits_over_time(report: Report) -> Figure | None:
    """Return the cache's hit rate while one server of each arm was driven, its warm-up marked."""
    found = [(label, *one) for label, arm in measured(report) if (one := driven(arm)) and one[1].hits][:3]
    if not found:
        return None
    lines, points, rows = [], [], []
    for place, (label, run, line) in enumerate(found):
        ends, warm_s = middles(line), warmup_end_s(run)
        known = [(at, rate * 100) for at, rate in zip(ends, line.hit_rates, strict=True) if rate is not None]
        lines.append(Line(known, f"l{place}"))
        if warm_s > 0:
            lines.append(Line([(warm_s, 0), (warm_s, 100)], f"l{place} warm"))
        points += _marks(label, known, place, lambda rate: f"{rate:.1f}% hits")
        rows += _hit_rows(label, merged(line, _ROWS), warm_s)
    body, height = plot("s since the first request", "hits, %", points=points, lines=lines, y_end=100)
    text = (
        f"Share of routed experts found in VRAM over the time that a server was driven, of {len(found)} "
        f"arm{'s' * (len(found) > 1)} with a cache, as lines: "
        + "; ".join(f"{label} {_began_and_ended(line)}" for label, _, line in found)
    )
    note = f"{_told(found)} Upright: the end of the arm's warm-up, which counts in no mean."
    head = ["arm", "until s", "part", "hits", "found", "missed"]
    return Figure("Hit rate over time", f"{text}.", height, body, head, rows, note)


def vram_over_time(report: Report) -> Figure | None:
    """Return the VRAM of one server of each arm while it was driven, under the ceiling."""
    found = [(label, *one) for label, arm in measured(report) if (one := driven(arm)) and one[1].vram_mib][:6]
    if not found:
        return None
    # In the device's benchmark each row has a ceiling of its own.
    single = not any(arm.cell for arm in report.arms)
    lines, points, rows = [], [], []
    for place, (label, _, line) in enumerate(found):
        known = list(zip(middles(line), line.vram_mib, strict=True))
        lines.append(Line(known, f"l{place}"))
        points += _marks(label, known, place, lambda used: f"{used:,.0f} MiB")
        shown = merged(line, _ROWS)
        rows += [
            [Cell(label), Cell(f"{at:.2f}", at), Cell(f"{used:,.1f}", used)]
            for at, used in zip(shown.at_s, shown.vram_mib, strict=True)
        ]
    if single:
        end = max(line.at_s[-1] for _, _, line in found)
        lines.append(Line([(0, report.ceiling_mib), (end, report.ceiling_mib)], "reference"))
    body, height = plot("s since the first request", "MiB", points=points, lines=lines)
    text = f"VRAM in MiB of {len(found)} arms over the time that a server was driven, as lines: "
    text += "; ".join(
        f"{label} from {line.vram_mib[0]:,.0f} to at most {max(line.vram_mib):,.0f}"
        for label, _, line in found
    )
    note = _told(found) + (f" Line across: the ceiling of {report.ceiling_mib:,.0f} MiB." * single)
    return Figure("VRAM over time", f"{text}.", height, body, ["arm", "until s", "MiB"], rows, note)


def _marks(
    label: str, known: Sequence[tuple[float, float]], place: int, say: Callable[[float], str]
) -> list[Point]:
    step = max(1, -(-len(known) // _MARKED))  # lines that lie on each other show their marks in turn
    return [
        Point(at, value, f"{label}, {at:.2f} s: {say(value)}", _SHAPES[place], _POINTS[place])
        for at, value in known[place % step :: step]
    ]


def _hit_rows(label: str, line: Timeline, warm_s: float) -> list[list[Cell]]:
    return [
        [
            Cell(label),
            Cell(f"{at:.2f}", at),
            Cell("warm-up" if at <= warm_s else "measured"),
            Cell(share(rate), rate),
            Cell(f"{hits:,}", hits),
            Cell(f"{misses:,}", misses),
        ]
        for at, rate, hits, misses in zip(line.at_s, line.hit_rates, line.hits, line.misses, strict=True)
    ]


def _began_and_ended(line: Timeline) -> str:
    rates = [rate for rate in line.hit_rates if rate is not None]
    return f"from {share(rates[0])} to {share(rates[-1])}" if rates else "without any"


def _told(found: Sequence[tuple[str, Measurement, Timeline]]) -> str:
    lines = "; ".join(f"{label}: {_MARKS[place]}" for place, (label, _, _) in enumerate(found))
    return f"{lines}. The first fresh server of each arm."
