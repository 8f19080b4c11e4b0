"""What reports say of the search: what it tried, what it took, and how it held up when measured again."""

from __future__ import annotations

from collections import Counter

from hottune.outcomes import Measurement
from hottune.report.schema import Report
from hottune.report.verdicts import signed
from hottune.report.wording import OUTCOME_WORDS, named, number
from hottune.units import format_seconds


def search_summary(report: Report) -> str:
    """Return how many placements were tried, how often in all, and what the trials ended as."""
    if not report.trials:
        return "no placement was tried"
    counts = Counter(trial.outcome.kind for trial in report.trials)
    parts = ", ".join(f"{count} {OUTCOME_WORDS[kind]}" for kind, count in counts.most_common())
    n_placements, n_trials = len({trial.placement for trial in report.trials}), len(report.trials)
    often = "" if n_trials == n_placements else f" in {n_trials} trials"
    return f"{n_placements} placements tried{often}: {parts}"


def search_lines(report: Report) -> list[str]:
    """Return what the search tried, and how it held up when it was measured again."""
    return [search_summary(report), *accounted(report), *confirmation(report), *remeasured(report)]


def accounted(report: Report) -> list[str]:
    """Return what the search took and how right the memory model was; nothing in older reports."""
    found = report.account
    if found is None:
        return []
    reused = f" ({found.reused} in the server of the trial before)" if found.reused else ""
    lines = [
        f"{found.servers} servers for {len(report.trials)} trials{reused}, {format_seconds(found.seconds)}"
    ]
    if found.vram_error is not None:
        lines.append(
            f"after the first three placements, predicted peak VRAM was within {found.vram_error:.1%} of the "
            f"measured one ({found.vram_judged} checked)"
        )
    if found.front:
        numbers = {trial.number: trial for trial in report.trials}
        lines.append(f"Pareto front of prefill and decode speed, {len(found.front)} placements:")
        for number_of_trial in found.front:
            trial = numbers[number_of_trial]
            if isinstance(trial.outcome, Measurement):
                lines.append(
                    f"  {named(report, trial.placement)}: prefill {number(trial.outcome.prefill_tok_s)}, "
                    f"decode {number(trial.outcome.decode_tok_s)} tok/s"
                )
    return lines


def confirmation(report: Report) -> list[str]:
    """Return how often everything was measured again, and why it ended there; nothing in older reports."""
    found = report.confirmation
    if found is None:
        return []
    why = {
        "fixed": "as asked for",
        "precise": "then every interval that decides was within ±3%",
        "most": "the most without --replicates; not every interval that decides was within ±3% by then",
        "time": "then the time budget ended",
        "interrupted": "then it was interrupted",
    }[found.ended]
    rounds = f"{found.rounds} round{'s' * (found.rounds != 1)}"
    return [f"measured again in {rounds} of fresh servers: {why}; intervals at {found.level * 100:.3g}%"]


def remeasured(report: Report) -> list[str]:
    """Return how the search's own numbers held up in fresh servers: `search 603 → re-measured 547`."""
    lines = []
    for arm in report.arms:
        if arm.outcome != "measurement":
            continue
        parts = []
        if arm.search_decode_tok_s and arm.decode_tok_s:
            parts.append(f"decode tok/s, {_moved(arm.search_decode_tok_s, arm.decode_tok_s)}")
        if arm.search_turn_s and arm.turn_s:
            parts.append(f"turn s, {_moved(arm.search_turn_s, arm.turn_s)}")
        if parts:
            lines.append(f"{arm.name}: {'; '.join(parts)}")
    return lines


def _moved(before: float, after: float) -> str:
    percent = (after / before - 1) * 100
    return f"search {number(before)} → re-measured {number(after)} ({signed(percent, 1)})"
