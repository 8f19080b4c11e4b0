"""The report of a study from what is stored of it alone: no engine, no model, no server, any machine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from pydantic import ValidationError

from hottune.errors import BadResultError
from hottune.report.json_file import first_problem
from hottune.report.schema import Report, Roofline, WarningNote
from hottune.search.confirm import Confirmed, candidates, confirm, plan_key
from hottune.search.hints import NO_HINTS, Hints
from hottune.search.journal import Journal
from hottune.tasks import warm
from hottune.tasks.basis import NOTE, Basis
from hottune.tasks.result import make_report

FINISHED = "finished"


def note_finished(journal: Journal, confirmed: Confirmed) -> None:
    """Keep with the study that its confirm stage is over, why it ended, and when."""
    journal.note(
        FINISHED,
        {
            "plan": plan_key(confirmed.placements),
            "ended": confirmed.ended,
            "created": datetime.now(UTC).isoformat(),
        },
    )


def basis_of(journal: Journal) -> Basis:
    """Return what the study was begun with.

    Raises:
        BadResultError: it does not say, because another hottune began it.
    """
    noted = journal.noted(NOTE)
    again = (
        f"Go on with it where engine and model are, which adds that: hottune studies resume {journal.name}"
    )
    if noted is None:
        raise BadResultError(
            f"The study '{journal.name}' has its measurements, but not what else a report says.",
            "A hottune began it that did not keep that with the study.",
            again,
        )
    try:
        return Basis.model_validate(noted)
    except ValidationError as error:
        raise BadResultError(
            f"What study '{journal.name}' was begun with cannot be read: {first_problem(error)}.",
            "Another version of hottune wrote it.",
            again,
        ) from error


def report_of(journal: Journal, basis: Basis) -> Report:
    """Return the report of a study, of one that is not finished with what is known so far.

    A recommendation is made only when the confirm stage went to its end.

    Raises:
        NothingMeasuredError: nothing has been measured.
        StorageError: the storage cannot be read.
    """
    config = basis.config
    trials = journal.trials()
    placements = {
        arm: trial.placement
        for arm, trial in candidates(trials, config.objective, config.top_wanted, basis.limits).items()
    }
    confirmed = confirm(journal, placements, config.rounds, None) if placements else Confirmed({})
    created = datetime.now(UTC)
    finished = journal.noted(FINISHED)
    if finished and finished["plan"] == plan_key(placements):
        confirmed = replace(confirmed, ended=finished["ended"])
        created = datetime.fromisoformat(finished["created"])
    elif not placements:
        confirmed = replace(confirmed, ended="interrupted")
    roofline, hints = journal.noted("roofline"), journal.noted(warm.NOTE)
    return make_report(
        basis,
        trials,
        confirmed,
        created=created,
        seconds=journal.seconds(),
        notes=[WarningNote.model_validate(one) for one in journal.noted("surroundings") or []],
        roofline=None if roofline is None else Roofline.model_validate(roofline),
        began_with=(NO_HINTS if hints is None else Hints.model_validate(hints)).origin,
    )
