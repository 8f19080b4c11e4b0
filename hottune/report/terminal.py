"""The report for people at a terminal: the answer first, then what it rests on."""

from __future__ import annotations

import os
import shutil
import sys
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hottune.report import beside, setup, timeline, verdicts, wording
from hottune.report.schema import Arm, Change, Report
from hottune.report.searched import search_lines

NARROWEST, WIDEST, UNKNOWN_WIDTH = 80, 160, 100
VERDICT_STYLE = {"faster": "green", "slower": "red", "can't tell": "yellow"}


class TerminalRenderer:
    """Renders with Rich, 80 to 160 columns wide."""

    def __init__(self, width: int | None = None, color: bool | None = None) -> None:
        if width is None:
            width = shutil.get_terminal_size((UNKNOWN_WIDTH, 24)).columns
        self.width = min(max(width, NARROWEST), WIDEST)
        # no-color.org: any value but the empty one turns colours off.
        self.color = (sys.stdout.isatty() and not os.environ.get("NO_COLOR")) if color is None else color

    def render(self, report: Report) -> str:
        """Return the report as text, with colour codes only when colours are on."""
        out = StringIO()
        console = Console(
            file=out,
            width=self.width,
            force_terminal=self.color,
            color_system="standard" if self.color else None,
            no_color=not self.color,
            highlight=False,
            emoji=False,
            markup=False,
        )
        console.print(report_view(report))
        if report.winner:
            console.print(Text("\nServe it", style="bold"))
            # One line, however long: a command must survive being copied.
            console.print(Text(report.winner.command, style="cyan"), soft_wrap=True)
        # Rich pads lines to the width; a copied table should not carry that.
        return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def report_view(report: Report) -> RenderableType:
    """Return the whole report as one Rich renderable."""
    parts: list[RenderableType | None] = []
    if wording.is_virtual(report):
        parts.append(Text(wording.VIRTUAL_GPU, style="bold yellow"))
    parts += [_answer(report), _arms(report), _lines("", wording.failures(report), "red")]
    parts += [_comparisons(report)]
    parts += [_lines(beside.QUALITY, beside.quality(report)), _lines(beside.COLD, beside.cold_start(report))]
    parts += [_lines(beside.ROOFLINE, beside.roofline(report))]
    parts += [_lines("Search", search_lines(report))]
    parts += [_lines("Proof that it was on", setup.proof(report))]
    parts += [_lines("Hit rate over time", timeline.hit_lines(report))]
    parts += [_lines("Warnings", wording.warnings(report), "yellow"), _setup(report)]
    return Group(*(part for part in parts if part is not None))


def _answer(report: Report) -> RenderableType:
    found = wording.answer(report)
    style = "green" if report.winner else "red"
    lines = [Text(found.what, style=f"bold {style}"), Text(found.why)]
    if found.against:
        lines.append(Text(found.against))
    if found.engines:
        faster = bool(report.winner and report.winner.faster_engines)
        lines.append(Text(found.engines, style="bold yellow" if faster else ""))
    return Panel(Group(*lines), border_style=style, padding=(0, 1))


def _arms(report: Report) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("arm")
    for head in (
        "prefill\ntok/s",
        "decode\ntok/s",
        "TTFT\nms",
        "turn\ns",
        "KLD\nnats",
        "VRAM\nMiB",
        "hits\n",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for arm in report.arms:
        won = report.winner is not None and arm.name == report.winner.arm
        table.add_row(
            _name(report, arm, won),
            wording.speed(arm, "prefill_tok_s"),
            wording.speed(arm, "decode_tok_s"),
            wording.number(arm.ttft_ms, 0) if arm.outcome == "measurement" else wording.NOTHING,
            wording.number(arm.turn_s) if arm.outcome == "measurement" else wording.NOTHING,
            beside.kld(arm),
            wording.vram(arm),
            wording.share(arm.hit_rate) if arm.outcome == "measurement" else wording.NOTHING,
            style="bold" if won else "",
        )
    notes = [f"All under the same VRAM ceiling of {report.ceiling_mib:,.0f} MiB."]
    if any(len(wording.measurements(arm)) > 1 for arm in report.arms):
        notes.append("± is the standard deviation over fresh servers.")
    if any(arm.kld_to_all_cpu is not None for arm in report.arms):
        notes.append("KLD: least divergence from all-cpu's next tokens.")
    if any(arm.vram_source == "device-change" for arm in report.arms):
        notes.append("~ marks the change of the whole device: the process's own use is hidden here.")
    notes += [text] if (text := wording.legend(report)) else []
    return Padding(Group(table, Text(" ".join(notes), style="dim")), (1, 0, 0, 0))


def _name(report: Report, arm: Arm, won: bool) -> RenderableType:
    text = Text(("→ " if won else "  ") + arm.name)
    text.append(f", {wording.outcome(arm)}", style="" if arm.outcome == "measurement" else "red")
    placement = Text(wording.named(report, arm.placement), style="not bold dim")
    return Group(text, Padding(placement, (0, 0, 0, 2)))  # indented also where it wraps


def _comparisons(report: Report) -> RenderableType | None:
    rows = wording.comparisons(report)
    if not rows:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("speed against", no_wrap=True)
    for head in wording.METRIC_WORDS.values():
        table.add_column(head)
    for row in rows:
        cells = [_change(row.changes.get(metric)) for metric in wording.METRIC_WORDS]
        table.add_row(f"  {row.arm} / {row.base}", *cells)
    made = verdicts.methods(wording.changes_of(rows))
    note = Text(f"Best baseline: {wording.best_baseline(report)}. Intervals: {made}.", style="dim")
    return Padding(Group(table, note), (1, 0, 0, 0))


def _change(value: Change | None) -> Text:
    return Text(verdicts.change(value), style=VERDICT_STYLE[value.verdict] if value else "")


def _lines(title: str, lines: list[str], style: str = "") -> RenderableType | None:
    if not lines:
        return None
    body = [Padding(Text(line, style=style), (0, 0, 0, 2)) for line in lines]
    return Padding(Group(*([Text(title, style="bold")] if title else []), *body), (1, 0, 0, 0))


def _setup(report: Report) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 2), pad_edge=True, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for label, value in setup.setup(report):
        table.add_row(label, value)
    return Padding(Group(Text("Setup", style="bold"), table), (1, 0, 0, 0))
