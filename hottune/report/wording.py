"""Numbers and sentences that the terminal and the Markdown say in the same words."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.report.schema import Arm, ArmName, Change, Metric, Report
from hottune.report.verdicts import NOTHING as NOTHING
from hottune.report.verdicts import change

OUTCOME_WORDS = {
    "measurement": "measured",
    "out_of_memory": "out of memory",
    "timed_out": "timed out",
    "crashed": "crashed",
    "garbage": "garbage",
    "not_engaged": "not engaged",
    "rejected": "rejected",
    "not_confirmed": "not confirmed",
}
VIRTUAL_GPU = (
    "Virtual GPU: the machine's CPU stands in for a GPU here, so these numbers show that the tool works, "
    "not that anything got faster."
)
METRIC_WORDS: dict[Metric, str] = {"decode": "decode", "prefill": "prefill", "turn": "whole turn"}


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number with about three significant digits: `4,582`, `547`, `58.9`, `1.43`."""
    if value is None:
        return NOTHING
    return f"{value:,.{_decimals(value) if decimals is None else decimals}f}"


def _decimals(value: float) -> int:
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2


def with_spread(mean: float | None, samples: list[float]) -> str:
    """Return `58.9 ± 2.1`: the mean and the standard deviation of the replicates (none below two)."""
    if mean is None or len(samples) < 2:
        return number(mean)
    return f"{number(mean)} ± {number(statistics.stdev(samples), _decimals(mean))}"


def measurements(arm: Arm) -> list[Measurement]:
    """Return the arm's replicates that are measurements."""
    return [item.outcome for item in arm.replicates if isinstance(item.outcome, Measurement)]


def speed(arm: Arm, field: str) -> str:
    """Return one of the arm's means with its spread; nothing when the arm is no measurement."""
    if arm.outcome != "measurement":
        return NOTHING
    mean: float | None = getattr(arm, field)
    return with_spread(mean, [getattr(item, field) for item in measurements(arm)])


def share(value: float | None) -> str:
    """Return a share of 0 to 1 in percent: `51.2%`."""
    return NOTHING if value is None else f"{value * 100:.1f}%"


def vram(arm: Arm) -> str:
    """Return the arm's peak VRAM; `~` marks a value that is the whole device's change."""
    if arm.outcome != "measurement" or arm.vram_peak_mib is None:
        return NOTHING
    return ("~" if arm.vram_source == "device-change" else "") + f"{arm.vram_peak_mib:,.0f}"


def outcome(arm: Arm) -> str:
    """Return how the arm ended: `3 runs`, `2 of 3 runs`, or the name of what went wrong."""
    if arm.outcome != "measurement":
        return OUTCOME_WORDS.get(arm.outcome, arm.outcome.replace("_", " "))
    good, all_runs = len(measurements(arm)), len(arm.replicates)
    if not all_runs:
        return "measured"
    return f"{good} run{'s' * (good != 1)}" if good == all_runs else f"{good} of {all_runs} runs"


def failures(report: Report) -> list[str]:
    """Return one line for every arm that is no measurement, and why; and for every replicate that failed."""
    lines = []
    for arm in report.arms:
        if arm.outcome != "measurement":
            said = arm.detail if arm.outcome == "not_confirmed" else f"{outcome(arm)}. {arm.detail}"
            lines.append(" ".join(f"{arm.name}: {said}".split()))
            continue
        for kind, count in Counter(item.outcome.kind for item in arm.replicates).items():
            if kind != "measurement":
                lines.append(
                    f"{arm.name}: {count} of {len(arm.replicates)} runs ended as {OUTCOME_WORDS[kind]}"
                )
    return lines


@dataclass(frozen=True)
class Comparison:
    """One arm against one baseline; a change above 1 means that the arm is faster."""

    arm: ArmName
    base: ArmName
    changes: dict[Metric, Change]


def changes_of(rows: Iterable[Comparison]) -> list[Change]:
    """Return all changes of some comparisons, in their order."""
    return [item for row in rows for item in row.changes.values()]


def versus(arm: Arm) -> dict[Metric, Change]:
    """Return the arm's changes against the best baseline."""
    found = {"decode": arm.versus_decode, "prefill": arm.versus_prefill, "turn": arm.versus_turn}
    return {metric: item for metric in METRIC_WORDS if (item := found[metric]) is not None}


def comparisons(report: Report) -> list[Comparison]:
    """Return what to compare: the leading candidate with every baseline, others with the best baseline."""
    rows = []
    first = leader(report)
    for arm in report.arms:
        if arm.outcome != "measurement":
            continue
        against = dict(arm.ratios) if arm.name == first else {}
        if arm.versus_arm and arm.versus_arm != arm.name:
            # The best baseline comes first: it is the comparison that decides.
            against = {arm.versus_arm: against.get(arm.versus_arm) or versus(arm)} | against
        rows += [Comparison(arm.name, base, changes) for base, changes in against.items() if changes]
    return rows


def leader(report: Report) -> ArmName:
    """Return the candidate that the report is about: the recommended one, else the search's best."""
    arm = winner_arm(report)
    return arm.name if arm and arm.name in ("hot-2", "hot-3") else "hot"


def best_baseline(report: Report) -> ArmName | None:
    """Return the baseline that the arms are compared with."""
    return next((arm.versus_arm for arm in report.arms if arm.versus_arm), None)


def metric(report: Report) -> Metric:
    """Return which change decides what is recommended; of a Pareto front, the turn does."""
    said = report.objective.partition(" (")[0]
    return {"decode_tok_s": "decode", "prefill_tok_s": "prefill"}.get(said, "turn")  # type: ignore[return-value]


def winner_arm(report: Report) -> Arm | None:
    """Return the arm that the report recommends."""
    return next((arm for arm in report.arms if report.winner and arm.name == report.winner.arm), None)


@dataclass(frozen=True)
class Answer:
    """What to use, why, and the changes against the best baseline ("" when it is that baseline)."""

    what: str
    why: str
    against: str = ""
    #: What other engines were beside it; "" without any.
    engines: str = ""


def answer(report: Report) -> Answer:
    """Return what the report comes down to."""
    arm = winner_arm(report)
    if report.winner is None or arm is None:
        if any(item.cell for item in report.arms):
            return Answer(
                "A benchmark", "Each row has a ceiling of its own; the table beside the file says which."
            )
        if note := next((one for one in report.warnings if one.code == "unfinished"), None):
            return Answer("Not finished", note.text.strip().rstrip(".") + ".")
        return Answer("No recommendation", "No arrangement could be measured; the outcomes below say why.")
    changes = "; ".join(f"{METRIC_WORDS[metric]} {change(item)}" for metric, item in versus(arm).items())
    against = f"Against {arm.versus_arm}: {changes}." if changes and arm.versus_arm != arm.name else ""
    # Result files say '1.71x as fast'; what people read has one sign for it.
    why = re.sub(r"(?<=\d)x(?= as fast)", "×", report.winner.reason.strip().rstrip(".")) + "."
    what = f"Use this: {arm.name} ({named(report, arm.placement)})"
    return Answer(what, why, against, " ".join(engine_lines(report)))


def engine_lines(report: Report) -> list[str]:
    """Return a sentence for each other engine, against the recommended arm; those that were faster first."""
    if report.winner is None:
        return []
    faster, lines = set(report.winner.faster_engines), []
    for arm in sorted(report.arms, key=lambda one: one.name not in faster):
        if not arm.placement.engine:
            continue
        if arm.outcome != "measurement":
            lines.append(f"{arm.name} is another engine and was not measured: {outcome(arm)}.")
            continue
        found = {metric: item for metric in METRIC_WORDS if (item := arm.versus_winner.get(metric))}
        said = "; ".join(f"{METRIC_WORDS[metric]} {change(item)}" for metric, item in found.items())
        if arm.name in faster:
            lines.append(f"{arm.name}, another engine, is faster here: against {report.winner.arm} {said}.")
        else:
            lines.append(f"{arm.name}, another engine, against {report.winner.arm}: {said}.")
    return lines


def objective_axis(report: Report) -> tuple[str, str]:
    """Return the field of a measurement that the search went by, and its name with the unit.

    Of several (a Pareto front), the first.
    """
    speeds = (("decode_tok_s", "decode tok/s"), ("prefill_tok_s", "prefill tok/s"))
    return next((item for item in speeds if report.objective.startswith(item[0])), ("turn_s", "turn, s"))


def named(report: Report, placement: Placement) -> str:
    """Return a placement's name, with its threads where the report's placements differ in them."""
    differ = len({trial.placement.threads for trial in report.trials}) > 1
    return placement.label() + (f" t {placement.threads}" if differ else "")


def legend(report: Report) -> str:
    """Return what the names of this report's placements mean; "" where there are none to explain."""
    placements = [arm.placement for arm in report.arms]
    parts = []
    if any(not one.fit for one in placements):
        parts.append("ncmoe N: the experts of N layers in RAM")
    if any(one.hot_k for one in placements):
        interval = any("/" in one.label() for one in placements)
        parts.append(
            f"hot K{'/T' * interval}: K experts of each of them cached in VRAM"
            + ", chosen anew every T tokens" * interval
        )
    if not parts:
        return ""
    threads = any(f" t {one.threads}" in named(report, one) for one in placements)
    return "; ".join([*parts, "ub: micro-batch", *["t: CPU threads"] * threads]) + "."


def footnotes(report: Report) -> list[str]:
    """Return what explains the table of arms in long formats, beside what its changes are."""
    notes = [text] if (text := legend(report)) else []
    if any(arm.kld_to_all_cpu is not None for arm in report.arms):
        notes.append(
            "KLD is the KL divergence of the next-token distribution from all-cpu's, a lower bound from the "
            "most probable tokens."
        )
    if any(arm.vram_source == "device-change" for arm in report.arms):
        notes.append("~ marks the change of the whole device, where the process's own use is hidden.")
    return notes


def is_virtual(report: Report) -> bool:
    """Tell whether any number here comes from the virtual GPU."""
    return any(arm.vram_source == "virtual" for arm in report.arms) or any(
        note.code == "virtual-gpu" for note in report.warnings
    )


def warnings(report: Report) -> list[str]:
    """Return the text of each warning; what stands at the top (virtual GPU, not finished) is left out."""
    return [note.text for note in report.warnings if note.code not in ("virtual-gpu", "unfinished")]
