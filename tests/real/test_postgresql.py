"""Several processes on one study in a real PostgreSQL server, which may go away; measurements by formula."""

from __future__ import annotations

import collections
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
from postgresql_server import Server, programs
from shared_worker import work
from typer.testing import CliRunner

from bench.durability import landscape
from bench.durability.lives import first_difference, result
from hottune import workflow
from hottune.cli.app import app
from hottune.outcomes import Measurement
from hottune.progress import NoProgress
from hottune.search.attributes import facts
from hottune.search.claims import is_done, key_of
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.storage import open_storage, sqlite_url

pytestmark = pytest.mark.real

FORK = multiprocessing.get_context("fork")
TRIALS = 6


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed: hottune[postgresql]")
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server (initdb) in /usr/lib/postgresql or on PATH")
    with Server(found) as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """An empty storage."""
    backend = open_storage(server.url)._backend
    optuna.storages._rdb.models.BaseModel.metadata.drop_all(backend.engine)
    backend.engine.dispose()
    return server.url


class Workers:
    """Processes, forked so that imports are paid once."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self._url = url
        self._running: dict[str, ForkProcess] = {}

    def start(self, name: str, *, pause_s: float = 0.05, **more: Any) -> ForkProcess:
        settings = {"trials": TRIALS, "pause_s": pause_s, **more}
        self._running[name] = FORK.Process(target=work, args=(self.folder, name, self._url, settings))
        self._running[name].start()
        return self._running[name]

    def go(self) -> None:
        (self.folder / "go").touch()

    def asked(self, name: str = "*") -> list[str]:
        files = sorted(self.folder.glob(f"asked-{name}.txt"))
        return [line for file in files for line in file.read_text().splitlines()]

    def said(self, name: str) -> str:
        return (self.folder / f"said-{name}.txt").read_text()

    def end(self, name: str, code: int = 0) -> None:
        self._running[name].join(60)
        assert self._running[name].exitcode == code, self.said(name)

    def kill(self) -> None:
        for process in self._running.values():
            process.kill()
            process.join()


@pytest.fixture
def workers(tmp_path: Path, url: str) -> Iterator[Workers]:
    made = Workers(tmp_path, url)
    try:
        yield made
    finally:
        made.kill()


def until(true: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def journal(url: str) -> Journal:
    return Journal("formula", url, Objective.TURN, settle=False)


def single(folder: Path) -> dict[str, Any]:
    """What one undisturbed process makes of the same study."""
    plan = landscape.plan(folder, trials=TRIALS, replicates=2)
    measure = landscape.measuring(plan.ceiling_mib, 0, surprise_mib=0)
    workflow.run_plan(plan, NoProgress(), lambda plan, meter: measure)
    return result(folder)


def without_workers(report: dict[str, Any]) -> dict[str, Any]:
    """Leave out who measured what, and what else went on on the machine."""
    text = json.dumps({**report, "warnings": []})
    plain: dict[str, Any] = json.loads(
        text, object_hook=lambda one: {name: value for name, value in one.items() if name != "worker"}
    )
    return plain


def assert_each_once(workers: Workers, url: str, *, lost: int = 0) -> None:
    """Everything asked for is in the study, once; `lost` measurements were begun and killed."""
    book = journal(url)
    placements = [trial.placement for trial in book.trials()]
    # The search measures some placements again, on purpose: that has a key of its own.
    keys = [key_of(facts(one)) for one in book._search.trials() if is_done(one)]
    assert len(set(keys)) == len(keys) == len(placements)
    searched = collections.Counter(one.model_dump_json() for one in placements)
    stored = searched + collections.Counter(
        one.model_dump_json() for one, _ in book.history()[len(placements) :]
    )
    asked = collections.Counter(workers.asked())
    assert sum((asked - stored).values()) == lost
    assert not stored - asked


def test_two_processes_share_a_study_and_measure_no_placement_twice(
    workers: Workers, url: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        workers.start(name, pause_s=0.2)
    workers.go()
    for name in ("a", "b"):
        workers.end(name)
    assert_each_once(workers, url)
    trials = journal(url).trials()
    assert {trial.worker for trial in trials} == {"a", "b"}
    assert sum(1 for trial in trials if trial.arm is None) == TRIALS

    ours, theirs = without_workers(result(tmp_path / "a")), without_workers(result(tmp_path / "b"))
    assert ours == theirs, first_difference(ours, theirs)
    # What a search tries depends on who was done first; what it is compared with does not.
    alone = without_workers(single(tmp_path / "alone"))
    static, same = (
        [(one["arm"], one["placement"], one["outcome"]) for one in report["trials"] if one["arm"]]
        for report in (ours, alone)
    )
    assert len(static) >= 3
    assert static == same, first_difference(static, same)
    assert len(ours["trials"]) == len(alone["trials"])

    listed = CliRunner().invoke(app, ["studies", "list", "--storage", url, "--json"])
    (one,) = json.loads(listed.stdout)
    assert (one["name"], one["trials"]) == ("formula", len(trials))
    shown = CliRunner().invoke(app, ["studies", "show", "formula", "--storage", url, "--json"])
    assert len(json.loads(shown.stdout)["trials"]) == len(trials)
    told = CliRunner().invoke(app, ["report", "formula", "--storage", url, "--json"])
    assert told.exit_code == 0, told.output
    again = json.loads(told.stdout)
    for report in (again, ours):
        report["rows"] = [(arm["name"], arm["turn_s"], arm["versus_turn"]) for arm in report["arms"]]
    assert again["rows"] == ours["rows"], "the storage alone is enough"
    assert again["winner"] == ours["winner"]


def test_a_slow_live_worker_is_waited_for_and_never_taken_for_dead(workers: Workers, url: str) -> None:
    workers.go()
    workers.start("slow", first_pause_s=5.5)  # longer than the grace and the second look: 4 s
    until(lambda: workers.asked("slow"))
    workers.start("other")
    workers.end("slow")
    workers.end("other")
    assert "Waiting for slow" in workers.said("other")
    assert_each_once(workers, url)


def test_what_a_killed_worker_had_begun_is_done_by_the_other(workers: Workers, url: str) -> None:
    workers.go()
    doomed = workers.start("doomed", first_pause_s=600)
    until(lambda: workers.asked("doomed"))
    doomed.kill()
    doomed.join()
    workers.start("other")
    workers.end("other")
    assert_each_once(workers, url, lost=1)
    assert workers.asked("doomed")[0] in workers.asked("other")
    (first, *_) = journal(url).trials()
    assert (first.worker, isinstance(first.outcome, Measurement)) == ("other", True)


def test_a_placement_that_two_workers_died_of_is_recorded_as_crashed(workers: Workers, url: str) -> None:
    workers.go()
    for name in ("one", "two"):
        doomed = workers.start(name, first_pause_s=600)
        until(lambda name=name: workers.asked(name))
        doomed.kill()
        doomed.join()
    assert workers.asked("one") == workers.asked("two")
    workers.start("other")
    workers.end("other")
    assert workers.asked("one")[0] not in workers.asked("other")
    crashed = [trial for trial in journal(url).trials() if trial.outcome.kind == "crashed"]
    assert [trial.placement.model_dump_json() for trial in crashed] == workers.asked("one")


def test_a_restart_of_the_server_in_the_middle_loses_nothing(
    workers: Workers, url: str, server: Server
) -> None:
    for name in ("a", "b"):
        workers.start(name, pause_s=0.2)
    workers.go()
    for count in (2, 5):
        until(lambda count=count: len(workers.asked()) > count)
        server.restart()
    for name in ("a", "b"):
        workers.end(name)
    assert_each_once(workers, url)
    assert "answers again" in workers.said("a") + workers.said("b")


def test_what_a_server_that_stays_away_could_not_take_is_stored_by_the_next_run(
    workers: Workers, url: str, server: Server, tmp_path: Path
) -> None:
    workers.go()
    workers.start("a", first_pause_s=3, outage_limit_s=1)
    until(lambda: workers.asked("a"))
    server.stop()
    try:
        workers.end("a", code=50)
    finally:
        server.start()
    (kept,) = tmp_path.glob("a/studies/*.unsaved.jsonl")
    assert str(kept) in workers.said("a")
    (first,) = workers.asked("a")

    workers.start("a")
    workers.end("a")
    assert not kept.exists()
    assert first in [trial.placement.model_dump_json() for trial in journal(url).trials()]
    assert_each_once(workers, url)


def test_a_sqlite_url_is_never_taken_for_a_shared_storage(tmp_path: Path) -> None:
    assert not journal(sqlite_url(tmp_path / "mine.db")).shared
