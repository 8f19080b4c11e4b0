"""Attributes of Optuna trials and studies: where the journal keeps its facts, out of the way of people.

Facts (placement, outcome, whose trial it is) are system attributes with a prefix, which dashboards keep to
themselves: an outcome is many kilobytes of JSON. The few that people can read are user attributes. Studies
begun before that have all facts as user attributes; they are read like the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hottune.outcomes import OUTCOME_ADAPTER, Outcome
from hottune.search.storage import Storage

PREFIX = "hottune:"
#: Facts of a trial that people can read as they are.
READABLE = frozenset({"arm", "label", "origin", "position", "seconds", "worker"})

Parameters = tuple[Mapping[str, Any], Mapping[str, BaseDistribution]]


@dataclass(frozen=True)
class Shown:
    """What is stored with a trial that ends for dashboards and their users alone (see `dashboard`)."""

    user: Mapping[str, Any] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def facts(one: FrozenTrial | FrozenStudy) -> dict[str, Any]:
    """Return what the journal stored with a trial or study, by the names it gave."""
    hidden = one.system_attrs.items()
    return {
        **one.user_attrs,
        **{key.removeprefix(PREFIX): value for key, value in hidden if key.startswith(PREFIX)},
    }


def outcome_in(attributes: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome among the facts of a trial; None where it has none."""
    text = attributes.get("outcome")
    return None if text is None else OUTCOME_ADAPTER.validate_json(text)


def new_trial(
    attributes: Mapping[str, Any],
    state: TrialState,
    *,
    values: list[float] | None = None,
    parameters: Parameters = ({}, {}),
    shown: Shown | None = None,
) -> FrozenTrial:
    """Return a trial with its facts, to be stored in one go.

    Raises:
        ValueError: a parameter is outside its distribution.
    """
    user, system = _split(attributes)
    return optuna.trial.create_trial(
        state=state,
        values=values,
        params=dict(parameters[0]),
        distributions=dict(parameters[1]),
        user_attrs=user | dict(shown.user if shown else {}),
        system_attrs=system | dict(shown.system if shown else {}),
    )


def write(storage: Storage, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Store facts of a trial, in their order but for the readable ones, which come first.

    Raises:
        UpdateFinishedTrialError: the trial has ended.
    """
    _set(storage, trial_id, *_split(attributes))


def write_shown(storage: Storage, trial_id: int, shown: Shown) -> None:
    """Store what is shown of a trial, but for the note.

    Raises:
        UpdateFinishedTrialError: the trial has ended.
    """
    _set(storage, trial_id, shown.user, shown.system)


def _set(storage: Storage, trial_id: int, user: Mapping[str, Any], system: Mapping[str, Any]) -> None:
    for name, content in user.items():
        storage.set_trial_user_attr(trial_id, name, content)
    for name, content in system.items():
        storage.set_trial_system_attr(trial_id, name, content)


def _split(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    user = {key: value for key, value in attributes.items() if key in READABLE and value is not None}
    return user, {PREFIX + key: value for key, value in attributes.items() if key not in user}
