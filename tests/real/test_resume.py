"""Nothing measured is lost and no server is left, however a run ends."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hottune_command import Command, gone_within, require_engine, servers_of, wait_for_servers

pytestmark = pytest.mark.real

RUN = (
    "run",
    "demo",
    "--backend",
    "cpu",
    "--scale",
    "0.3",
    "--trials",
    "3",
    "--replicates",
    "2",
    "--study",
    "mine",
)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    require_engine()
    return Command(tmp_path)


def trials(command: Command) -> list[dict[str, Any]]:
    shown = command.run("studies", "show", "mine", "--json")
    return json.loads(shown.stdout)["trials"] if shown.returncode == 0 else []


def test_kill_9_leaves_no_server_and_the_next_run_keeps_every_finished_trial(command: Command) -> None:
    started = command.start(*RUN)
    try:
        started.wait_for_lines("#", 2)
        servers = servers_of(started.pid)
    finally:
        started.kill()
    assert servers
    assert gone_within(servers, 5)
    kept = trials(command)
    assert len(kept) >= 2

    resumed = command.run(*RUN, "--json")
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout)
    assert report["trials"][: len(kept)] == kept
    assert f"{len(kept)} trials are kept" in resumed.stderr
    placements = [json.dumps(trial["placement"]) for trial in report["trials"]]
    assert len(set(placements)) == len(placements), "nothing is measured twice in the search"


def test_ctrl_c_ends_with_130_keeps_what_was_measured_and_stops_the_server(command: Command) -> None:
    started = command.start(*RUN)
    try:
        started.wait_for_lines("#", 1)
        servers = servers_of(started.pid)
        started.process.send_signal(signal.SIGINT)
        ended = started.end(30)
    finally:
        started.kill()
    assert ended.returncode == 130
    assert "kept" in ended.stderr
    assert gone_within(servers, 5)
    assert len(trials(command)) >= 1


def test_sigterm_stops_the_server_too(command: Command) -> None:
    started = command.start(*RUN)
    try:
        servers = wait_for_servers(started.pid)
        started.process.terminate()
        ended = started.end(30)
    finally:
        started.kill()
    assert ended.returncode == 143
    assert gone_within(servers, 5)


def test_kill_9_while_confirming_keeps_the_replicates(command: Command) -> None:
    started = command.start(*RUN)
    try:
        started.wait_for_lines("again", 3)
    finally:
        started.kill()
    (before,) = json.loads(command.run("studies", "list", "--json").stdout)
    assert 3 <= before["replicates"] < 10

    resumed = command.run("studies", "resume", "mine", "--json")
    assert resumed.returncode == 0, resumed.stderr
    (after,) = json.loads(command.run("studies", "list", "--json").stdout)
    assert after["replicates"] == 10, "two rounds of five arms: the kept ones were not measured again"


def test_a_second_run_of_the_same_study_at_once_is_told_so(command: Command) -> None:
    started = command.start(*RUN)
    try:
        wait_for_servers(started.pid)
        second = command.run(*RUN)
    finally:
        started.kill()
    assert second.returncode == 53
    assert str(started.pid) in second.stderr
