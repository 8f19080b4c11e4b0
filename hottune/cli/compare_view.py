"""A comparison for people: warnings, who is who, what differs, and each arm against the first."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.report.beside import LEAST_KLD
from hottune.report.schema import METRICS
from hottune.report.terminal import NARROWEST, UNKNOWN_WIDTH, VERDICT_STYLE, WIDEST
from hottune.report.verdicts import NOTHING, interval, methods
from hottune.report.wording import number, share
from hottune.tasks.comparison import FACTS, AgainstFirst, ComparedArm, Comparison, Fact
from hottune.tasks.gate import Judged

_UNITS = {"decode": "decode tok/s", "prefill": "prefill tok/s", "turn": "whole turn s"}
_FIELDS = {"decode": "decode_tok_s", "prefill": "prefill_tok_s", "turn": "turn_s"}
_FACT_WORDS: dict[Fact, str] = {
    "kld_to_all_cpu": "KLD to all-cpu, nats",
    "vram_peak_mib": "peak VRAM MiB",
    "hit_rate": "cache hits",
}


def text(found: Comparison, judged: Sequence[Judged] = (), *, width: int | None = None) -> str:
    """Return a comparison as text, 80 to 160 columns wide; in colours on a terminal."""
    if width is None:
        width = shutil.get_terminal_size((UNKNOWN_WIDTH, 24)).columns
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    out = StringIO()
    console = Console(
        file=out,
        width=min(max(width, NARROWEST), WIDEST),
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        emoji=False,
        markup=False,
    )
    loud = [note for note in found.warnings if note.code != "unpaired"]
    for note in loud:
        console.print(Text.assemble(("Warning: ", "bold yellow"), note.text))
    if loud:
        console.print()
    console.print(_who(found))
    console.print()
    console.print(_settings(found))
    for row in found.against_first:
        console.print()
        console.print(_against(found, row))
    console.print(Text(_how(found), style="dim"))
    for line in judged:
        word, style = ("FAILED", "bold red") if line.failed else ("passed", "green")
        console.print(Text.assemble((f"{word} ", style), line.why))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(*, header: bool = True) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_header=header)


def _who(found: Comparison) -> Table:
    table = _table(header=False)
    for arm in found.arms:
        word = "run" + "s" * (arm.replicates != 1)
        if arm.timed == "client":
            word = "pass" + "es" * (arm.replicates != 1)
        runs = f"{arm.replicates} {word}"
        table.add_row(Text(arm.letter, style="bold"), arm.name, Text(arm.placement, style="dim"), runs)
    return table


def _settings(found: Comparison) -> Table | Text:
    if not found.differences:
        return Text("No setting differs.")
    table = _table()
    table.add_column("differs", no_wrap=True)
    for arm in found.arms:
        table.add_column(arm.letter, overflow="fold")
    for row in found.differences:
        table.add_row(row.setting, *row.values)
    return table


def _against(found: Comparison, row: AgainstFirst) -> Table:
    first, other = found.arms[0], next(arm for arm in found.arms if arm.letter == row.letter)
    table = _table()
    pair = f"{other.letter} / {first.letter}"
    table.add_column(pair, no_wrap=True)
    table.add_column(first.letter, justify="right", no_wrap=True)
    table.add_column(other.letter, justify="right", no_wrap=True)
    table.add_column("speed ratio", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for metric in METRICS:
        change = row.changes.get(metric)
        values = [number(getattr(arm, _FIELDS[metric])) for arm in (first, other)]
        verdict = Text(change.verdict, style=VERDICT_STYLE[change.verdict]) if change else Text(NOTHING)
        table.add_row(_UNITS[metric], *values, interval(change) if change else NOTHING, verdict)
    for fact in FACTS:
        values = [_fact(arm, fact) for arm in (first, other)]
        if NOTHING not in values:
            table.add_row(_FACT_WORDS[fact], *values, "", "")
    return table


def _fact(arm: ComparedArm, fact: Fact) -> str:
    value = getattr(arm, fact)
    if value is None:
        return NOTHING
    if fact == "hit_rate":
        return share(value)
    if fact == "vram_peak_mib":
        return number(value, 0)
    if 0 < value < LEAST_KLD:
        return f"< {LEAST_KLD:.4f}"
    return f"{value:.4f}" if value else "0"


def _how(found: Comparison) -> str:
    made = methods(change for row in found.against_first for change in row.changes.values())
    lines = [f"Above 1 is faster, the turn as speed. Intervals: {made}."]
    if "Holm" in made:
        lines.append("Holm's verdicts allow for several comparisons; each interval is for its own alone.")
    lines += [note.text for note in found.warnings if note.code == "unpaired"]
    return " ".join(lines)
