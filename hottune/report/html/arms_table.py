"""The table of arms, and that of the leading candidate against every baseline."""

from __future__ import annotations

from hottune.report import beside, verdicts, wording
from hottune.report.html.markup import Cell, esc, table
from hottune.report.schema import Arm, Change, Report

_HEAD = ("arm", "placement", "outcome", "prefill tok/s", "decode tok/s", "TTFT ms", "turn s", "KLD nats")
_REST = ("same top token", "VRAM peak MiB", "hit rate")


def arms_table(report: Report) -> str:
    """Return every arm with its speeds and its changes, with intervals, against the best baseline."""
    base = wording.best_baseline(report)
    head = [*_HEAD, *_REST]
    head += [f"{word} vs {base}" for word in wording.METRIC_WORDS.values()] if base else []
    rows = [_row(report, arm) + (_changes(arm, base) if base else []) for arm in report.arms]
    won = [place for place, arm in enumerate(report.arms) if report.winner and arm.name == report.winner.arm]
    body = table(_caption(report), head, rows, right_from=3, marked=won[0] if won else None)
    return f'<div class="arms">{body}</div>\n<p class="note">{esc(_note(report))}</p>'


def _row(report: Report, arm: Arm) -> list[Cell]:
    measured = arm.outcome == "measurement"
    won = report.winner is not None and arm.name == report.winner.arm

    def number(text: str, value: float | None) -> Cell:
        return Cell(text, value if measured else None)

    return [
        Cell(f"→ {arm.name}" if won else arm.name),
        Cell(wording.named(report, arm.placement)),
        Cell(wording.outcome(arm)),
        number(wording.speed(arm, "prefill_tok_s"), arm.prefill_tok_s),
        number(wording.speed(arm, "decode_tok_s"), arm.decode_tok_s),
        number(wording.number(arm.ttft_ms if measured else None, 0), arm.ttft_ms),
        number(wording.speed(arm, "turn_s"), arm.turn_s),
        number(beside.kld(arm), arm.kld_to_all_cpu),
        number(wording.share(arm.same_top_token if measured else None), arm.same_top_token),
        number(wording.vram(arm), arm.vram_peak_mib),
        number(wording.share(arm.hit_rate if measured else None), arm.hit_rate),
    ]


def _changes(arm: Arm, base: str) -> list[Cell]:
    changes = wording.versus(arm) if arm.outcome == "measurement" and arm.name != base else {}
    blank = Cell("baseline" if arm.name == base else wording.NOTHING)
    return [_change(item) if (item := changes.get(name)) else blank for name in wording.METRIC_WORDS]


def _change(item: Change) -> Cell:
    return Cell(f"{verdicts.interval(item)}, {item.verdict}", item.ratio)


def _caption(report: Report) -> str:
    if any(arm.cell for arm in report.arms):
        return "Arms, each under a ceiling of its own"
    return f"Arms, all under the same VRAM ceiling of {report.ceiling_mib:,.0f} MiB"


def _note(report: Report) -> str:
    notes = ["→ is the recommendation."] if report.winner else []
    if any(len(wording.measurements(arm)) > 1 for arm in report.arms):
        notes.append("± after a speed is the standard deviation over fresh servers.")
    if methods := verdicts.methods(wording.changes_of(wording.comparisons(report))):
        notes.append(f"Changes stand with their interval ({methods}); above 1 is faster.")
    notes += wording.footnotes(report)
    return " ".join(notes)


def comparisons_table(report: Report) -> str:
    """Return the leading candidate against every baseline; "" when there is but one."""
    first = wording.leader(report)
    found = [row for row in wording.comparisons(report) if row.arm == first]
    if len(found) < 2:
        return ""
    rows = [
        [
            Cell(row.base),
            *(
                _change(item) if (item := row.changes.get(metric)) else Cell(wording.NOTHING)
                for metric in wording.METRIC_WORDS
            ),
        ]
        for row in found
    ]
    engines = " and engine" * bool(report.other_engines)
    return table(
        f"{first} against every baseline{engines}",
        ["arm" if engines else "baseline", *wording.METRIC_WORDS.values()],
        rows,
    )
