"""Nothing measured is lost and no server is left, however a run ends."""

from __future__ import annotations

import json
import signal
import subprocess
import time
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


def run_until_trials(command: Command, process: subprocess.Popen[str], count: int) -> None:
    """Wait until some trials ended and the next server runs."""
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += line.lstrip().startswith("#")
        if seen >= count:
            break
    assert seen >= count
    wait_for_servers(process.pid)


def test_kill_9_leaves_no_server_and_the_next_run_keeps_every_finished_trial(command: Command) -> None:
    process = command.start(*RUN)
    try:
        run_until_trials(command, process, 2)
        servers = servers_of(process.pid)
    finally:
        process.kill()
        process.communicate()
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
    process = command.start(*RUN)
    try:
        run_until_trials(command, process, 1)
        servers = servers_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "kept" in err
    assert gone_within(servers, 5)
    assert len(trials(command)) >= 1


def test_sigterm_stops_the_server_too(command: Command) -> None:
    process = command.start(*RUN)
    try:
        servers = wait_for_servers(process.pid)
        process.terminate()
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143
    assert gone_within(servers, 5)


def test_kill_9_while_confirming_keeps_the_replicates(command: Command) -> None:
    process = command.start(*RUN)
    assert process.stderr is not None
    try:
        seen = 0
        for line in process.stderr:
            seen += line.lstrip().startswith("again")
            if seen == 3:
                break
        wait_for_servers(process.pid)
    finally:
        process.kill()
        process.communicate()
    before = json.loads(command.run("studies", "list", "--json").stdout)[0]["replicates"]
    assert before >= 3

    began = time.time()
    resumed = command.run("studies", "resume", "mine", "--json")
    assert resumed.returncode == 0, resumed.stderr
    after = json.loads(command.run("studies", "list", "--json").stdout)[0]["replicates"]
    assert after == 8, "two rounds of four arms: the kept ones were not measured again"
    assert time.time() - began < 60


def test_a_second_run_of_the_same_study_at_once_is_told_so(command: Command) -> None:
    process = command.start(*RUN)
    try:
        wait_for_servers(process.pid)
        second = command.run(*RUN)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert second.returncode == 53
    assert str(process.pid) in second.stderr
