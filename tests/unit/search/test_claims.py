"""Several workers on one study: nothing is measured twice, and no one waits in vain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from simulated import CEILING_MIB, SimulatedMachine, base, measurement, need_mib, shape

from hottune.outcomes import Outcome
from hottune.placement import Placement
from hottune.search import claims as claims_room
from hottune.search import journal as journal_room
from hottune.search import recorder
from hottune.search import storage as storages
from hottune.search.attributes import facts
from hottune.search.claims import Claims, is_done
from hottune.search.entries import Planned, attributes_of
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.space import plan
from hottune.search.storage import Patience, open_storage, sqlite_url

WANTED = {"placement": "P", "arm": None, "started": "now"}


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[str], Claims]:
    url = sqlite_url(tmp_path / "shared.db")
    number = open_storage(url).create_new_study([StudyDirection.MINIMIZE], "shared")

    def make(name: str) -> Claims:
        return Claims(open_storage(url), number, Patience(url, 5), name, lambda attributes: None)

    return make


def running(one: Claims) -> list[FrozenTrial]:
    return [trial for trial in one.trials() if trial.state is TrialState.RUNNING]


def test_what_one_has_begun_another_does_not_get(worker: Callable[[str], Claims]) -> None:
    first, second = worker("first"), worker("second")
    assert first.take(WANTED) is not None
    assert second.take(WANTED) is None
    assert second.take(WANTED | {"placement": "Q"}) is not None
    assert [trial.user_attrs["worker"] for trial in running(first)] == ["first", "second"]


def test_who_finds_a_lower_number_drops_its_own(worker: Callable[[str], Claims]) -> None:
    """Both see nothing, then both create: the first to create has the lower number."""
    first, second = worker("first"), worker("second")
    create = second.storage.create_new_trial
    taken: list[int | None] = []

    def late(study_id: int, template: FrozenTrial | None = None) -> int:
        taken.append(first.take(WANTED))
        return create(study_id, template)

    second.storage.create_new_trial = late  # type: ignore[method-assign]
    assert second.take(WANTED) is None
    assert taken[0] is not None
    assert len(running(first)) == 1
    assert [facts(trial).get("skip") for trial in first.trials()] == [None, "measured elsewhere"]


def test_what_waits_is_begun_once(worker: Callable[[str], Claims]) -> None:
    """The other takes the trial that the first has created, before the first can begin it."""
    first, second = worker("first"), worker("second")
    beat = first.storage.record_heartbeat
    taken: list[int | None] = []

    def late(trial_id: int) -> None:
        taken.append(second.take(WANTED))
        beat(trial_id)

    first.storage.record_heartbeat = late  # type: ignore[method-assign]
    assert first.take(WANTED) is None
    assert taken[0] is not None
    assert [trial.user_attrs["worker"] for trial in running(first)] == ["second"]


def test_a_trial_that_was_created_twice_for_a_lost_answer_is_begun_once(
    worker: Callable[[str], Claims],
) -> None:
    only = worker("only")
    create = only.storage.create_new_trial

    def twice(study_id: int, template: FrozenTrial | None = None) -> int:
        create(study_id, template)
        return create(study_id, template)

    only.storage.create_new_trial = twice  # type: ignore[method-assign]
    assert only.take(WANTED) is not None
    assert [trial.state for trial in only.trials()] == [TrialState.RUNNING, TrialState.FAIL]


def test_threads_that_want_the_same_all_at_once_measure_each_placement_once(tmp_path: Path) -> None:
    space = plan(shape(), base(), CEILING_MIB, ubatches=(512,), need_mib=need_mib)
    wanted = [Planned(space.layers(layers, 512), "grid") for layers in range(8, 13)]
    books = [Journal("t", sqlite_url(tmp_path / "t.db"), Objective.TURN, worker=f"{i}") for i in range(4)]
    asked: list[Placement] = []
    start = threading.Barrier(len(books))

    def measure(placement: Placement) -> Outcome:
        asked.append(placement)
        time.sleep(0.01)
        return measurement()

    def work(book: Journal) -> None:
        start.wait()
        for planned in wanted:
            book.try_unclaimed(planned, space, measure)

    threads = [threading.Thread(target=work, args=(book,)) for book in books]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(asked, key=str) == sorted((one.placement for one in wanted), key=str)
    assert len(books[0].trials()) == len(wanted)


# --- workers that die ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "BEAT_S", 1)
    monkeypatch.setattr(storages, "GRACE_S", 1)
    monkeypatch.setattr(recorder, "LOOK_AGAIN_S", 0.1)


def test_a_silent_worker_is_looked_at_twice_and_its_trial_is_free_again(
    worker: Callable[[str], Claims], quick: None
) -> None:
    dead, other = worker("dead"), worker("other")
    assert dead.take(WANTED) is not None
    time.sleep(2.5)
    assert not other.end_dead(), "seen silent once"
    assert other.take(WANTED) is None
    time.sleep(2.1)
    assert other.take(WANTED) is not None
    assert other.deaths("P") == 1


def test_an_outage_between_the_two_looks_makes_them_begin_again(
    worker: Callable[[str], Claims], quick: None
) -> None:
    dead, other = worker("dead"), worker("other")
    assert dead.take(WANTED) is not None
    time.sleep(2.5)
    other.end_dead()
    other.patience.outages += 1
    time.sleep(2.1)
    assert not other.end_dead()


def test_a_beating_worker_is_never_ended(worker: Callable[[str], Claims], quick: None) -> None:
    live, other = worker("live"), worker("other")
    trial_id = live.take(WANTED)
    assert trial_id is not None
    with live.beating(trial_id):
        for _ in range(10):
            assert not other.end_dead()
            time.sleep(0.5)
    live.finish(trial_id, {"outcome": "{}"})
    assert [is_done(trial) for trial in other.trials()] == [True]


def test_a_beat_that_fails_is_tried_again(
    worker: Callable[[str], Claims], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_room, "BEAT_AGAIN_S", 0.05)
    live = worker("live")
    trial_id = live.take(WANTED)
    assert trial_id is not None
    beats: list[int] = []

    def failing(beaten: int) -> None:
        beats.append(beaten)
        raise OSError("away")

    live.storage.record_heartbeat = failing  # type: ignore[method-assign]
    with live.beating(trial_id):
        time.sleep(1.4)
    assert len(beats) >= 3


def test_who_wakes_up_after_it_was_taken_for_dead_still_stores_what_it_measured(
    worker: Callable[[str], Claims],
) -> None:
    suspended, other = worker("suspended"), worker("other")
    trial_id = suspended.take(WANTED)
    assert trial_id is not None
    other._end(trial_id, {})
    stored = suspended.finish(trial_id, {"outcome": '"mine"'})
    assert facts(stored)["outcome"] == '"mine"'
    assert [is_done(trial) for trial in other.trials()] == [False, True]


def test_and_what_another_has_stored_meanwhile_goes_before_it(worker: Callable[[str], Claims]) -> None:
    suspended, other = worker("suspended"), worker("other")
    trial_id = suspended.take(WANTED)
    assert trial_id is not None
    other._end(trial_id, {})
    again = other.take(WANTED)
    assert again is not None
    other.finish(again, {"outcome": '"theirs"'})
    assert facts(suspended.finish(trial_id, {"outcome": '"mine"'}))["outcome"] == '"theirs"'
    assert sum(map(is_done, other.trials())) == 1


def test_who_died_between_outcome_and_end_has_finished(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "t.db")
    space = plan(shape(), base(), CEILING_MIB, ubatches=(512,), need_mib=need_mib)
    book = Journal("t", url, Objective.TURN, worker="me")
    trial_id = book._search.take(attributes_of(Planned(space.all_cpu(512), "baseline", "all-cpu")))
    assert trial_id is not None
    for name, content in {"seconds": 1.0, "outcome": measurement(2.0).model_dump_json()}.items():
        book._storage.set_trial_user_attr(trial_id, name, content)

    again = Journal("t", url, Objective.TURN, worker="me")
    (ended,) = again._search.trials()
    assert (ended.state, ended.values) == (TrialState.COMPLETE, [2.0])
    assert again.unfinished() == []


# --- budgets ---


def test_of_two_that_begin_the_last_trial_at_once_one_drops_its_own(worker: Callable[[str], Claims]) -> None:
    first, second = worker("first"), worker("second")
    one, two = first.take(WANTED), second.take(WANTED | {"placement": "Q"})
    assert one is not None and two is not None
    assert not first.beyond(one, 1)
    assert second.beyond(two, 1)
    assert not second.beyond(two, 2)
    second.drop(two)
    assert first.deaths("Q") == 0


def test_baselines_do_not_count_against_the_budget(worker: Callable[[str], Claims]) -> None:
    first, second = worker("first"), worker("second")
    assert first.take(WANTED | {"arm": "fit"}) is not None
    two = second.take(WANTED | {"placement": "Q"})
    assert two is not None
    assert not second.beyond(two, 1)


def test_an_interruption_is_no_death(tmp_path: Path) -> None:
    space = plan(shape(), base(), CEILING_MIB, ubatches=(512,), need_mib=need_mib)
    book = Journal("t", sqlite_url(tmp_path / "t.db"), Objective.TURN)
    with pytest.raises(KeyboardInterrupt):
        book.try_placement(
            Planned(space.all_cpu(512), "baseline", "all-cpu"), space, SimulatedMachine(dies_at=1)
        )
    assert book._search.deaths(space.all_cpu(512).model_dump_json()) == 0
    assert [one.placement for one in book.unfinished()] == [space.all_cpu(512)]


# --- confirm ---


def test_the_confirm_stage_stays_with_the_worker_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is told that a replicate is done, and lets the first one begin the next."""
    monkeypatch.setattr(journal_room, "HEAD_START_S", 1.0)
    monkeypatch.setattr(recorder, "LOOK_AGAIN_S", 0.05)
    url = sqlite_url(tmp_path / "t.db")
    books = [Journal("t", url, Objective.TURN, worker=name) for name in ("first", "second")]
    measured: dict[str, list[int]] = {"first": [], "second": []}

    def work(name: str, book: Journal, positions: range) -> None:
        for position in positions:

            def measure(placement: Placement, position: int = position) -> Outcome:
                measured[name].append(position)
                time.sleep(0.1)
                return measurement()

            book.try_replicate("plan", position, "all-cpu", base(), measure)

    work("first", books[0], range(1))
    threads = [
        threading.Thread(target=work, args=(name, book, range(5)))
        for name, book in zip(("second", "first"), (books[1], books[0]), strict=True)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert measured == {"first": [0, 1, 2, 3, 4], "second": []}

    work("second", books[1], range(5, 7))  # the first has left
    assert measured["second"] == [5, 6]
