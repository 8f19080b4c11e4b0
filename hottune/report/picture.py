"""The main chart as a picture, for forums that take pictures: the arms' speeds with their spread.

Made so that it can still be read when a forum scales it to half its size.
"""

from __future__ import annotations

import statistics
import textwrap
import warnings
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hottune.report import verdicts, wording
from hottune.report.schema import Arm, Change, Metric, Report
from hottune.report.setup import short_setup

WIDTH_IN, HEIGHT_IN, DPI = 16.0, 9.0, 100
#: Arms that fit into the usual height; each one more makes the picture higher.
USUAL_ARMS, ARM_IN = 6, 0.9
#: Half of an interval, as a ratio, above which a change says nothing.
WIDEST = 3.0
INK, SOFT, WON, PLAIN, ALARM = "#1b1f24", "#57606a", "#0a7d4f", "#8fa3b8", "#b3261e"
_PANELS: tuple[tuple[Metric, str, str], ...] = (
    ("decode", "decode_tok_s", "decode, tok/s"),
    ("prefill", "prefill_tok_s", "prefill, tok/s"),
    ("turn", "turn_s", "whole turn, s (less is better)"),
)


def picture(report: Report) -> bytes:
    """Return the chart as PNG. It has no metadata: what is not drawn is not in it."""
    drawn = figure(report)
    found = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font does not have is drawn as a box
        drawn.savefig(found, format="png", dpi=DPI, metadata={"Software": None})
    return found.getvalue()


def figure(report: Report) -> Figure:
    """Return the chart, to be drawn by anybody."""
    height = HEIGHT_IN + ARM_IN * max(0, len(report.arms) - USUAL_ARMS)
    made = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)
    top = _head(made, report, height)
    bottom = _foot(made, report, height)
    grid = made.add_gridspec(
        1, 3, left=0.225, right=0.985, top=top - 0.5 / height, bottom=bottom + 0.1 / height, wspace=0.07
    )
    for column, (metric, field, title) in enumerate(_PANELS):
        axes = made.add_subplot(grid[0, column])
        _panel(axes, report, metric, field, title)
        if column == 0:
            _names(axes, report)
    return made


def _write(made: Figure | Axes, x: float, y: float, text: str, size: float, **look: Any) -> None:
    """Write a text exactly as it is: a dollar sign begins no formula."""
    made.text(x, y, text, fontsize=size, parse_math=False, **({"color": INK} | look))


def _head(made: Figure, report: Report, height: float) -> float:
    """Write banner, answer and reason; return where they end, from 0 (bottom) to 1."""
    y = 1 - 0.25 / height
    if wording.is_virtual(report):
        text = "VIRTUAL GPU: the CPU stands in. This shows that the tool works, not that anything got faster."
        box = {"facecolor": ALARM, "edgecolor": ALARM, "boxstyle": "square,pad=0.35"}
        _write(made, 0.022, y, text, 16, color="white", weight="bold", va="top", bbox=box)
        y -= 0.6 / height
    found = wording.answer(report)
    for text, size, width, lines, look in (
        (found.what, 25, 82, 2, {"weight": "bold"}),
        (" ".join((found.why, found.against, found.engines)).strip(), 16, 132, 3, {"color": SOFT}),
    ):
        shown = _wrapped(text, width, lines)
        _write(made, 0.015, y, shown, size, va="top", linespacing=1.25, **look)
        y -= (shown.count("\n") + 1) * size * 1.45 / 72 / height
    return y


def _foot(made: Figure, report: Report, height: float) -> float:
    """Write what was measured on what; return where that begins, from 0 (bottom) to 1."""
    setup = dict(short_setup(report))
    ceiling = (
        "" if any(arm.cell for arm in report.arms) else f" · VRAM ceiling: {report.ceiling_mib:,.0f} MiB"
    )
    kind = " (an inflated model, not a released one)" if report.model.inflated else ""
    lines = [
        f"GPU: {setup['GPU']}{ceiling}",
        f"CPU: {setup['CPU']} · RAM: {setup['RAM']}",
        f"Model: {setup['Model']}, {report.model.shape.quant}{kind}",
        f"Workload: {setup['Workload']} · Runs: {setup['Runs']}",
        f"llama.cpp {report.engine.llama_build} · hottune {report.hottune_version}, {report.created:%Y-%m-%d}"
        " · Lines on the bars: standard deviation over fresh servers. ± of a change: its interval.",
    ]
    shown = "\n".join(_wrapped(line, 150, 2) for line in lines)
    _write(made, 0.015, 0.15 / height, shown, 13.5, color=SOFT, va="bottom", linespacing=1.3)
    return (shown.count("\n") + 1) * 13.5 * 1.3 * 1.12 / 72 / height + 0.2 / height


def _names(axes: Axes, report: Report) -> None:
    for row, arm in enumerate(report.arms):
        won = report.winner is not None and arm.name == report.winner.arm
        look: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "clip_on": False}
        name = f"→ {arm.name}" if won else arm.name
        color = WON if won else INK
        _write(axes, -0.04, row - 0.05, name, 19, va="bottom", weight="bold", color=color, **look)
        place = _wrapped(wording.named(report, arm.placement), 27, 2)
        _write(axes, -0.04, row + 0.01, place, 13, va="top", color=SOFT, linespacing=1.15, **look)


def _panel(axes: Axes, report: Report, metric: Metric, field: str, title: str) -> None:
    axes.set_title(title, fontsize=18, loc="left", color=INK, pad=8)
    axes.set_ylim(max(1, len(report.arms)) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    ends = [getattr(arm, field) + (_spread(arm, field) or 0.0) for arm in report.arms if _has(arm, field)]
    # Texts stand right of the longest bar.
    axes.set_xlim(0, 2.45 * (max(ends, default=0.0) or 1.0))
    for row, arm in enumerate(report.arms):
        _bar(axes, report, row, arm, metric, field)


def _bar(axes: Axes, report: Report, row: int, arm: Arm, metric: Metric, field: str) -> None:
    most = axes.get_xlim()[1]
    value = getattr(arm, field)
    if not _has(arm, field):
        axes.barh(row, 0.42 * most, height=0.5, color="white", edgecolor="#c4ccd4", hatch="///", linewidth=1)
        _write(axes, 0.45 * most, row, wording.outcome(arm), 15, va="center", color=ALARM)
        return
    won = report.winner is not None and arm.name == report.winner.arm
    samples = [getattr(one, field) for one in wording.measurements(arm)]
    spread = _spread(arm, field)
    axes.barh(row, value, height=0.5, color=WON if won else PLAIN)
    if spread is not None:
        axes.errorbar(value, row, xerr=spread, fmt="none", ecolor=INK, elinewidth=2, capsize=6)
    x = value + (spread or 0.0) + 0.025 * most
    change = wording.versus(arm).get(metric)
    base = wording.best_baseline(report)
    below = "best baseline" if arm.name == base else _short(change) if change else ""
    shown = wording.with_spread(value, samples)
    _write(
        axes, x, row - (0.03 if below else 0), shown, 17, va="bottom" if below else "center", weight="bold"
    )
    if below:
        color = {"faster": WON, "slower": ALARM}.get(change.verdict, SOFT) if change else SOFT
        _write(axes, x, row + 0.03, below, 13.5, va="top", color=SOFT if arm.name == base else color)


def _has(arm: Arm, field: str) -> bool:
    return arm.outcome == "measurement" and getattr(arm, field) is not None


def _spread(arm: Arm, field: str) -> float | None:
    samples = [getattr(one, field) for one in wording.measurements(arm)]
    return statistics.stdev(samples) if len(samples) > 1 else None


def _short(change: Change) -> str:
    """Return a change in words that fit beside a bar: without an interval that says nothing."""
    if change.low is None or change.high is None:
        return verdicts.change(change)
    wide = max(change.high - change.ratio, change.ratio - change.low) > WIDEST
    return str(change.verdict) if wide else verdicts.change(change)


def _wrapped(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), width, max_lines=lines, placeholder=" …"))
