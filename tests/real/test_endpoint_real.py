"""`hottune bench --endpoint` against a real llama-server, whose own clock is beside the client's.

How near the two clocks are is measured by bench/endpoint_agreement.py; here only what must hold on a busy
machine, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hottune_command import Command, require_engine

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, find_engine
from hottune.engine.launch import launch
from hottune.engine.server import Server
from hottune.models.resolve import resolve_model
from hottune.placement import Placement
from hottune.report.endpoint import EndpointResult

pytestmark = pytest.mark.real
WORK = ("--workload", "document", "--scale", "0.2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    require_engine()
    engine = find_engine(BuildOptions(backend="cpu"), cache_dir=cache_dir())
    assert engine is not None
    model = resolve_model("demo", cache_dir=cache_dir())
    placement = Placement(n_cpu_moe=model.shape.n_layers, threads=1, context=1024)
    log = tmp_path_factory.mktemp("endpoint") / "server.log"
    with launch(engine, model, placement, gpu=None, ceiling_mib=0, log_path=log) as started:
        yield started


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_client_and_server_agree_on_tokens_and_nearly_on_times(
    server: Server, command: Command, route: str
) -> None:
    ended = command.run("bench", "--endpoint", server.base_url, f"--{route}", *WORK, "--json")
    assert ended.returncode == 0, ended.stderr
    result = EndpointResult.model_validate_json(ended.stdout)
    assert result.route.startswith(route)
    assert result.server["owned_by"] == "llamacpp"
    assert result.model == "demo.gguf", "the folder in its name is not kept"
    assert result.prompts == "exact"
    warm = [one for one in result.passes[0].requests if not one.warmup]
    for one in warm:
        told = one.server
        assert told is not None, "llama-server tells its own times"
        assert (one.processed_tokens, one.output_tokens) == (told.prompt_tokens, told.output_tokens)
        assert one.output_tokens == one.asked_output_tokens, "it takes ignore_eos"
        assert abs(one.prompt_tokens - one.asked_prompt_tokens) <= 4
        assert one.ttft_ms > told.prefill_ms
        assert one.turn_s * 1000 > told.prefill_ms + told.decode_ms
    # The machine may be busy, and so one of them late; not all.
    assert min(one.ttft_ms / one.server.prefill_ms for one in warm if one.server) < 1.3
    assert min(abs(one.decode_ms / one.server.decode_ms - 1) for one in warm if one.server) < 0.3
    assert "stopped-early" not in [note.code for note in result.warnings]


def test_two_measurements_of_one_server_compare(server: Server, command: Command) -> None:
    first = command.run("bench", "--endpoint", server.base_url, *WORK, "--replicates", "2", "--label", "a")
    assert first.returncode == 0, first.stderr
    ended = command.run("compare", "endpoint-a", f"{server.base_url}/v1", "--passes", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["differences"] == []
    assert set(found["against_first"][0]["changes"]) == {"decode", "prefill", "turn"}
    assert {"client-timed", "one-server", "loopback"} <= {note["code"] for note in found["warnings"]}


def test_a_context_that_is_too_short_says_so(server: Server, command: Command) -> None:
    ended = command.run("bench", "--endpoint", server.base_url, "--workload", "document")
    assert ended.returncode == 33
    assert "does not fit into the context" in ended.stderr
