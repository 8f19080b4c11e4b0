"""Journal: every placement tried, kept in an Optuna storage the moment it is known.

Two Optuna studies share one storage: `<name>` holds the search (baselines included), `<name>/confirm` the
replicates. A trial's placement, outcome and times are attributes of it (see `attributes`); only measurements
have a value, all other outcomes are failed trials, so that no sampler ever sees a made-up score. Beside that
stands what `dashboard` makes of it for people.

Several processes can work on one study (see `claims`): what one of them measures, no other does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName, Replicate, Trial
from hottune.search import dashboard
from hottune.search import storage as storages
from hottune.search.attributes import PREFIX, Parameters, Shown, facts, outcome_in
from hottune.search.claims import Claims, is_done
from hottune.search.draw import Fixed, Seen, draw, numbers, parameters
from hottune.search.entries import (
    Planned,
    attributes_of,
    outcome_of,
    placement_of,
    replicate_of,
    trial_of,
)
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.recorder import Measure, Recorder, Say
from hottune.search.space import Space
from hottune.search.storage import Patience, Storage, open_storage, sqlite_path, storage_errors

CONFIRM = "/confirm"
#: How long the confirm stage is left to the worker that has it, which may have died.
HEAD_START_S = 3.0


class Journal:
    """What has been tried in one study, and the only way to try more."""

    def __init__(
        self,
        name: str,
        url: str,
        objective: Objective,
        *,
        seed: int = 0,
        settle: bool = True,
        limits: Limits = NO_LIMITS,
        worker: str = "",
        unsaved_path: Path | None = None,
        say: Say = lambda line: None,
        storage: Storage | None = None,
    ) -> None:
        """Open or create the study.

        Args:
            name: of the study.
            url: of the Optuna storage.
            objective: what is optimised.
            seed: of the sampler.
            settle: end trials that an earlier process of this worker left running (SQLite; elsewhere their
                heartbeat tells), and take in what it could not store. False only to read.
            limits: what a placement must keep; the sampler learns them as constraints.
            worker: name of this process among those that work on the study.
            unsaved_path: file for measurements that the storage does not take; None = nowhere.
            say: told what is waited for.
            storage: where it is open already.

        Raises:
            StorageError: the storage cannot be used.
        """
        self.name = name
        self.url = url
        self.objective = objective
        self.limits = limits
        self._ended: dict[int, Trial] = {}
        self._confirmed: dict[int, tuple[Placement, Outcome]] = {}
        self.shared = sqlite_path(url) is None
        self._seed = seed
        self._attempt = (0, 0)
        self._recorder = Recorder(self.shared, unsaved_path, say)
        storage = storage or open_storage(url)
        with storage_errors(url):
            self._study, self.created = self._open(storage, name)
            confirm, _ = self._open(storage, name + CONFIRM)
        self._patience = Patience(url, limit_s=storages.OUTAGE_LIMIT_S, say=say)
        self._search, self._confirm = (
            Claims(storage, number, self._patience, worker, self._values, self._shown)
            for number in (self._study, confirm)
        )
        self._storage = storage
        if settle:
            self._settle()

    def _open(self, storage: Storage, name: str) -> tuple[int, bool]:
        """Return the storage's number of a study, and whether it was made now, by this very process."""
        directions = [getattr(optuna.study.StudyDirection, one.upper()) for one in self.objective.directions]
        try:
            number = storage.create_new_study(directions, name)
        except optuna.exceptions.DuplicatedStudyError:
            return storage.get_study_id_from_name(name), False
        dashboard.name_metrics(storage, number, self.objective.names)
        return number, True

    def _settle(self) -> None:
        """Put in order what earlier processes left; `unfinished` finds what they had begun."""
        if not self.shared:
            self._search.end_own_of_before()
            self._confirm.end_own_of_before()
        self._recorder.take_in_unsaved(self._search, self._confirm)

    # --- provenance ---

    def note(self, key: str, value: object) -> None:
        """Keep plain data beside the study: the configuration, the machine, the engine."""
        text = json.dumps(value)
        self._patience(lambda: self._storage.set_study_system_attr(self._study, PREFIX + key, text))

    def noted(self, key: str) -> Any:
        """Return what `note` kept, or None."""
        text = self._patience(lambda: self._storage.get_study_system_attrs(self._study)).get(PREFIX + key)
        if text is None:  # a study begun before facts were system attributes
            text = self._patience(lambda: self._storage.get_study_user_attrs(self._study)).get(key)
        return None if text is None else json.loads(text)

    def describe(self, shown: Mapping[str, str | float], search: str, confirm: str) -> None:
        """Tell users of a dashboard what the study is.

        Args:
            shown: the main facts, by names that a person understands.
            search: note of the search, Markdown; one that is there is left alone.
            confirm: note of the replicates.
        """

        def once() -> None:
            for key, value in shown.items():
                self._storage.set_study_user_attr(self._study, key, value)
            dashboard.save_note(self._storage, self._study, search)
            dashboard.save_note(self._storage, self._confirm.study_id, confirm)

        self._patience(once)

    # --- search ---

    def trials(self) -> list[Trial]:
        """Return everything that ended, in order, without the placements that were skipped unmeasured."""
        return self._trials_of(self._search.trials())

    def _trials_of(self, frozen: list[FrozenTrial]) -> list[Trial]:
        # What is done never changes, and reading hundreds of outcomes for each trial takes long.
        for one in frozen:
            if one.number not in self._ended and is_done(one):
                self._ended[one.number] = trial_of(one)
        return [self._ended[one.number] for one in frozen if one.number in self._ended]

    def history(self, trials: list[Trial] | None = None) -> list[tuple[Placement, Outcome]]:
        """Return placement and outcome of everything measured: search and confirm, other engines aside.

        Args:
            trials: of the search, where they were read just now.
        """
        done = [(trial.placement, trial.outcome) for trial in (self.trials() if trials is None else trials)]
        for one in self._confirm.trials():
            if one.number not in self._confirmed and is_done(one):
                self._confirmed[one.number] = placement_of(one), outcome_of(one)
        done += [self._confirmed[number] for number in sorted(self._confirmed)]
        return [(placement, outcome) for placement, outcome in done if not placement.engine]

    def unfinished(self) -> list[Planned]:
        """Return the placements that were begun, never ended, not measured since, and are nobody's now."""
        busy = {trial.placement for trial in self.trials()} | self.claimed()
        begun = [
            Planned(placement_of(one), facts(one)["origin"], facts(one)["arm"])
            for one in self._search.trials()
            if "placement" in facts(one) and not {"outcome", "skip"} & set(facts(one))
        ]
        return list(dict.fromkeys(planned for planned in begun if planned.placement not in busy))

    def claimed(self) -> set[Placement]:
        """Return the placements of the search that other workers are measuring now."""
        live = self._search.live_elsewhere()
        return {placement_of(one) for one in live if "placement" in facts(one)}

    def claimed_by_search(self) -> int:
        """Return how many of these count against the budget: all but baselines."""
        return sum(1 for one in self._search.live_elsewhere() if facts(one).get("arm") is None)

    def wait_for_others(self) -> bool:
        """Wait until no other worker measures in the search; return whether there was one."""
        waited = False
        while live := self._search.live_elsewhere():
            self._recorder.wait(live[0])
            waited = True
        self._recorder.wait_is_over()
        return waited

    def try_placement(self, planned: Planned, space: Space, measure: Measure) -> Trial:
        """Measure one planned placement and journal what it ended as.

        Where another worker measures it, wait, and return what that one journals.
        """
        drawn = parameters(space, planned.placement)
        return trial_of(self._recorder.record_or_wait(self._search, attributes_of(planned), measure, drawn))

    def try_unclaimed(
        self, planned: Planned, space: Space, measure: Measure, *, limit: int | None = None
    ) -> Trial | None:
        """Measure one planned placement and journal what it ended as.

        Returns:
            None where another worker has it, or has had it; or where the search has its trials already.

        Args:
            planned: what to measure.
            space: it comes from.
            measure: measures it.
            limit: trials that the search may have, those of all workers together and baselines aside.
        """
        drawn = parameters(space, planned.placement)
        ended = self._recorder.record(self._search, attributes_of(planned), measure, drawn, limit)
        return None if ended is None else trial_of(ended)

    def try_sample(
        self,
        space: Space,
        measure: Measure,
        *,
        at_random: bool = False,
        fixed: Fixed | None = None,
        limit: int | None = None,
    ) -> Trial | None:
        """Let the sampler choose a placement and measure it; None when it chose nothing new.

        Args:
            space: to choose from.
            measure: measures it.
            at_random: choose without looking at what was best so far.
            fixed: parameters that it may not choose, with their values.
            limit: see `try_unclaimed`.
        """
        frozen = self._search.trials()
        ended = {trial.number: trial for trial in self._trials_of(frozen)}
        known = [Seen(*_drawn(one), ended[one.number].outcome) for one in frozen if one.number in ended]
        measured = {trial.placement for trial in ended.values()}
        count, attempt = self._attempt
        attempt = attempt + 1 if count == len(known) else 0
        self._attempt = len(known), attempt
        placement = draw(
            space,
            known,
            self.objective,
            self.limits,
            seed=self._seed,
            attempt=attempt,
            at_random=at_random,
            fixed=fixed,
        )
        if placement is None or placement in measured | self.claimed():
            return None
        return self.try_unclaimed(Planned(placement, "sampler"), space, measure, limit=limit)

    # --- confirm ---

    def replicates(self, key: str) -> dict[int, tuple[ArmName, Replicate]]:
        """Return the finished replicates of one confirm plan, by position."""
        return {
            facts(one)["position"]: (facts(one)["arm"], replicate_of(one))
            for one in self._confirm.trials()
            if facts(one).get("plan") == key and is_done(one)
        }

    def try_replicate(
        self, key: str, position: int, arm: ArmName, placement: Placement, measure: Measure
    ) -> Replicate:
        """Measure one replicate of an arm at its position in the interleaved order and journal it.

        Where another worker measures it, wait, and return what that one journals. Who has measured the one
        before goes first: replicates are compared in pairs, and equal machines are not the same machine.
        """
        attributes = attributes_of(Planned(placement, "baseline", arm)) | {"plan": key, "position": position}
        before = self._confirm.of((key, position - 1))
        if not self._confirm.of((key, position)) and any(not self._confirm.is_mine(one) for one in before):
            time.sleep(HEAD_START_S)
        return replicate_of(
            self._recorder.record_or_wait(self._confirm, attributes, measure, numbers(placement))
        )

    def seconds(self) -> float:
        """Return the time spent in servers so far, all sessions together."""
        frozen = [*self._search.trials(), *self._confirm.trials()]
        return float(sum(facts(one).get("seconds", 0.0) for one in frozen))

    def _values(self, attributes: Mapping[str, Any]) -> list[float] | None:
        outcome = outcome_in(attributes)
        return self.objective.values(outcome) if isinstance(outcome, Measurement) else None

    def _shown(self, attributes: Mapping[str, Any]) -> Shown:
        return dashboard.shown(attributes, self.limits)


def _drawn(trial: FrozenTrial) -> Parameters:
    """Return what a sampler may learn from a trial: of a baseline, nothing."""
    return (trial.params, trial.distributions) if facts(trial).get("arm") is None else ({}, {})
