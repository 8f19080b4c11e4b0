"""Recorder: measures what this worker has claimed and stores what it ended as, whatever comes between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from hottune.errors import StorageError
from hottune.outcomes import Crashed, Outcome
from hottune.placement import Placement
from hottune.search import unsaved
from hottune.search.attributes import Parameters, facts
from hottune.search.claims import Claims, is_done, known_key_of
from hottune.search.entries import placement_of

#: How often is looked whether another worker is done, seconds.
LOOK_AGAIN_S = 1.0
#: A placement that so many workers died of is recorded as crashed. Only in storages that machines share: on
#: one machine a person starts hottune again, and may have killed it for other reasons.
MOST_DEATHS = 2

Measure = Callable[[Placement], Outcome]
Say = Callable[[str], None]


@dataclass
class Recorder:
    """The one place where something is measured for a study.

    Args:
        shared: machines share the storage.
        unsaved_path: file for measurements that the storage does not take; None = nowhere.
        say: told what is waited for.
    """

    shared: bool
    unsaved_path: Path | None
    say: Say
    _waited_for: str = field(default="", init=False)

    def record(
        self,
        claims: Claims,
        attributes: Mapping[str, Any],
        measure: Measure,
        drawn: Parameters = ({}, {}),
        limit: int | None = None,
    ) -> FrozenTrial | None:
        """Measure and store unless it is another worker's; when interrupted, leave it to be done again.

        Args:
            claims: of the Optuna study that it belongs to.
            attributes: what is measured, see `entries.attributes_of`.
            measure: measures it.
            drawn: what a sampler would have drawn, and from what.
            limit: trials that the search may have, those of all workers together and baselines aside.

        Returns:
            The trial, done; None where another worker has it, or where the search has its trials already.

        Raises:
            StorageError: the storage did not take it; it says where the measurement is kept.
        """
        trial_id = claims.take(attributes, drawn)
        if trial_id is None:
            return None
        if limit is not None and claims.beyond(trial_id, limit):
            claims.drop(trial_id)
            return None
        began = time.monotonic()
        placement = Placement.model_validate_json(attributes["placement"])
        with claims.beating(trial_id):
            try:
                outcome = self._fatal(claims, attributes) or measure(placement)
            except BaseException:
                with contextlib.suppress(StorageError):
                    claims.give_up(trial_id)
                raise
            ended = {"seconds": time.monotonic() - began, "outcome": outcome.model_dump_json()}
            try:
                return claims.finish(trial_id, ended)
            except (StorageError, KeyboardInterrupt) as error:
                line = self._keep({**attributes, "worker": claims.worker, **ended})
                if isinstance(error, StorageError):
                    raise StorageError(error.what, error.why, f"{error.next_step} {line}".strip()) from error
                self.say(line)
                raise

    def record_or_wait(
        self,
        claims: Claims,
        attributes: Mapping[str, Any],
        measure: Measure,
        drawn: Parameters = ({}, {}),
    ) -> FrozenTrial:
        """Measure and store; where another worker measures it, wait, and return what that one stores."""
        while True:
            ended = self.record(claims, attributes, measure, drawn)
            if ended is not None:
                self.wait_is_over()
                return ended
            for one in claims.of(known_key_of(attributes)):
                if is_done(one):
                    return one
                self.wait(one)
            attributes = {**attributes, "started": datetime.now(UTC).isoformat()}

    def take_in_unsaved(self, search: Claims, confirm: Claims) -> None:
        """Store what an earlier process of this worker could not."""
        if self.unsaved_path is None:
            return
        for record in unsaved.load(self.unsaved_path):
            claims = confirm if "plan" in record else search
            claims.add_done(record)
        self.unsaved_path.unlink(missing_ok=True)

    def wait(self, trial: FrozenTrial) -> None:
        """Wait a little for another worker, and say so once."""
        who = facts(trial).get("worker", "another worker")
        line = f"Waiting for {who}, which measures {placement_of(trial).label()}."
        if line != self._waited_for:
            self.say(line)
            self._waited_for = line
        time.sleep(LOOK_AGAIN_S)

    def wait_is_over(self) -> None:
        """Say it again when the same is waited for once more."""
        self._waited_for = ""

    def _fatal(self, claims: Claims, attributes: Mapping[str, Any]) -> Crashed | None:
        """Return the outcome of a placement that kills whoever measures it, or None."""
        deaths = claims.deaths(known_key_of(attributes)) if self.shared else 0
        if deaths < MOST_DEATHS:
            return None
        return Crashed(exit_code=None, detail=f"{deaths} hottune workers died while they measured this")

    def _keep(self, record: Mapping[str, Any]) -> str:
        """Write what the storage did not take to a file that the next run takes in; say what became of it."""
        if self.unsaved_path is None:
            return "The last measurement is lost."
        try:
            unsaved.save(self.unsaved_path, record)
        except OSError as cause:
            return f"The last measurement is lost: {self.unsaved_path} cannot be written ({cause})."
        return f"The last measurement is kept in {self.unsaved_path}; the same command stores it."
