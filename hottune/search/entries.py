"""Entries of the journal: placements, outcomes, replicates; to and from the attributes of Optuna trials."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from optuna.trial import FrozenTrial

from hottune.outcomes import OUTCOME_ADAPTER, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName, Replicate, Trial
from hottune.search.attributes import facts

Origin = Literal["baseline", "grid", "sampler"]


@dataclass(frozen=True)
class Planned:
    """A placement that is to be measured, and why."""

    placement: Placement
    origin: Origin
    arm: ArmName | None = None
    repeat: int = 0  # so many measurements of the same placement are known already


def attributes_of(planned: Planned) -> dict[str, Any]:
    """Return the attributes with which a trial of the placement begins."""
    return {
        "placement": planned.placement.model_dump_json(),
        "label": f"{planned.placement.label()} t {planned.placement.threads}",
        "origin": planned.origin,
        "arm": planned.arm,
        "repeat": planned.repeat,
        "started": datetime.now(UTC).isoformat(),
    }


def placement_of(frozen: FrozenTrial) -> Placement:
    """Return the placement of any trial that says what it measures."""
    return Placement.model_validate_json(facts(frozen)["placement"])


def outcome_of(frozen: FrozenTrial) -> Outcome:
    """Return the outcome of a trial that is done."""
    return OUTCOME_ADAPTER.validate_json(facts(frozen)["outcome"])


def trial_of(frozen: FrozenTrial) -> Trial:
    """Return a trial of the search that is done."""
    attributes = facts(frozen)
    return Trial(
        number=frozen.number,
        arm=cast("ArmName | None", attributes["arm"]),
        origin=cast(Origin, attributes["origin"]),
        placement=placement_of(frozen),
        outcome=outcome_of(frozen),
        started=datetime.fromisoformat(attributes["started"]),
        seconds=attributes["seconds"],
        worker=attributes.get("worker", ""),
    )


def replicate_of(frozen: FrozenTrial) -> Replicate:
    """Return a replicate of the confirm stage that is done."""
    attributes = facts(frozen)
    return Replicate(
        position=attributes["position"],
        started=datetime.fromisoformat(attributes["started"]),
        outcome=outcome_of(frozen),
        worker=attributes.get("worker", ""),
    )
