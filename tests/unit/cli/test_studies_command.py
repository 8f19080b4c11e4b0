"""`hottune studies dashboard`: which storage it takes, and the errors that it ends with."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hottune.cli import studies
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.storage import sqlite_url
from hottune.tasks import dashboards

runner = CliRunner()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: Path, name: str) -> str:
    journal = Journal(name, sqlite_url(folder / "studies" / f"{name}.db"), Objective.TURN)
    for key, value in {"model": {"name": "m"}, "ceiling_mib": 1.0, "config": {"objective": "turn"}}.items():
        journal.note(key, value)
    journal.note("identity", {})
    return journal.url


def error_of(*arguments: str) -> tuple[int, dict[str, str]]:
    done = runner.invoke(studies.app, ["dashboard", "--json", *arguments])
    return done.exit_code, json.loads(done.stdout)["error"]


def test_without_a_study_it_says_how_to_begin_one() -> None:
    code, error = error_of()
    assert code == 51
    assert "hottune run demo" in error["next_step"]


def test_of_several_files_one_must_be_named(here: Path) -> None:
    make(here, "one")
    make(here, "two")
    code, error = error_of()
    assert code == 51
    assert error["next_step"] == "Name one: one, two."


def test_an_unknown_name_is_answered_with_those_there_are(here: Path) -> None:
    make(here, "one")
    code, error = error_of("on")
    assert code == 51
    assert "one" in error["next_step"]


def test_a_taken_port_ends_it_with_30(here: Path) -> None:
    make(here, "one")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, error = error_of("--port", str(taken.getsockname()[1]))
    assert code == 30
    assert "--port" in error["next_step"]


def test_a_missing_package_ends_it_with_55_and_how_to_install_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here, "one")
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    code, error = error_of()
    assert code == 55
    assert "pip install 'hottune[dashboard]'" in error["next_step"]


def test_a_storage_that_is_not_there_is_not_made(here: Path) -> None:
    code, error = error_of("--storage", sqlite_url(here / "nothing.db"))
    assert code == 50
    assert "nothing.db" in error["why"]
    assert not (here / "nothing.db").exists()


@pytest.mark.parametrize(
    ("names", "arguments", "study"),
    [(["one"], [], "one"), (["one", "two"], ["two"], "two")],
)
def test_it_opens_the_only_study_or_the_one_that_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], arguments: list[str], study: str
) -> None:
    urls = {name: make(here, name) for name in names}
    asked: list[tuple[str, int | None]] = []

    def serve(url: str, port: int | None, *, up: object) -> None:
        asked.append((url, port))
        up(1234)  # type: ignore[operator]

    monkeypatch.setattr(dashboards, "serve_dashboard", serve)
    done = runner.invoke(studies.app, ["dashboard", "--json", *arguments])
    assert done.exit_code == 0, done.output
    assert asked == [(urls[study], None)]
    assert json.loads(done.stdout) == {"url": "http://127.0.0.1:1234/dashboard/studies/1", "study": study}
