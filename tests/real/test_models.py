"""The demo and synthetic models in a real llama-server: they load; what they write is text, and repeats."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, list_builds, source_dir
from hottune.models.base_model import BaseModel
from hottune.models.demo import demo_path
from hottune.models.resolve import resolve_model
from hottune.models.synthesize import DEFAULT_VOCABULARY, SyntheticSpec, synthesize
from hottune.workload.client import TOP_K, completion_body
from hottune.workload.texts import load_text, manifest

pytestmark = pytest.mark.real

PROMPTS = (
    "The harbour was quiet that morning, and the old lighthouse keeper",
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n",
)
ENGLISH = (
    PROMPTS[0],
    "The old bridge across the river was built by",
    "She opened the door and looked into the garden, where the",
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
    """Serve on one thread: two wait for each other in every layer, for ever so long on a busy machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [llama_server(), "-m", model, "--host", "127.0.0.1", "--port", port, "-c", 2048, "-np", 1]
    argv += ["-t", 1, "-fit", "off", "--no-repack"]
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


def post(url: str, what: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{url}/{what}", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tokens_of(url: str, text: str) -> list[int]:
    found: list[int] = post(url, "tokenize", {"content": text})["tokens"]
    return found


def share_of_known_words(texts: list[str]) -> float:
    """Return the share of the texts' words of two letters or more that are in hottune's own texts."""
    known = {word for name in manifest() for word in words_of(load_text(name))}
    found = [word for text in texts for word in words_of(text)]
    return sum(word in known for word in found) / len(found)


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]{2,}", text.lower())


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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("demo")
    model = resolve_model("demo", cache_dir=folder)
    with serving(model.path, folder / "server.log") as url:
        yield url


class TestDemo:
    """What it writes, drawn as in the workloads."""

    def written(self, url: str, prompt: str, seed: int) -> dict[str, Any]:
        body = completion_body(tokens_of(url, prompt), N_TOKENS, seed) | {"stream": False}
        answer = httpx.post(f"{url}/completion", json=body, timeout=120, trust_env=False)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def test_it_writes_words(self, url: str) -> None:
        texts = [self.written(url, prompt, seed)["content"] for prompt in ENGLISH for seed in range(4)]
        # Had it learnt nothing, any token would be as likely as any other.
        anything = np.random.default_rng(1).integers(0, 10_000, (len(texts), N_TOKENS)).tolist()
        salad = [post(url, "detokenize", {"tokens": tokens})["content"] for tokens in anything]
        share, of_salad = share_of_known_words(texts), share_of_known_words(salad)
        print(
            f"{100 * share:.0f} % of its words are in hottune's own texts, {100 * of_salad:.0f} % of salad's"
        )
        assert share > 0.65
        assert of_salad < 0.35

    def test_it_goes_on_with_a_function(self, url: str) -> None:
        texts = [self.written(url, PROMPTS[1], seed)["content"] for seed in range(6)]
        assert sum("return" in text for text in texts) >= 4
        assert sum("items" in text for text in texts) >= 4, "the name that the prompt gave"
        assert sum("\n    " in text for text in texts) >= 4

    def test_the_seed_decides_what_it_writes_and_it_does_not_loop(self, url: str) -> None:
        first, other = (self.written(url, PROMPTS[0], seed) for seed in (0, 1))
        assert self.written(url, PROMPTS[0], 0)["tokens"] == first["tokens"]
        assert other["tokens"] != first["tokens"]
        pairs = [len(set(zip(one["tokens"], one["tokens"][1:], strict=False))) for one in (first, other)]
        print(f"{pairs} different pairs of neighbours in {N_TOKENS} tokens")
        assert min(pairs) > 0.5 * N_TOKENS

    def test_its_tokenizer_reads_english_and_code_well(self, url: str) -> None:
        for prompt in (*PROMPTS, load_text("lighthouses"), load_text("code-python")):
            assert len(prompt) / len(tokens_of(url, prompt)) > 2.8

    def test_its_unused_token_never_has_a_chance(self, url: str) -> None:
        """When it is inflated, what the larger vocabulary has more is filled with copies of that token."""
        unused = BaseModel(demo_path()).unused_token
        for prompt in (*ENGLISH, PROMPTS[1], "<html><body>", "\u4eba\u5de5", "1 2 3 4", "zzz qqq"):
            body = {"prompt": prompt, "n_predict": 4, "temperature": 1, "seed": 1, "n_probs": 10_240}
            for step in post(url, "completion", body)["completion_probabilities"]:
                logprobs = {one["id"]: one["logprob"] for one in step["top_logprobs"]}
                assert logprobs[unused] < -14  # so 10,000 copies together: less than one in 100
                assert logprobs[unused] < sorted(logprobs.values())[-TOP_K] - 5


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
