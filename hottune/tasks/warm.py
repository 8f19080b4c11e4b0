"""Warm start: what is known before the first measurement, found once and kept with the study."""

from __future__ import annotations

from hottune.progress import Progress
from hottune.search.hints import NO_HINTS, Hints
from hottune.search.journal import Journal
from hottune.tasks.earlier import hints_of_earlier
from hottune.tasks.prepare import Plan
from hottune.tasks.traced import hints_of

NOTE = "warm"


def noted_hints(plan: Plan, journal: Journal, ui: Progress) -> Hints:
    """Return the hints that the study began with; at its very beginning, find them and say so.

    A study that goes on reads them from its journal, so that it measures what it would have measured
    undisturbed, whatever other studies found meanwhile.

    Raises:
        BadTraceError, BadSettingError: the trace cannot be used (see `hints_of`).
    """
    noted = journal.noted(NOTE)
    if noted is not None:
        return Hints.model_validate(noted)
    hints = NO_HINTS
    if not journal.trials():  # a study that was begun without hints goes on without
        hints = _from_trace(plan, ui)
        if plan.config.warm_start:
            hints = hints.over(hints_of_earlier(plan))
    journal.note(NOTE, hints.model_dump(mode="json"))
    for sentence in hints.origin:
        ui.say(f"The search begins with {sentence}.")
    return hints


def _from_trace(plan: Plan, ui: Progress) -> Hints:
    if plan.config.trace is None:
        return NO_HINTS
    space = plan.space
    return hints_of(
        plan.config.trace,
        plan.model.shape,
        slots=space.max_hot_k(plan.model.shape.n_layers, space.ubatches[0]),
        bypass=space.bypasses[0],
        cache_dir=plan.config.cache_dir,
        progress=ui,
    )
