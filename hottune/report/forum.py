"""The report as Markdown for a forum: one screen, the table first, the set-up, commands to paste."""

from __future__ import annotations

import re

from hottune.report import beside, verdicts, wording
from hottune.report.markdown import bullets, escape, fenced, result_line, table
from hottune.report.repeat import repeat
from hottune.report.schema import Arm, Report
from hottune.report.setup import short_setup

#: Most arms, and most notes below them, that one screen takes.
MOST_ROWS, MOST_NOTES = 8, 5
#: Parts of the set-up that stand in the line of what comes before them: one screen is all there is.
_BESIDE = ("RAM", "Quant", "ubatch")
#: Longest note, characters.
LONGEST = 200


class ForumRenderer:
    """Renders Markdown that Reddit and GitHub show alike: no column that a post has no room for."""

    def __init__(self, link: str = "") -> None:
        self._link = link

    def render(self, report: Report) -> str:
        """Return the report as short Markdown; `MarkdownRenderer` has the rest."""
        found = wording.answer(report)
        lines: list[str] = []
        for label, value in short_setup(report):
            line = f"**{label}:** {escape(value)}"
            if label in _BESIDE and lines:
                lines[-1] += f"; {line}"
            else:
                lines.append(line)
        blocks = [f"> **{escape(wording.VIRTUAL_GPU)}**"] if wording.is_virtual(report) else []
        blocks += [
            f"**{escape(found.what)}.** {escape(' '.join((found.why, found.against, found.engines)))}",
            _arms(report),
            bullets(_notes(report)),
            f"**Setup**\n\n{bullets(lines)}",
        ]
        if again := repeat(report):
            blocks.append(f"Repeat it, in a fresh clone of hottune:\n\n{fenced(again)}")
        if report.winner:
            serve = [f"# {report.winner.arm}, or: hottune serve {report.study}", report.winner.command]
            blocks.append(f"Serve it:\n\n{fenced(serve)}")
        blocks.append(result_line(report, self._link))
        return "\n\n".join(block for block in blocks if block) + "\n"


def _arms(report: Report) -> str:
    base, metric = wording.best_baseline(report), wording.metric(report)
    head = ["arm", "placement", "prefill tok/s", "decode tok/s", "turn s", "VRAM MiB", "hits"]
    head += [f"{wording.METRIC_WORDS[metric]} vs {base}"] if base else []
    rows = []
    for arm in _shown(report):
        measured = arm.outcome == "measurement"
        won = report.winner is not None and arm.name == report.winner.arm
        row = [
            f"→ {arm.name}" if won else arm.name,
            wording.named(report, arm.placement) if measured else wording.outcome(arm),
            wording.speed(arm, "prefill_tok_s"),
            wording.speed(arm, "decode_tok_s"),
            wording.speed(arm, "turn_s"),
            wording.vram(arm),
            wording.share(arm.hit_rate if measured else None),
        ]
        if base:
            change = wording.versus(arm).get(metric) if measured and arm.name != base else None
            row.append("baseline" if arm.name == base else verdicts.change(change))
        rows.append(row)
    return table(head, rows, right_from=2)


def _shown(report: Report) -> list[Arm]:
    return report.arms[:MOST_ROWS]


def _notes(report: Report) -> list[str]:
    """Return what must be known to read the table, and the first sentence of what weakens it."""
    first = f"All under one VRAM ceiling of {report.ceiling_mib:,.0f} MiB."
    if any(arm.cell for arm in report.arms):
        first = "Each row has a ceiling of its own."
    if any(len(wording.measurements(arm)) > 1 for arm in report.arms):
        first += " ± after a speed: standard deviation over fresh servers; after a change: half its interval."
    notes = [*wording.failures(report), *wording.warnings(report)]
    if worst := max((arm.kld_to_all_cpu or 0.0 for arm in report.arms), default=0.0):
        notes.append(f"KL divergence from all-cpu's next tokens: at most {_kld(worst)} nats a position.")
    more = len(notes) - MOST_NOTES
    hidden = len(report.arms) - len(_shown(report))
    legend = [text] if (text := wording.legend(report)) else []
    shown = [first, *legend, *(_first_sentence(one) for one in notes[:MOST_NOTES])]
    shown += [f"{more} more note{'s' * (more > 1)} in the result file."] * (more > 0)
    shown += [f"{hidden} more row{'s' * (hidden > 1)} in the result file."] * (hidden > 0)
    return [escape(one) for one in shown]


def _kld(value: float) -> str:
    return f"{value:.4f}" if value >= beside.LEAST_KLD else f"{beside.LEAST_KLD:.4f}"


def _first_sentence(text: str) -> str:
    """Return a text to the end of its first sentence that says something, cut where it is too long."""
    found = re.match(r".{25,}?[.:;](?= [A-Z]|$)", " ".join(text.split()))
    said = found[0] if found else " ".join(text.split())
    return said if len(said) <= LONGEST else f"{said[:LONGEST].rstrip()}…"
