"""The long report as Markdown: every number that a reader may ask for. The short one is `forum`."""

from __future__ import annotations

import re

from hottune.engine.argv import shell_command
from hottune.report import beside, setup, timeline, verdicts, wording
from hottune.report.names import file_stem
from hottune.report.repeat import repeat
from hottune.report.schema import Report
from hottune.report.searched import search_lines

# An underscore inside a word (Q4_K_M) never starts emphasis, so it stays readable in the source.
_SPECIAL = re.compile(r"[\\`*<>|~&\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_COLUMNS = ("arm", "placement", "outcome", "prefill tok/s", "decode tok/s", "TTFT ms", "turn s")


class MarkdownRenderer:
    """Renders GitHub-flavoured Markdown that Reddit shows as well (tables, lists, fenced code)."""

    def __init__(self, link: str = "") -> None:
        self._link = link

    def render(self, report: Report) -> str:
        """Return the report as Markdown."""
        found = wording.answer(report)
        blocks = [f"> **{escape(wording.VIRTUAL_GPU)}**"] if wording.is_virtual(report) else []
        blocks += [
            f"**{escape(found.what)}.** {escape(f'{found.why} {found.against} {found.engines}')}",
            _arms(report),
            _notes(report),
        ]
        blocks += [bullets([escape(line) for line in wording.failures(report)])]
        blocks += [_comparisons(report)]
        blocks += [
            _titled("Setup", [f"**{label}:** {escape(value)}" for label, value in setup.setup(report)])
        ]
        blocks += [_titled("Search", [escape(line) for line in search_lines(report)])]
        for title, lines in (
            (beside.QUALITY, beside.quality(report)),
            (beside.COLD, beside.cold_start(report)),
            (beside.ROOFLINE, beside.roofline(report)),
        ):
            blocks += [_titled(title, [escape(line) for line in lines])]
        blocks += [_titled("Proof that it was on", [escape(line) for line in setup.proof(report)])]
        blocks += [_titled("Hit rate over time", [escape(line) for line in timeline.hit_lines(report)])]
        warnings = [escape(text) for text in wording.warnings(report)]
        blocks += [_titled("Warnings", warnings)]
        blocks += [_commands(report), result_line(report, self._link)]
        return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """Return plain text as Markdown that shows exactly that text, on one line, also inside a table."""
    return _SPECIAL.sub(lambda match: "\\" + match[0], " ".join(text.split()))


def table(head: list[str], rows: list[list[str]], right_from: int) -> str:
    """Return a table; columns from `right_from` on are aligned right. Every row has the head's length."""
    rule = ["---" if column < right_from else "---:" for column in range(len(head))]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in ([escape(cell) for cell in head], rule, *_escaped(rows))
    )


def _escaped(rows: list[list[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in row] for row in rows]


def bullets(lines: list[str]) -> str:
    """Return lines, already Markdown, as a list."""
    return "\n".join(f"- {line}" for line in lines)


def _titled(title: str, lines: list[str]) -> str:
    return f"**{title}**\n\n{bullets(lines)}" if lines else ""


def _arms(report: Report) -> str:
    base = wording.best_baseline(report)
    head = [*_COLUMNS, "KLD nats", "VRAM peak MiB", "hit rate"]
    head += [f"{word} vs {base}" for word in wording.METRIC_WORDS.values()] if base else []
    rows = []
    for arm in report.arms:
        measured = arm.outcome == "measurement"
        won = report.winner is not None and arm.name == report.winner.arm
        row = [
            f"→ {arm.name}" if won else arm.name,
            wording.named(report, arm.placement),
            wording.outcome(arm),
            wording.speed(arm, "prefill_tok_s"),
            wording.speed(arm, "decode_tok_s"),
            wording.number(arm.ttft_ms if measured else None, 0),
            wording.speed(arm, "turn_s"),
            beside.kld(arm),
            wording.vram(arm),
            wording.share(arm.hit_rate if measured else None),
        ]
        if base:
            changes = wording.versus(arm) if measured and arm.name != base else {}
            blank = "baseline" if arm.name == base else wording.NOTHING
            row += [
                verdicts.change(changes[metric]) if metric in changes else blank
                for metric in wording.METRIC_WORDS
            ]
        rows.append(row)
    return table(head, rows, right_from=3)


def _notes(report: Report) -> str:
    notes = [
        f"→ is the recommendation. Every arm had the same VRAM ceiling of {report.ceiling_mib:,.0f} MiB."
    ]
    if any(len(wording.measurements(arm)) > 1 for arm in report.arms):
        notes.append("± after a speed is the standard deviation over fresh servers.")
    methods = verdicts.methods(wording.changes_of(wording.comparisons(report)))
    if methods:
        notes.append(
            f"± after a change is the longer half of its interval, or both ends stand there ({methods})."
        )
    notes += wording.footnotes(report)
    return escape(" ".join(notes))


def _comparisons(report: Report) -> str:
    """Return the leading candidate against every baseline: a gap in prefill is shown as it is."""
    first = wording.leader(report)
    rows = [row for row in wording.comparisons(report) if row.arm == first]
    head = [f"{first} against", *wording.METRIC_WORDS.values()]
    cells = [
        [
            row.base,
            *(
                f"{verdicts.interval(item)}, {item.verdict}"
                if (item := row.changes.get(metric))
                else wording.NOTHING
                for metric in wording.METRIC_WORDS
            ),
        ]
        for row in rows
    ]
    return table(head, cells, right_from=1) if len(cells) > 1 else ""


def _commands(report: Report) -> str:
    lines = ["# this report", report.command, "", "# again, in a fresh clone of hottune", *repeat(report)]
    if report.winner:
        lines += ["", f"# serve the recommendation ({report.winner.arm})", report.winner.command]
    for arm in report.arms:
        lines += ["", f"# {arm.name}, as it was measured", shell_command(arm.argv, arm.env)]
    return f"**Commands**\n\n{fenced(lines)}"


def fenced(lines: list[str]) -> str:
    """Return lines as a block of shell commands that no backtick in them closes."""
    body = "\n".join(lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    return f"{fence}sh\n{body}\n{fence}"


def result_line(report: Report, link: str) -> str:
    """Return where the result file is: under a link, else its name."""
    name = f"{file_stem(report.study)}.json"
    where = f"[{escape(name)}]({link})" if link else escape(name)
    return f"Result file with every raw sample: {where}. Made with hottune {escape(report.hottune_version)}."
