"""`hottune serve` with real servers on the virtual GPU: people use it, and it ends without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hottune_command import Command, Started, gone_within, servers_of, small_study

from hottune.cli.common import cache_dir
from hottune.engine import control
from hottune.engine.ports import free_port
from hottune.models.resolve import resolve_model

pytestmark = pytest.mark.real

STUDY = "small"
QUESTION = {"prompt": "The tide pools of the northern coast", "n_predict": 40, "temperature": 0}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder with the report of a small study."""
    return small_study(tmp_path_factory.mktemp("work"), STUDY)


@pytest.fixture(autouse=True)
def profile() -> Iterator[Path]:
    """Where the demo's profile is kept; what the user has there is put back at the end."""
    fingerprint = resolve_model("demo", cache_dir=cache_dir()).fingerprint
    path = cache_dir() / "profiles" / f"{fingerprint[:16]}.json"
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_bytes(before)


@contextmanager
def serving(command: Command, *arguments: str) -> Iterator[tuple[Started, httpx.Client]]:
    started = command.start("serve", STUDY, "--arm", "hot", "--port", str(free_port()), *arguments)
    try:
        started.wait_for_lines("Address:", 1)
        address = re.search(r"OpenAI base URL: (http://127\.0\.0\.1:\d+)/v1", started.said)
        assert address, started.said
        with httpx.Client(base_url=address[1], timeout=60, trust_env=False) as client:
            yield started, client
    finally:
        started.kill()


def hit_rate(started: Started) -> float:
    """Ask the device of the running server."""
    environment = servers_of(started.pid)[0].environ()
    stats = control.ask(Path(environment["GGML_HOT_SOCKET"]))
    assert stats is not None
    assert stats.hot is not None
    return stats.hot.hit_rate


def test_it_answers_like_an_openai_server_and_ends_on_ctrl_c_without_a_process_left(command: Command) -> None:
    with serving(command) as (started, client):
        assert client.get("/v1/models").json()["data"]
        answer = client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        )
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 8
        assert client.get("/slots").status_code == 200, "measurements alone have it off"
        servers = servers_of(started.pid)
        started.process.send_signal(signal.SIGINT)
        ended = started.end(30)
    assert ended.returncode == 0, ended.stderr
    assert servers
    assert gone_within(servers, 0)


def test_a_prompt_that_was_read_before_is_not_read_again(command: Command) -> None:
    with serving(command) as (_, client):
        first, again = (client.post("/completion", json=QUESTION).json() for _ in range(2))
    assert first["content"] == again["content"]
    assert again["timings"]["prompt_n"] < first["timings"]["prompt_n"]


def test_what_was_used_is_kept_and_the_next_start_has_it_in_the_cache_at_once(
    command: Command, profile: Path
) -> None:
    with serving(command, "--no-profile") as (started, client):
        client.post("/completion", json=QUESTION)
        cold = hit_rate(started)
    assert not profile.exists()
    with serving(command) as (started, client):
        client.post("/completion", json=QUESTION)
        started.process.terminate()
        ended = started.end(30)
    assert ended.returncode == 0, ended.stderr
    assert f"kept for the next start: {profile}" in ended.stderr
    assert json.loads(profile.read_text())
    with serving(command) as (started, client):
        assert f"The cache starts with the experts of last time: {profile}" in started.said
        client.post("/completion", json=QUESTION)
        warm = hit_rate(started)
    assert warm > cold


def test_the_watch_line_tells_speed_and_hit_rate(command: Command) -> None:
    with serving(command, "--watch") as (started, client):
        client.post("/completion", json=QUESTION)
        deadline = time.monotonic() + 30
        while "hit rate" not in started.said:
            assert time.monotonic() < deadline, started.said
            time.sleep(0.2)
        line = next(line for line in started.said.splitlines() if "hit rate" in line)
    told = re.fullmatch(r"(\d+) tokens in 10 s \((\d\.\d) tok/s\), hit rate \d+%", line)
    assert told, line
    assert 39 <= int(told[1]) <= 41


def test_a_server_that_dies_ends_it_with_31_and_the_end_of_its_log(command: Command) -> None:
    with serving(command) as (started, _):
        servers_of(started.pid)[0].kill()
        ended = started.end(30)
    assert ended.returncode == 31
    assert "llama-server died" in ended.stderr


def test_a_port_that_is_asked_for_and_taken_ends_it_with_30(command: Command) -> None:
    with serving(command) as (_, client):
        taken = command.run("serve", STUDY, "--port", str(client.base_url.port))
    assert taken.returncode == 30


def test_the_printed_preset_serves_in_a_router(command: Command, tmp_path: Path) -> None:
    printed = command.run("serve", STUDY, "--arm", "hot", "--print", "preset", "--json")
    assert printed.returncode == 0, printed.stderr
    shown: dict[str, Any] = json.loads(printed.stdout)
    ini, port = tmp_path / "models.ini", free_port()
    ini.write_text(shown["preset"])
    router = subprocess.Popen(
        [shown["argv"][0], "--models-preset", str(ini), "--port", str(port), "--offline"],
        env={**os.environ, **shown["env"]},
        stdout=(tmp_path / "router.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            wait_for(client)
            assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["demo"]
            answer = client.post("/v1/completions", json={"model": "demo", "prompt": "The", "max_tokens": 4})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 4
            child = servers_of(router.pid)[0]
            assert child.environ()["GGML_HOT_K"] == shown["env"]["GGML_HOT_K"]
    finally:
        children = psutil.Process(router.pid).children(recursive=True)
        router.terminate()
        router.wait(30)
    assert gone_within(children, 10)


def test_a_study_without_its_report_serves_what_it_confirmed(command: Command) -> None:
    shutil.move(command.folder / "reports", command.folder / "away")
    try:
        printed = command.run("serve", STUDY, "--print", "command")
    finally:
        shutil.move(command.folder / "away", command.folder / "reports")
    assert printed.returncode == 0, printed.stderr
    assert "not confirmed" not in printed.stderr
    assert "llama-server" in printed.stdout
    assert "--no-cache-prompt" not in printed.stdout


def wait_for(client: httpx.Client, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError("the router is not healthy")
