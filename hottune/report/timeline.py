"""What reports tell of timelines: which server's, where its warm-up ended, and a sparkline of its hits."""

from __future__ import annotations

from hottune.outcomes import Measurement, Timeline, evenly
from hottune.report.schema import Arm, Report
from hottune.report.wording import measurements

_BARS = "▁▂▃▄▅▆▇█"
#: Bars of a sparkline at most.
WIDEST = 20


def driven(arm: Arm) -> tuple[Measurement, Timeline] | None:
    """Return the arm's first replicate that has a timeline, with it."""
    return next(((run, run.timeline) for run in measurements(arm) if run.timeline is not None), None)


def middles(line: Timeline) -> list[float]:
    """Return the middle of each interval, seconds after the first request: where a mean over it belongs."""
    return [(start + end) / 2 for start, end in zip([0.0, *line.at_s], line.at_s, strict=False)]


def warmup_end_s(run: Measurement) -> float:
    """Return when the last warm-up request was answered, seconds after the first request; 0 = none was."""
    return max((one.started_s + one.turn_s for one in run.requests if one.warmup), default=0.0)


def hit_lines(report: Report) -> list[str]:
    """Return a sparkline for each arm with a cache: `hot: hits ▂▄▆▇▇▇ 41% → 88%, 0.5 s a bar`.

    Bars stand for 0 to 100 %, so those of arms compare; `·` is time in which nothing went through the cache.
    """
    lines = []
    for arm in report.arms:
        found = driven(arm) if arm.outcome == "measurement" else None
        bars = merged(found[1], WIDEST).hit_rates if found else []
        known = [rate for rate in bars if rate is not None]
        if found is None or not known:
            continue
        drawn = "".join("·" if rate is None else _bar(rate) for rate in bars)
        seconds = found[1].at_s[-1] / len(bars)
        lines.append(
            f"{arm.name}: hits {drawn} {known[0]:.0%} → {known[-1]:.0%}, from the first request on, "
            f"{seconds:.2g} s a bar"
        )
    return lines


def merged(line: Timeline, most: int) -> Timeline:
    """Return the timeline in at most so many intervals: neighbours are put together evenly."""
    parts = evenly(len(line.at_s), most)
    return Timeline(
        at_s=[line.at_s[part][-1] for part in parts],
        vram_mib=[max(line.vram_mib[part]) for part in parts] if line.vram_mib else [],
        hits=[sum(line.hits[part]) for part in parts] if line.hits else [],
        misses=[sum(line.misses[part]) for part in parts] if line.misses else [],
    )


def _bar(rate: float) -> str:
    return _BARS[min(len(_BARS) - 1, int(rate * len(_BARS)))]
