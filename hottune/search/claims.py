"""Claims: which process measures what, when several work on one Optuna study.

What is measured has a key (a placement; a position of a confirm plan), and at most one worker measures a key
at a time. The proof, for any interleaving of workers:

1. A trial is created waiting, with its key, in one transaction; the storage numbers trials in the order in
   which those end. So whoever reads after it created its trial sees every trial with a lower number.
2. Of all live trials of a key only the lowest-numbered one may be begun, and who finds that another one is
   lower drops its own. Two trials of one key are therefore never begun while both live.
3. One waiting trial is begun by one worker: the storage sets waiting to running once.

A running trial is kept alive by its worker's heartbeat; where that stops, others end the trial without an
outcome, and its key is free again. A suspended computer that wakes up late can find its trial ended so; then
what it measured is kept if nobody else has measured it (`finish`).
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hottune.search import storage as storages
from hottune.search.attributes import Parameters, Shown, facts, new_trial, write, write_shown
from hottune.search.dashboard import save_note
from hottune.search.storage import Patience, Storage

#: What the storage is told again and again in a beat that failed, seconds.
BEAT_AGAIN_S = 1.0
LIVE = (TrialState.WAITING, TrialState.RUNNING)

Key = tuple[str, int] | str


def key_of(attributes: Mapping[str, Any]) -> Key | None:
    """Return what a trial measures: a position of a confirm plan, else a placement; None = not said yet.

    A placement that is measured once more has a key of its own.
    """
    if "plan" in attributes:
        return str(attributes["plan"]), int(attributes["position"])
    placement = attributes.get("placement")
    if placement is None:
        return None
    repeat = attributes.get("repeat", 0)
    return f"{placement}#{repeat}" if repeat else str(placement)


def known_key_of(attributes: Mapping[str, Any]) -> Key:
    """Return what a trial measures, of attributes that say so."""
    key = key_of(attributes)
    assert key is not None
    return key


def is_done(trial: FrozenTrial) -> bool:
    """Whether the trial has an outcome. The outcome is written before the state, so it alone decides."""
    attributes = facts(trial)
    return "outcome" in attributes and "skip" not in attributes


@dataclass
class Claims:
    """The trials of one Optuna study, as one of its workers sees them.

    Args:
        storage: of the study.
        study_id: the storage's number of it.
        patience: asks the storage.
        worker: name of this process, stored with what it measures.
        values_of: what is optimised, of a trial's facts; None where they have no measurement.
        shown_of: what dashboards show of a trial that ends, of its facts.
    """

    storage: Storage
    study_id: int
    patience: Patience
    worker: str
    values_of: Callable[[Mapping[str, Any]], list[float] | None]
    shown_of: Callable[[Mapping[str, Any]], Shown] = lambda facts: Shown()
    #: Trials whose worker was silent when looked at before, and when that was.
    _silent: dict[int, float] = field(default_factory=dict)
    _outages_seen: int = 0
    _own: set[int] = field(default_factory=set)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number."""
        return self.patience(lambda: self.storage.get_all_trials(self.study_id, deepcopy=False))

    def of(self, key: Key) -> list[FrozenTrial]:
        """Return the trials of a key that are done or live, by number."""
        return [one for one in self.trials() if key_of(facts(one)) == key and (is_done(one) or _live(one))]

    def is_mine(self, trial: FrozenTrial) -> bool:
        """Whether this worker measured (or measures) a trial; of an older study nobody else can have."""
        return bool(facts(trial).get("worker", self.worker) == self.worker)

    def live_elsewhere(self) -> list[FrozenTrial]:
        """Return what other workers are measuring now; ends what dead ones left."""
        found = self._running_elsewhere()
        if found and self.end_dead():
            found = self._running_elsewhere()
        return [one for one in found if not is_done(one)]

    def _running_elsewhere(self) -> list[FrozenTrial]:
        running = [one for one in self.trials() if one.state is TrialState.RUNNING]
        return [one for one in running if self._id(one) not in self._own]

    def deaths(self, key: Key) -> int:
        """Return how many workers died while they measured this."""
        return sum(
            1
            for one in self.trials()
            if key_of(facts(one)) == key
            and one.state is TrialState.FAIL
            and not {"outcome", "skip", "interrupted"} & set(facts(one))
        )

    def beyond(self, trial_id: int, limit: int) -> bool:
        """Whether a trial of this worker, just begun, is more than a search may have, baselines aside.

        Asked after it was begun: whoever is about to end the search either sees it, or is seen by it.
        """
        mine = self.patience(lambda: self.storage.get_trial(trial_id)).number
        counted = [one for one in self.trials() if facts(one).get("arm") is None]
        before = [one for one in counted if one.state is TrialState.RUNNING and one.number < mine]
        return sum(map(is_done, counted)) + sum(not is_done(one) for one in before) >= limit

    # --- begin ---

    def take(self, attributes: Mapping[str, Any], parameters: Parameters = ({}, {})) -> int | None:
        """Return the trial in which this worker must now measure a key, or None: it is done or taken.

        Args:
            attributes: of the trial; the key is in them.
            parameters: what a sampler would have drawn, and from what.
        """
        key = known_key_of(attributes)
        token = uuid.uuid4().hex
        self.live_elsewhere()  # ends what a dead worker left
        if not self.of(key):
            waiting = _waiting({**attributes, "token": token}, parameters)
            self.patience(lambda: self.storage.create_new_trial(self.study_id, waiting))
        found = self.of(key)
        for one in found[1:]:
            # Also a second one of ours: a lost answer makes the storage be asked again.
            if facts(one).get("token") == token:
                self._end(self._id(one), {"skip": "measured elsewhere"})
        if not found or is_done(found[0]) or found[0].state is not TrialState.WAITING:
            return None
        trial_id = self._id(found[0])
        # A beat before it runs: a worker that dies right after must be missed, too.
        self.patience(lambda: self.storage.record_heartbeat(trial_id))
        if not self.patience(lambda: self._begin(trial_id)):
            return None
        self._own.add(trial_id)
        self._set(trial_id, {"worker": self.worker, "started": attributes["started"]})
        return trial_id

    def _begin(self, trial_id: int) -> bool:
        try:
            return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    @contextlib.contextmanager
    def beating(self, trial_id: int) -> Iterator[None]:
        """Show within it that this worker is alive, however long it takes."""
        over = threading.Event()

        def beat() -> None:
            pause_s = float(storages.BEAT_S)
            while not over.wait(pause_s):
                try:
                    self.storage.record_heartbeat(trial_id)
                    pause_s = float(storages.BEAT_S)
                except Exception:  # whatever it is, the next beat may get through; the trial goes on
                    pause_s = BEAT_AGAIN_S

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5)

    # --- end ---

    def finish(self, trial_id: int, attributes: Mapping[str, Any]) -> FrozenTrial:
        """Store what a trial ended as and return it (or what another worker stored of the same key).

        Args:
            trial_id: from `take`.
            attributes: to add; the outcome last.
        """
        self._end(trial_id, attributes)
        self._own.discard(trial_id)
        ended = self.patience(lambda: self.storage.get_trial(trial_id))
        if is_done(ended):
            return ended
        # Others took this worker for dead and ended its trial.
        self.add_done({**facts(ended), **attributes})
        return self._done(ended)

    def give_up(self, trial_id: int) -> None:
        """End a trial that this worker was told to stop: it is done again, and nobody has died of it."""
        self._own.discard(trial_id)
        self._end(trial_id, {"interrupted": True})

    def drop(self, trial_id: int) -> None:
        """End a trial that was begun and is not wanted any more."""
        self._own.discard(trial_id)
        self._end(trial_id, {"skip": "budget"})

    def add_done(self, attributes: Mapping[str, Any]) -> None:
        """Add a trial that was measured while it could not be stored, unless its key is done by now."""
        key = known_key_of(attributes)
        values = self.values_of(attributes)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        finished = new_trial(attributes, state, values=values, shown=self.shown_of(attributes))

        def once() -> None:
            if not any(is_done(one) for one in self.of(key)):
                self.storage.create_new_trial(self.study_id, finished)

        self.patience(once)

    def end_dead(self) -> bool:
        """End the trials of workers that have stopped to beat; return whether there were any.

        A worker is looked at twice, two beats apart and without an outage between: after a storage was away,
        all workers look dead until they have reached it again.
        """
        silent = set(self.patience(lambda: self.storage._get_stale_trial_ids(self.study_id))) - self._own
        if self.patience.outages != self._outages_seen:
            self._outages_seen = self.patience.outages
            self._silent.clear()
        now = time.monotonic()
        self._silent = {trial_id: self._silent.get(trial_id, now) for trial_id in silent}
        dead = [one for one, since in self._silent.items() if now - since >= 2 * storages.BEAT_S]
        for trial_id in dead:
            self._end(trial_id, {})
        return bool(dead)

    def end_own_of_before(self) -> None:
        """End what an earlier process of this worker left running; only under the study's lock."""
        for one in self.trials():
            if one.state is TrialState.RUNNING and self.is_mine(one):
                self._end(self._id(one), {})

    def _end(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """End a trial; whoever died after its outcome was stored, but before its end was, has finished it."""

        def once() -> None:
            with contextlib.suppress(UpdateFinishedTrialError):
                write(self.storage, trial_id, attributes)
                ended = facts(self.storage.get_trial(trial_id))
                shown, values = self.shown_of(ended), self.values_of(ended)
                write_shown(self.storage, trial_id, shown)
                if shown.note:
                    save_note(self.storage, self.study_id, shown.note, trial_id)
                if values is None:
                    self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
                else:
                    self.storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)

        self.patience(once)

    def _set(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        def once() -> None:
            with contextlib.suppress(UpdateFinishedTrialError):
                write(self.storage, trial_id, attributes)

        self.patience(once)

    def _done(self, trial: FrozenTrial) -> FrozenTrial:
        key = known_key_of(facts(trial))
        return next(one for one in self.of(key) if is_done(one))

    def _id(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)


def _live(trial: FrozenTrial) -> bool:
    return trial.state in LIVE


def _waiting(attributes: Mapping[str, Any], parameters: Parameters) -> FrozenTrial:
    try:
        return new_trial(attributes, TrialState.WAITING, parameters=parameters)
    except ValueError:  # a placement from outside the space's present bounds: its parameters are only shown
        return new_trial(attributes, TrialState.WAITING)
