"""When stages and studies end, by the servers so far."""

from __future__ import annotations

import pytest

from hottune.tasks.pace import Pace

LATER = {"Baselines": 0, "Search": 10, "Confirm": 6}


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)


def test_without_a_server_there_is_no_estimate() -> None:
    pace = Pace(LATER)
    pace.stage("Baselines", 3)
    pace.ended(2, None)  # kept from an earlier session
    assert pace.ends() == (None, None)


def test_a_stage_goes_at_its_own_pace_and_what_is_to_come_at_that_of_fresh_servers() -> None:
    pace = Pace(LATER)
    pace.stage("Baselines", 3)
    pace.ended(2, 20.0)
    assert pace.ends() == (1000 + 2 * 20, 1000 + 2 * 20 + 16 * 20)
    pace.stage("Search", 10)
    assert pace.ends() == (1000 + 10 * 20, 1000 + 10 * 20 + 6 * 20), "the pace of the stage before, at first"
    pace.ended(9, 4.0, fresh=False)
    assert pace.ends() == (1000 + 9 * 4, 1000 + 9 * 4 + 6 * 20)
    pace.stage("Confirm", 6)
    pace.ended(5, 30.0)
    assert pace.ends() == (1000 + 5 * 30, 1000 + 5 * 30)


def test_servers_in_reused_processes_alone_tell_nothing_of_fresh_ones() -> None:
    pace = Pace(LATER)
    pace.stage("Search", 2)
    pace.ended(1, 4.0, fresh=False)
    assert pace.ends() == (1004, None)


def test_the_budget_ends_it_sooner_and_one_that_is_used_up_does_not() -> None:
    for deadline, ends in ((1010.0, 1010.0), (900.0, 1060.0)):
        pace = Pace(deadline=deadline)
        pace.stage("Search", 4)
        pace.ended(3, 20.0)
        assert pace.ends() == (ends, ends)


def test_a_resumed_stage_with_more_servers_than_planned_has_none_left() -> None:
    pace = Pace()
    pace.stage("Search", 1)
    pace.ended(0, 7.0)
    pace.stage("Confirm", -2)
    assert pace.ends() == (1000, 1000)
