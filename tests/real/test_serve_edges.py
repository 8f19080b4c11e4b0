"""`hottune serve` at the edges: other addresses, early signals, a damaged profile, taken ports."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from hottune_command import Command, Started, gone_within, servers_of, small_study, wait_for_servers

from hottune.cli.common import cache_dir
from hottune.engine.ports import free_port
from hottune.models.resolve import resolve_model

pytestmark = pytest.mark.real

STUDY = "small"
WARNING = "others on the network can use it"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder with the report of a small study."""
    return small_study(tmp_path_factory.mktemp("work"), STUDY)


@pytest.fixture
def profile() -> Iterator[Path]:
    """Where the demo's profile is kept; what the user has there is put back at the end."""
    fingerprint = resolve_model("demo", cache_dir=cache_dir()).fingerprint
    path = cache_dir() / "profiles" / f"{fingerprint[:16]}.json"
    path.parent.mkdir(exist_ok=True)
    before = path.read_bytes() if path.exists() else None
    yield path
    path.unlink(missing_ok=True)
    path.with_suffix(".damaged").unlink(missing_ok=True)
    if before is not None:
        path.write_bytes(before)


@contextmanager
def serving(command: Command, *arguments: str) -> Iterator[tuple[Started, httpx.Client]]:
    started = command.start("serve", STUDY, "--arm", "hot", *arguments)
    try:
        started.wait_for_lines("Address:", 1)
        address = re.search(r"Address: (http://\S+)", started.said)
        assert address, started.said
        with httpx.Client(base_url=address[1], timeout=60, trust_env=False) as client:
            yield started, client
    finally:
        started.kill()


def end(started: Started) -> str:
    """End it as a user does; return what it said."""
    servers = servers_of(started.pid)
    started.process.terminate()
    ended = started.end(30)
    assert ended.returncode == 0, ended.stderr
    assert gone_within(servers, 0)
    return ended.stderr


def ask(client: httpx.Client) -> None:
    answer = client.post("/completion", json={"prompt": "The tide", "n_predict": 20, "temperature": 0})
    assert answer.status_code == 200
    assert answer.json()["content"]


# --- addresses ---


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost"])
def test_it_serves_on_any_loopback_address_without_a_warning(command: Command, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except OSError:
        pytest.skip(f"this machine has no {host}")
    port = free_port()
    with serving(command, "--host", host, "--port", str(port), "--no-profile") as (started, client):
        shown = f"[{host}]" if ":" in host else host
        assert f"Address: http://{shown}:{port}  OpenAI base URL: http://{shown}:{port}/v1" in started.said
        ask(client)
        assert WARNING not in started.said
        end(started)


def test_what_others_can_reach_is_said_unless_a_key_is_asked_for(command: Command) -> None:
    with serving(command, "--host", "0.0.0.0", "--port", str(free_port()), "--no-profile") as (
        started,
        client,
    ):
        assert client.get("/health").status_code == 200
        assert WARNING in end(started)
    key = ("--", "--api-key", "secret")
    options = ("--host", "0.0.0.0", "--port", str(free_port()), "--no-profile")
    with serving(command, *options, *key) as (started, client):
        assert client.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code in (200, 401)
        assert client.post("/completion", json={"prompt": "a"}).status_code == 401
        assert WARNING not in end(started)


def test_an_address_of_another_machine_is_refused_in_words(command: Command) -> None:
    for port in ((), ("--port", str(free_port()))):
        ended = command.run("serve", STUDY, "--host", "192.0.2.1", *port)
        assert ended.returncode == 42, ended.stderr
        assert "no address of this machine" in ended.stderr
        assert "Traceback" not in ended.stderr


# --- signals before health ---


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_it_is_healthy_leaves_no_server(
    command: Command, number: signal.Signals, code: int
) -> None:
    started = command.start("serve", STUDY, "--arm", "hot", "--port", str(free_port()))
    try:
        servers = wait_for_servers(started.pid)
        for one in servers:
            os.kill(one.pid, signal.SIGSTOP)  # it will never be healthy
        assert "Address:" not in started.said
        started.process.send_signal(number)
        ended = started.end(60)
    finally:
        started.kill()
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert gone_within(servers, 0)


# --- profiles ---


@pytest.mark.parametrize("content", [b"", b'{"version": 1, "layers": {"blk', b"\xff\xfe no text"])
def test_a_damaged_profile_is_moved_away_and_a_good_one_written(
    command: Command, profile: Path, content: bytes
) -> None:
    profile.write_bytes(content)
    with serving(command, "--port", str(free_port())) as (started, client):
        ask(client)
        said = end(started)
    assert "Warning: the cache starts empty" in said
    assert "experts of last time" not in said
    assert profile.with_suffix(".damaged").read_bytes() == content
    assert f"kept for the next start: {profile}" in said
    assert json.loads(profile.read_text())["layers"]


def test_without_a_profile_nothing_is_said_to_be_kept(command: Command, profile: Path) -> None:
    profile.write_text('{"version": 1, "layers": {}}')
    with serving(command, "--port", str(free_port()), "--no-profile") as (started, client):
        ask(client)
        assert "kept for the next start" not in end(started)
    assert profile.read_text() == '{"version": 1, "layers": {}}'


# --- ports ---


def test_a_taken_port_is_refused_at_once_in_words(command: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        ended = command.run("serve", STUDY, "--port", str(port))
        assert ended.returncode == 30, ended.stderr
        assert f"Port {port} on 127.0.0.1 cannot be used" in ended.stderr
        assert "Choose another with --port" in ended.stderr
        assert time.monotonic() - began < 60
        # The same port of another address is another one.
        with serving(command, "--host", "127.0.0.2", "--port", str(port), "--no-profile") as (_, client):
            ask(client)


def test_where_the_usual_port_is_taken_another_one_is(command: Command) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which does as well
        with serving(command, "--no-profile") as (_, client):
            assert client.base_url.port != 8080
            ask(client)
