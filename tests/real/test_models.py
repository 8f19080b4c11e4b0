"""Synthetic models in a real llama-server: they load, and their text is varied, repeatable and finite."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, list_builds, source_dir
from hottune.models.resolve import resolve_model
from hottune.models.synthesize import DEFAULT_VOCABULARY, DEMO_VOCABULARY, SyntheticSpec, synthesize

pytestmark = pytest.mark.real

PROMPTS = (
    "The harbour was quiet that morning, and the old lighthouse keeper",
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n",
)
N_TOKENS = 100


def llama_server() -> Path:
    """Return the executable: from HOTTUNE_TEST_LLAMA_BIN, or the newest build in the cache folder."""
    folder = os.environ.get("HOTTUNE_TEST_LLAMA_BIN")
    if folder:
        return Path(folder) / "llama-server"
    builds = list_builds(cache_dir())
    if not builds:
        pytest.skip("no llama-server: run `hottune build`, or set HOTTUNE_TEST_LLAMA_BIN to its folder")
    return builds[0].llama_server


def vocabulary(name: str) -> Path:
    """Return a vocabulary from HOTTUNE_TEST_LLAMA_SOURCE, or from the source in the cache folder."""
    given = os.environ.get("HOTTUNE_TEST_LLAMA_SOURCE")
    source = Path(given) if given else source_dir(BuildOptions(), cache_dir=cache_dir())
    return source / "models" / name


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [llama_server(), "-m", model, "--host", "127.0.0.1", "--port", port, "-c", 2048, "-np", 1]
    argv += ["-t", 2, "-fit", "off", "--no-repack"]
    with log.open("wb") as stream:
        server = subprocess.Popen([str(part) for part in argv], stdout=stream, stderr=stream, process_group=0)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline and not healthy(url):
            time.sleep(0.1)
        assert healthy(url), log.read_text(errors="replace")[-2000:]
        yield url
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def complete(url: str, prompt: str) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": N_TOKENS,
        "temperature": 0,
        "top_k": 1,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
        "n_probs": 2,
    }
    answer = httpx.post(f"{url}/completion", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def assert_healthy_text(url: str) -> None:
    answers = [complete(url, prompt) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = answer["tokens"]
        assert len(tokens) == N_TOKENS
        assert len(set(tokens)) > 0.7 * N_TOKENS  # no loop, no constant token
        assert answer["content"].isascii()
        tops = [step["top_logprobs"] for step in answer["completion_probabilities"]]
        leads = [first["logprob"] - second["logprob"] for first, second in tops]
        assert 0.4 < sum(leads) / N_TOKENS < 3  # neither all ties nor one token that always wins
        assert complete(url, prompt)["content"] == answer["content"]
    assert answers[0]["content"] != answers[1]["content"]


def test_the_demo_loads_and_generates_varied_text_fast(tmp_path: Path) -> None:
    source = vocabulary(DEMO_VOCABULARY).parent.parent
    model = resolve_model("demo", cache_dir=tmp_path, source_dir=source)
    with serving(model.path, tmp_path / "server.log") as url:
        assert_healthy_text(url)
        assert complete(url, PROMPTS[0])["timings"]["predicted_per_second"] > 60


def test_its_tokenizer_reads_english_and_code_well(tmp_path: Path) -> None:
    source = vocabulary(DEMO_VOCABULARY).parent.parent
    model = resolve_model("demo", cache_dir=tmp_path, source_dir=source)
    with serving(model.path, tmp_path / "server.log") as url:
        for prompt in PROMPTS:
            answer = httpx.post(f"{url}/tokenize", json={"content": prompt}, trust_env=False).json()
            assert len(prompt) / len(answer["tokens"]) > 2.8


@pytest.mark.parametrize("quant", ["Q4_K", "Q8_0", "F16"])
def test_every_weight_type_loads_and_generates(quant: str, tmp_path: Path) -> None:
    spec = SyntheticSpec(
        n_layers=4,
        n_experts=32,
        n_used=4,
        n_embd=256,
        n_ff_expert=256,
        n_head=4,
        n_head_kv=2,
        head_dim=64,
        quant=quant,
    )
    model = tmp_path / "model.gguf"
    synthesize(model, spec, tokenizer_vocab=vocabulary(DEFAULT_VOCABULARY))
    with serving(model, tmp_path / "server.log") as url:
        assert_healthy_text(url)
