"""A storage that goes away: asked again while that can help, and what it could not take is kept."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import optuna
import pytest
import sqlalchemy.exc
from simulated import CEILING_MIB, base, measurement, need_mib, shape

from hottune.errors import StorageError
from hottune.search import storage as storages
from hottune.search import unsaved
from hottune.search.entries import Planned
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.space import Space, plan
from hottune.search.storage import Patience, open_storage, open_to_look, sqlite_url


class Away:
    """Fails so many times, as a lost connection does, then answers."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.left = times
        self.error = error or sqlalchemy.exc.OperationalError("SELECT", {}, Exception("server closed"))

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise optuna.exceptions.StorageInternalError("during the commit") from self.error
        return "answer"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "FIRST_PAUSE_S", 0.01)


def test_a_storage_that_comes_back_is_asked_again_and_that_is_said_once() -> None:
    said: list[str] = []
    patience = Patience("postgresql://me:secret@host/db", 10, said.append)
    assert patience(Away(3)) == "answer"
    assert patience.outages == 1
    assert len(said) == 2
    assert "does not answer" in said[0]
    assert "answers again" in said[1]
    assert "secret" not in " ".join(said)


def test_a_storage_that_stays_away_is_an_error_after_the_limit() -> None:
    with pytest.raises(StorageError, match="server closed"):
        Patience("postgresql://host/db", 0.05)(Away(10**6))


@pytest.mark.parametrize(
    "error",
    [
        sqlalchemy.exc.ProgrammingError("SELECT", {}, Exception("no such table")),
        sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("disk is full")),
        ValueError("not of the database"),
    ],
)
def test_what_no_waiting_heals_is_an_error_at_once(error: Exception) -> None:
    away = Away(1, error)
    with pytest.raises(StorageError):
        Patience("postgresql://host/db", 60)(away)
    assert away.left == 0


def test_a_locked_sqlite_file_is_waited_for() -> None:
    locked = sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))
    assert Patience("sqlite:///x", 10)(Away(2, locked)) == "answer"


def test_a_session_that_lost_its_connection_in_the_middle_is_asked_again() -> None:
    assert Patience("postgresql://host/db", 10)(Away(1, sqlalchemy.exc.PendingRollbackError("x"))) == "answer"


# --- what it could not take ---


def space() -> Space:
    return plan(shape(), base(), CEILING_MIB, ubatches=(512,), need_mib=need_mib)


def journal(folder: Path) -> Journal:
    url = sqlite_url(folder / "t.db")
    return Journal("t", url, Objective.TURN, worker="me", unsaved_path=folder / "t.unsaved.jsonl")


def test_a_measurement_that_cannot_be_stored_is_kept_in_a_file_and_stored_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = Planned(space().all_cpu(512), "baseline", "all-cpu")
    book = journal(tmp_path)

    def full(trial_id: int, key: str, value: object) -> None:
        raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("disk is full"))

    def measure(placement: object) -> object:
        monkeypatch.setattr(book._storage, "set_trial_user_attr", full)
        return measurement(3.0)

    with pytest.raises(StorageError, match=r"t\.unsaved\.jsonl"):
        book.try_placement(planned, space(), measure)  # type: ignore[arg-type]

    again = journal(tmp_path)
    (trial,) = again.trials()
    assert (trial.placement, trial.arm, trial.worker) == (planned.placement, "all-cpu", "me")
    assert trial.outcome == measurement(3.0)
    assert again.unfinished() == []
    assert not (tmp_path / "t.unsaved.jsonl").exists()
    assert len(journal(tmp_path).trials()) == 1


def test_what_was_measured_elsewhere_meanwhile_is_not_stored_twice(tmp_path: Path) -> None:
    planned = Planned(space().all_cpu(512), "baseline", "all-cpu")
    journal(tmp_path).try_placement(planned, space(), lambda placement: measurement(1.0))
    unsaved.save(
        tmp_path / "t.unsaved.jsonl",
        {
            "placement": planned.placement.model_dump_json(),
            "origin": "baseline",
            "arm": "all-cpu",
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 1.0,
            "outcome": measurement(2.0).model_dump_json(),
        },
    )
    (trial,) = journal(tmp_path).trials()
    assert trial.outcome == measurement(1.0)


def test_a_line_that_a_kill_cut_off_is_left_out_and_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.unsaved.jsonl"
    unsaved.save(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b": ')
    assert unsaved.load(path) == [{"a": 1}]
    with path.open("a") as file:
        file.write('\n{"c": 3}\n')
    with pytest.raises(StorageError, match="line 2"):
        unsaved.load(path)


def test_a_sqlite_file_survives_a_killed_process_and_decides_on_what_it_read(tmp_path: Path) -> None:
    storage = open_storage(sqlite_url(tmp_path / "t.db"))
    with storage._backend.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite3.connect(tmp_path / "t.db", timeout=0).execute("BEGIN IMMEDIATE")


def test_the_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (address TEXT)")
        connection.commit()
    before = path.read_bytes()
    for opened in (open_storage, open_to_look):
        with pytest.raises(StorageError, match="another program"):
            opened(sqlite_url(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
