"""How a change reads: its verdict, its ratio, its interval, and how those were made. One way everywhere."""

from __future__ import annotations

from collections.abc import Iterable

from hottune.report.schema import Change

NOTHING = "–"
#: A wide interval of which one half is longer than so many times the other is shown by its ends.
LOPSIDED, WIDE = 1.25, 0.1
_HOLM = ", verdict by Holm over "
_COUNT = ", n="


def change(value: Change | None) -> str:
    """Return `faster +12% ±4%`, or `faster, +20% to +201%` where the interval is lopsided.

    The ± is the longer half of the interval. Where that is much longer than the other half, it would say that
    a change may be none, or be slower than standing still, so both ends stand there.
    """
    if value is None:
        return NOTHING
    percent = (value.ratio - 1) * 100
    decimals = 0 if abs(percent) >= 9.95 else 1
    text = f"{value.verdict} {signed(percent, decimals)}"
    if value.low is None or value.high is None:
        return f"{text}, no interval"
    upper, lower = value.high - value.ratio, value.ratio - value.low
    if upper > max(WIDE, LOPSIDED * lower):
        ends = [
            signed((end - 1) * 100, 0 if abs(end - 1) >= 0.0995 else 1) for end in (value.low, value.high)
        ]
        return f"{value.verdict}, {' to '.join(ends)}"
    return f"{text} ±{max(upper, lower) * 100:,.{decimals}f}%"


def ratio(value: float) -> str:
    """Return how many times as fast: `1.12×`, with as many digits wherever a ratio stands."""
    return f"{value:.2f}×"


def interval(value: Change) -> str:
    """Return the ratio with its exact interval: `1.12× (1.08 to 1.16)`."""
    if value.low is None or value.high is None:
        return f"{ratio(value.ratio)} (no interval)"
    return f"{ratio(value.ratio)} ({value.low:.2f} to {value.high:.2f})"


def signed(percent: float, decimals: int) -> str:
    """Return a percentage with its sign, but none before zero: `+12%`, `−9.4%`, `0%`."""
    size = f"{abs(percent):,.{decimals}f}"
    sign = "" if not size.strip("0.") else "+" if percent > 0 else "−"
    return f"{sign}{size}%"


def methods(changes: Iterable[Change]) -> str:
    """Return how intervals and verdicts were made, in one sentence without its full stop.

    `t on paired log-ratios, n=3 or 4; where several are compared, verdicts by Holm over 3`. What the methods
    have in common is said once.
    """
    counts: dict[str, list[str]] = {}
    compared: list[str] = []
    for one in changes:
        made, _, holm = one.method.partition(_HOLM)
        name, _, count = made.rpartition(_COUNT)
        counts.setdefault(name or made, []).append(count if name else "")
        compared += [holm] * bool(holm)
    parts = [
        name + (f"{_COUNT}{_listed(known)}" if (known := [count for count in found if count]) else "")
        for name, found in counts.items()
    ]
    if compared:
        parts.append(f"where several are compared, verdicts by Holm over {_listed(compared)}")
    return "; ".join(parts)


def _listed(words: Iterable[str]) -> str:
    """Return `3`, `3 or 4`, `3, 4 or 5`: each word once, in the order of their lengths and digits."""
    *most, last = sorted(dict.fromkeys(words), key=lambda word: (len(word), word))
    return f"{', '.join(most)} or {last}" if most else last
