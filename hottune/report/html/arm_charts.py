"""Charts of the arms: speeds with intervals, latency, cold start, VRAM, roofline, hit rate by layer."""

from __future__ import annotations

import statistics
from collections import Counter

from hottune.outcomes import Measurement
from hottune.report.html.bars import Bar, Group, bars
from hottune.report.html.markup import Cell
from hottune.report.html.svg import Figure
from hottune.report.html.xy import Line, Point, plot
from hottune.report.schema import Arm, Report
from hottune.report.wording import NOTHING, measurements, number, share
from hottune.stats.level import level_interval

_SPEEDS = (
    ("Decode speed", "decode_tok_s", "tok/s"),
    ("Prefill speed", "prefill_tok_s", "tok/s"),
    ("Whole turn", "turn_s", "s"),
)


def labelled(report: Report) -> list[tuple[str, Arm]]:
    """Return the arms, each with its name, and with its placement where several have that name."""
    names = Counter(arm.name for arm in report.arms)
    return [
        (arm.name if names[arm.name] == 1 else f"{arm.name} ({arm.placement.label()})", arm)
        for arm in report.arms
    ]


def measured(report: Report) -> list[tuple[str, Arm]]:
    """Return the arms that are measurements, labelled."""
    return [(label, arm) for label, arm in labelled(report) if arm.outcome == "measurement"]


def speeds(report: Report) -> list[Figure]:
    """Return decode, prefill and turn of every arm, with the interval over fresh servers."""
    found = []
    level = report.confirmation.level if report.confirmation else 0.95
    for title, field, unit in _SPEEDS:
        groups, rows, spread = [], [], False
        for label, arm in measured(report):
            mean: float | None = getattr(arm, field)
            if mean is None:
                continue
            samples: list[float] = [getattr(run, field) for run in measurements(arm)]
            # A speed of 0 (one token of output has no decode step) has no logarithm.
            bounds = level_interval(samples, level) if all(value > 0 for value in samples) else None
            low, high = bounds or (None, None)
            spread = spread or bounds is not None
            bar = Bar(mean, f"{number(mean)} {unit}", low, high, samples, _kind(report, arm))
            groups.append(Group(label, [bar]))
            rows.append([Cell(label), *(_number(value) for value in (mean, low, high)), Cell(_list(samples))])
        if not groups:
            continue
        better = "Shorter is better." if unit == "s" else "Longer is better."
        body, height = bars(groups, unit)
        head = ["arm", f"mean {unit}", "low", "high", "fresh servers"]
        line = f"Line: {level * 100:.3g}% interval of the geometric mean."
        note = f"{better} Dots: fresh servers. {line if spread else 'Too few for an interval.'}"
        text = f"{title} in {unit} of {len(groups)} arms, as bars with intervals."
        found.append(Figure(title, text, height, body, head, rows, note))
    return found


def latency(report: Report) -> Figure | None:
    """Return the time for one token at three percentiles, mean over the replicates of each arm."""
    groups, rows = [], []
    for label, arm in measured(report):
        runs = measurements(arm)
        if not runs:
            continue
        parts = [
            (name, statistics.fmean(getattr(run, f"token_ms_{name}") for run in runs))
            for name in ("p50", "p95", "p99")
        ]
        groups.append(
            Group(
                label, [Bar(ms, f"{name} {number(ms)}", kind=f"b{n}") for n, (name, ms) in enumerate(parts)]
            )
        )
        rows.append([Cell(label), *(_number(ms) for _, ms in parts)])
    if not groups:
        return None
    body, height = bars(groups, "ms a token")
    text = "Time for one token at the 50th, 95th and 99th percentile of each arm, in milliseconds, as bars."
    note = "Shorter is better. Client timing; mean over fresh servers."
    return Figure("Latency of a token", text, height, body, ["arm", "p50 ms", "p95 ms", "p99 ms"], rows, note)


def cold(report: Report) -> Figure | None:
    """Return the first turn of a fresh server beside the later ones."""
    groups, rows = [], []
    for label, arm in measured(report):
        first, later = arm.cold_turn_s, arm.turn_s
        if first is None or later is None:
            continue
        pair = [
            Bar(first, f"cold {number(first)} s", kind="b0"),
            Bar(later, f"warm {number(later)} s", kind="b2"),
        ]
        groups.append(Group(label, pair))
        speed = [arm.cold_decode_tok_s, arm.decode_tok_s]
        rows.append([Cell(label), *(_number(value) for value in (first, later, *speed))])
    if not groups:
        return None
    body, height = bars(groups, "s a turn")
    head = ["arm", "cold turn s", "warm turn s", "cold decode tok/s", "warm decode tok/s"]
    text = "Wall-clock of the first request to a fresh server and of later ones, in seconds, as bars by arm."
    note = "Shorter is better. Cold: the first request to a fresh server."
    return Figure("Cold start beside warm", text, height, body, head, rows, note)


def vram(report: Report) -> Figure | None:
    """Return the peak VRAM of every arm against the ceiling."""
    found = [(label, arm, arm.vram_peak_mib) for label, arm in measured(report)]
    # In the device's benchmark each row has a ceiling of its own.
    single = not any(arm.cell for arm in report.arms)
    groups = [
        Group(label, [Bar(peak, f"{_about(arm)}{peak:,.0f} MiB", kind=_kind(report, arm))])
        for label, arm, peak in found
        if peak is not None
    ]
    rows = [
        [
            Cell(label),
            Cell(f"{_about(arm)}{peak:,.0f}", peak),
            _number(ceiling := arm.cell.ceiling_mib if arm.cell else report.ceiling_mib),
            Cell(share(peak / ceiling), peak / ceiling) if ceiling else Cell(NOTHING),
        ]
        for label, arm, peak in found
        if peak is not None
    ]
    if not groups:
        return None
    reference = (report.ceiling_mib, f"{report.ceiling_mib:,.0f} ceiling") if single else None
    body, height = bars(groups, "MiB", reference)
    head = ["arm", "peak MiB", "ceiling MiB", "share of the ceiling"]
    text = f"Peak VRAM of each arm in MiB, as bars{' beside the line of the ceiling' * single}."
    note = "~: the change of the whole device." if any(_about(arm) for _, arm, _ in found) else ""
    return Figure("VRAM peak", text, height, body, head, rows, note)


def roofline(report: Report) -> Figure | None:
    """Return the share of the machine's bound that each arm's decoding reached."""
    found = [(label, arm, arm.bound_share) for label, arm in measured(report)]
    groups = [
        Group(label, [Bar(part * 100, share(part), kind=_kind(report, arm))])
        for label, arm, part in found
        if part is not None
    ]
    if not groups:
        return None
    rows = [
        [Cell(label), _number(arm.decode_tok_s), _number(arm.bound_decode_tok_s), Cell(share(part), part)]
        for label, arm, part in found
        if part is not None
    ]
    body, height = bars(groups, "% of the bound on decode speed", (100.0, "bound"))
    head = ["arm", "decode tok/s", "bound tok/s", "share"]
    text = "Share of the machine's bound on decode speed that each arm reached, in percent, as bars."
    note = "The bound is what memory and links allow at the measured hit rate."
    return Figure("Roofline share", text, height, body, head, rows, note)


def layer_hits(report: Report) -> Figure | None:
    """Return the hit rate of each cached layer of the arms with a cache, mean over their replicates."""
    found = [(label, rates) for label, arm in measured(report) if (rates := _layer_rates(measurements(arm)))]
    if not found:
        return None
    lines, points = [], []
    # More could not be told apart; a search measures three again at most.
    for place, (label, rates) in enumerate(found[:3]):
        lines.append(Line([(layer, rate * 100) for layer, rate in enumerate(rates)], f"l{place}"))
        shape = ("circle", "diamond", "square")[place]
        kind = ("p0", "p1", "p2")[place]
        points += [
            Point(layer, rate * 100, f"{label}, layer {layer}: {share(rate)}", shape, kind)
            for layer, rate in enumerate(rates)
        ]
    body, height = plot(
        "cached layer, in the model's order", "hits, %", points=points, lines=lines, y_end=100
    )
    longest = max(len(rates) for _, rates in found)
    rows = [
        [
            Cell(str(layer), layer),
            *(
                Cell(share(rates[layer]), rates[layer]) if layer < len(rates) else Cell(NOTHING)
                for _, rates in found
            ),
        ]
        for layer in range(longest)
    ]
    text = f"Share of routed experts found in VRAM in each of {longest} cached layers, in percent, as lines."
    marks = ("solid, circles", "dashed, diamonds", "dotted, squares")
    note = "; ".join(f"{label}: {marks[place]}" for place, (label, _) in enumerate(found[:3])) + "."
    note += " The others are in the data." if len(found) > 3 else ""
    head = ["layer", *(label for label, _ in found)]
    return Figure("Hit rate by layer", text, height, body, head, rows, note)


def _layer_rates(runs: list[Measurement]) -> list[float]:
    every = [hot.layer_hit_rate for run in runs if (hot := run.engagement.hot) and hot.layer_hit_rate]
    # Of other layers there is no mean: what cached as many as the first replicate counts.
    same = [rates for rates in every if len(rates) == len(every[0])]
    return [statistics.fmean(rates) for rates in zip(*same, strict=True)]


def _kind(report: Report, arm: Arm) -> str:
    return "won" if report.winner is not None and arm.name == report.winner.arm else "b0"


def _about(arm: Arm) -> str:
    return "~" if arm.vram_source == "device-change" else ""


def _number(value: float | None) -> Cell:
    return Cell(number(value), value)


def _list(samples: list[float]) -> str:
    return ", ".join(number(value) for value in samples)
