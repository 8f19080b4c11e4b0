"""The workload client against a real llama-server, with a tiny dense model made on the spot.

The model's tokenizer knows single bytes, so that random weights often produce halves of UTF-8 characters:
tokens for which the server sends no event of their own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest

from hottune.cli.common import cache_dir
from hottune.engine.build import list_builds
from hottune.errors import BadSettingError
from hottune.outcomes import Engagement
from hottune.workload.client import RequestFailed, drive
from hottune.workload.facts import Request
from hottune.workload.summary import measurement, same_text
from hottune.workload.workloads import context_needed, load_workload, make_workload

pytestmark = pytest.mark.real

CONTEXT = 1024


def write_tiny_model(path: Path) -> None:
    """Write a random two-layer llama with a byte tokenizer that puts a beginning-of-sequence first."""
    n_embd, n_ff, n_layers, n_heads = 32, 64, 2, 2
    letters = "▁ abcdefghijklmnopqrstuvwxyz"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(letters)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // n_heads)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    rng = np.random.default_rng(7)
    shapes = {"token_embd": (len(tokens), n_embd), "output": (len(tokens), n_embd), "output_norm": (n_embd,)}
    for layer in range(n_layers):
        block = {"attn_norm": (n_embd,), "ffn_norm": (n_embd,), "ffn_down": (n_embd, n_ff)}
        block |= {f"attn_{name}": (n_embd, n_embd) for name in ("q", "k", "v", "output")}
        block |= {f"ffn_{name}": (n_ff, n_embd) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        values = np.ones(shape) if "norm" in name else rng.normal(0, 0.3, shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_server() -> Path:
    """Return the executable: from HOTTUNE_TEST_LLAMA_BIN, or the newest build in the cache folder."""
    folder = os.environ.get("HOTTUNE_TEST_LLAMA_BIN")
    if folder:
        return Path(folder) / "llama-server"
    builds = list_builds(cache_dir())
    if not builds:
        pytest.skip("no llama-server: run `hottune build`, or set HOTTUNE_TEST_LLAMA_BIN to its folder")
    return builds[0].llama_server


class Running:
    def __init__(self, process: subprocess.Popen[bytes], base_url: str) -> None:
        self.process = process
        self.base_url = base_url


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    model = tmp_path / "tiny.gguf"
    write_tiny_model(model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [llama_server(), "-m", model, "--host", "127.0.0.1", "--port", port, "-c", CONTEXT, "-np", 1]
    argv += ["-t", 1, "-fit", "off", "--cache-ram", 0, "--no-warmup"]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in argv], stdout=log, stderr=log, start_new_session=True
        )
    running = Running(process, f"http://127.0.0.1:{port}")
    try:
        wait_for_health(running, tmp_path / "server.log")
        yield running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_health(running: Running, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if httpx.get(f"{running.base_url}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail(f"llama-server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def test_a_workload_becomes_a_measurement_and_greedy_text_repeats(server: Running) -> None:
    workload = load_workload("mixed", scale=0.1)
    assert context_needed(workload) <= CONTEXT
    first, second = (drive(server.base_url, workload) for _ in range(2))
    assert [sample.workload for sample in first] == ["document", "chat", "document", "code"]
    assert [sample.warmup for sample in first] == [True, False, False, False]
    assert same_text(first, second)
    assert len({sample.text_sha256 for sample in first}) > 1
    for sample in first:
        assert 0 < sample.ttft_ms < sample.turn_s * 1000
        assert sample.output_tokens - 4 <= len(sample.token_ms) < sample.output_tokens
        assert sample.prefill_ms + sample.decode_ms <= sample.turn_s * 1000 * 1.02
    engagement = Engagement(
        gpu_device="none", vram_model_mib=0, vram_kv_mib=0, vram_compute_mib=0, host_model_mib=1
    )
    result = measurement(first, vram_peak_mib=0, vram_source="virtual", load_s=1, engagement=engagement)
    assert result.decode_tok_s > 0
    assert result.token_ms_p50 <= result.token_ms_p95 <= result.token_ms_p99


def test_the_servers_own_decode_speed_is_ours(server: Running) -> None:
    """llama-server divides by the decode steps, one fewer than the tokens; so do we."""
    body = {"prompt": [1, 5, 6, 7], "n_predict": 20, "ignore_eos": True, "cache_prompt": False}
    timings = httpx.post(f"{server.base_url}/completion", json=body, trust_env=False).json()["timings"]
    assert timings["predicted_n"] == 20
    assert timings["predicted_per_second"] == pytest.approx(1000 * 19 / timings["predicted_ms"])


def test_an_answer_that_does_not_fit_the_context_is_a_failure(server: Running) -> None:
    requests = [Request(text="bridges", prompt_tokens=CONTEXT - 20, output_tokens=40)]
    with pytest.raises(RequestFailed, match="the context is too small"):
        drive(server.base_url, make_workload("long", requests, warmup_requests=0))


def test_a_prompt_that_does_not_fit_the_context_is_a_failure(server: Running) -> None:
    requests = [Request(text="bridges", prompt_tokens=CONTEXT + 20, output_tokens=16)]
    with pytest.raises(RequestFailed, match=r"/completion with 400: .*context size"):
        drive(server.base_url, make_workload("long", requests, warmup_requests=0))


def test_the_smallest_sufficient_context_is_as_computed(server: Running) -> None:
    requests = [Request(text="bridges", prompt_tokens=CONTEXT - 41, output_tokens=40)]
    workload = make_workload("long", requests, warmup_requests=0)
    assert context_needed(workload) == CONTEXT
    assert drive(server.base_url, workload)[0].output_tokens == 40


def test_a_text_that_is_too_short_is_an_error(server: Running) -> None:
    requests = [Request(text="chat-bread", prompt_tokens=100_000, output_tokens=16)]
    with pytest.raises(BadSettingError, match="'chat-bread' has"):
        drive(server.base_url, make_workload("long", requests, warmup_requests=0))


def test_a_server_killed_in_the_middle_is_a_failure(server: Running) -> None:
    requests = [Request(text="chat-bread", prompt_tokens=16, output_tokens=1000)] * 200
    workload = make_workload("endless", requests)
    killer = threading.Timer(0.3, os.killpg, (server.process.pid, signal.SIGKILL))

    def kill_soon(line: str) -> None:
        if line.startswith("request 2 "):
            killer.start()

    with pytest.raises(RequestFailed, match="the connection to the server broke after") as caught:
        drive(server.base_url, workload, on_progress=kill_soon)
    assert not caught.value.timed_out
