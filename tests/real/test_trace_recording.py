"""`hottune trace` on real servers: the file holds what the device counted, and Ctrl-C keeps it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hottune_command import Command, gone_within, require_engine, servers_of

from hottune.routing import read_trace

pytestmark = pytest.mark.real
REQUESTS = 4  # of the workload chat


@pytest.fixture
def hottune(tmp_path: Path) -> Command:
    require_engine()
    return Command(tmp_path)


def recorded(hottune: Command, *more: str) -> dict[str, Any]:
    ended = hottune.run("trace", "demo", "--hot-k", "16", "--out", "t.hottrace", "--json", *more)
    assert ended.returncode == 0, ended.stderr
    data: dict[str, Any] = json.loads(ended.stdout)
    return data


def test_decoding_is_traced_choice_by_choice_as_the_device_counted_it(hottune: Command) -> None:
    said = recorded(hottune, "--tokens", "40")
    trace = read_trace(hottune.folder / "t.hottrace")
    assert not trace.truncated
    assert trace.n_tokens == said["summary"]["tokens"] == 40
    used = said["summary"]["layers"][0]["used"]
    assert len(trace.choices) == 40 * len(trace.layers) * used
    assert said["summary"]["prompt_tokens"] == 0
    assert said["summary"]["bytes_per_choice"] <= 2
    assert [one["first_token"] for one in said["requests"]] == [0, 10, 20, 30]
    # Of a prompt's last token only the last layer passes the cache; that is no token's whole routing.
    counted = said["hot"]["hits"] + said["hot"]["misses"]
    assert counted == len(trace.choices) + REQUESTS * used


def test_prompts_are_traced_in_batches_if_asked_for(hottune: Command) -> None:
    said = recorded(hottune, "--scale", "0.12", "--tokens", "12", "--prompts", "--weights")
    trace = read_trace(hottune.folder / "t.hottrace")
    prompts = sum(max(16, round(0.12 * tokens)) for tokens in (128, 160, 192, 224))
    assert trace.n_tokens == prompts + 12
    assert trace.has_weights
    assert (trace.choices.weight > 0).all()
    rows = trace.blocks[trace.blocks[:, 0] == 0, 2]
    assert rows[rows > 1].sum() + (rows == 1).sum() - 12 == prompts
    assert said["summary"]["prompt_tokens"] == rows[rows > 1].sum()


def test_ctrl_c_keeps_what_was_traced(hottune: Command) -> None:
    started = hottune.start("trace", "demo", "--hot-k", "16", "--out", "t.hottrace", "--tokens", "20000")
    file = hottune.folder / "t.hottrace"
    started.wait_for_lines("Tracing", 1)
    servers = servers_of(started.pid)
    deadline = time.monotonic() + 60
    while not file.exists() or file.stat().st_size < 1000:
        assert time.monotonic() < deadline, started.said
        time.sleep(0.05)
    started.process.send_signal(signal.SIGINT)
    ended = started.end(30)
    assert ended.returncode == 130, ended.stderr
    assert "What was traced so far is in" in ended.stderr
    assert gone_within(servers, 5)
    trace = read_trace(file)
    assert trace.n_tokens > 100
    assert not trace.truncated


def test_the_server_is_not_even_started_for_a_file_that_must_not_be_overwritten(hottune: Command) -> None:
    (hottune.folder / "t.hottrace").write_text("dear diary")
    ended = hottune.run("trace", "demo", "--out", "t.hottrace")
    assert ended.returncode == 42
    assert "not overwritten" in ended.stderr
    assert (hottune.folder / "t.hottrace").read_text() == "dear diary"
