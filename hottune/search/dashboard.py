"""What optuna-dashboard shows of a study: names, how each trial ended, and notes.

All of it is made of the journal's facts and read by nobody but people: a study without it is complete. Notes
are written as optuna-dashboard writes them (`dashboard:` system attributes of the study), so that they can be
edited there; one that is there is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hottune.outcomes import Crashed, Measurement, Outcome, OutOfMemory, TimedOut
from hottune.placement import Placement
from hottune.search.attributes import Shown, outcome_in
from hottune.search.objective import Limits
from hottune.search.storage import Storage

#: The most that optuna-dashboard keeps in one piece of a note.
NOTE_LENGTH = 2045
#: Longer lines of a log would make the page scroll sideways.
LOG_WIDTH = 110
#: Where Optuna keeps what `Study.set_metric_names` is given.
_METRIC_NAMES = "study:metric_names"
#: Where Optuna and the dashboard look for constraints; above 0 is infeasible.
_CONSTRAINTS = "constraints"


def name_metrics(storage: Storage, study_id: int, names: Sequence[str]) -> None:
    """Name what a study optimises, with units."""
    storage.set_study_system_attr(study_id, _METRIC_NAMES, list(names))


def save_note(storage: Storage, study_id: int, text: str, trial_id: int | None = None) -> None:
    """Attach Markdown to a study or to one of its trials, unless it has a note.

    Args:
        storage: of the study.
        study_id: the storage's number of the study.
        text: what follows `NOTE_LENGTH` characters is left out.
        trial_id: the storage's number of the trial; None = the study itself.
    """
    start = "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"
    if start + "note_ver" in storage.get_study_system_attrs(study_id):
        return
    storage.set_study_system_attr(study_id, start + "note_str:0", text[:NOTE_LENGTH])
    storage.set_study_system_attr(study_id, start + "note_ver", 1)


def shown(attributes: Mapping[str, Any], limits: Limits) -> Shown:
    """Return how a trial ended, for people: `result`, the numbers of a measurement, or a note why not.

    Args:
        attributes: the facts of a trial that is about to end.
        limits: what a placement must keep.
    """
    outcome = outcome_in(attributes)
    if not isinstance(outcome, Measurement):
        if outcome is None:
            return Shown({"result": _unmeasured(attributes)})
        user = {"result": f"{_kind(outcome)}: {outcome.detail}", **_numbers(attributes)}
        return Shown(user, note=failure_note(outcome))
    user = {
        **_numbers(attributes),
        "result": "measured" + " (same server as the trial before)" * outcome.reused_server,
        "turn_s": round(outcome.turn_s, 3),
        "decode_tok_s": round(outcome.decode_tok_s, 2),
        "prefill_tok_s": round(outcome.prefill_tok_s, 1),
        "ttft_ms": round(outcome.ttft_ms, 1),
        "vram_peak_mib": round(outcome.vram_peak_mib, 1),
    }
    if outcome.hit_rate is not None:
        user["hit_rate"] = round(outcome.hit_rate, 4)
    violations = limits.violations(outcome)
    return Shown(user, {_CONSTRAINTS: list(violations.values())} if violations else {})


def _numbers(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a placement in numbers that can be sorted and plotted; baselines have no parameters."""
    placement = Placement.model_validate_json(attributes["placement"])
    numbers = {"hot_k": placement.hot_k, "ubatch": placement.ubatch, "threads": placement.threads}
    # What llama.cpp's fit is asked for is not what it does.
    return numbers if placement.fit else {"n_cpu_moe": placement.n_cpu_moe, **numbers}


def failure_note(outcome: Outcome) -> str:
    """Return Markdown that says why a trial has no number, with the end of the server's log."""
    if isinstance(outcome, Measurement):
        return ""
    more = ""
    if isinstance(outcome, OutOfMemory | TimedOut):
        more = f" (stage: {outcome.stage.replace('_', ' ')})"
    elif isinstance(outcome, Crashed) and outcome.exit_code is not None:
        more = f" (exit status {outcome.exit_code})"
    head = f"**{_kind(outcome).capitalize()}**{more}: {outcome.detail}"
    lines = [line[:LOG_WIDTH] for line in outcome.log_tail]
    while lines:
        text = "\n".join([head, "", "The end of the server's log:", "", "```text", *lines, "```"])
        if len(text) <= NOTE_LENGTH:
            return text
        lines = lines[1:]
    return head[:NOTE_LENGTH]


def _kind(outcome: Outcome) -> str:
    return outcome.kind.replace("_", " ")


def _unmeasured(attributes: Mapping[str, Any]) -> str:
    reasons = {"budget": "the search had its trials already"}
    if "skip" in attributes:
        return f"not measured: {reasons.get(attributes['skip'], attributes['skip'])}"
    if "interrupted" in attributes:
        return "not measured: interrupted; its placement is measured again"
    return "not measured: hottune was killed or lost; its placement is measured again"
