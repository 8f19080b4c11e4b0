"""Inflated models in a real llama-server: logits and greedy text of the small model.

llama.cpp quantizes activations, in blocks of 32 for some types and of 256 for others. So two files with the
same weights differ by some noise, each also from exact arithmetic; what is asked is that an inflated model
is no further from exact than the small model itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from small_moe import Pass, SmallSpec, byte_words, write_small_moe
from test_models import serving

from hottune.cli.common import cache_dir
from hottune.models.base_model import BaseModel
from hottune.models.inflate import inflate
from hottune.models.resolve import resolve_model
from hottune.models.target import Recipe, Target, target_of_numbers

pytestmark = pytest.mark.real

SPEC = SmallSpec(
    n_layers=6,
    n_embd=256,
    head_dim=128,
    n_experts=32,
    n_used=4,
    own_head=True,
    words=byte_words(700),
    gain=0.15,
    sharpness=6.0,
)
RANDOM = np.random.default_rng(4)
PROMPTS: list[list[int]] = [RANDOM.integers(0, 600, 20).tolist() for _ in range(8)]
COMPARED = 50  # most likely tokens of each prompt

TEXTS = (
    "The harbour was quiet that morning, and the old",
    "def read_lines(path):\n    with open(path) as file:\n",
    "This package provides the development files for",
    "Permission is hereby granted, free of charge, to any person",
)
N_TOKENS = 64
NEAR_TIE = 0.3  # nats by which the best token leads


def large(base: BaseModel, recipe: Recipe, times: int = 1) -> Target:
    """Return a target of a few hundred MB: two layers more, wider, with more tokens."""
    return target_of_numbers(
        n_layers=base.n_layers + 2,
        n_experts=base.n_experts * times,
        n_used=base.n_used,
        n_embd=2048,
        n_ff=256,
        q_width=4096,
        kv_width=512,
        recipe=recipe,
        n_vocab=base.n_vocab + 300,
    )


def complete(url: str, prompt: list[int] | str, n_tokens: int, n_probs: int) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
        "n_probs": n_probs,
    }
    answer = httpx.post(f"{url}/completion", json=body, timeout=300, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write_small_moe(path, SPEC)
    return BaseModel(path)


@pytest.fixture(scope="module")
def exact(base: BaseModel) -> list[NDArray[np.float64]]:
    logits = [Pass(base.path, prompt).logits[-1] for prompt in PROMPTS]
    return [one - one.max() - np.log(np.exp(one - one.max()).sum()) for one in logits]


@pytest.fixture(scope="module")
def own_error(
    base: BaseModel, exact: list[NDArray[np.float64]], tmp_path_factory: pytest.TempPathFactory
) -> float:
    return mean_error(base.path, exact, tmp_path_factory.mktemp("log") / "server.log")


def mean_error(model: Path, exact: list[NDArray[np.float64]], log: Path) -> float:
    """Return the mean error of the likeliest tokens' log-probabilities, in nats."""
    errors = []
    with serving(model, log) as url:
        for prompt, wanted in zip(PROMPTS, exact, strict=True):
            answer = complete(url, prompt, 1, 4 * COMPARED)
            top = answer["completion_probabilities"][0]["top_logprobs"]
            got = {one["id"]: one["logprob"] for one in top}
            likely = np.argsort(-wanted)[:COMPARED]
            assert wanted.max() - wanted[top[0]["id"]] < NEAR_TIE
            errors.append(np.mean([abs(got[token] - wanted[token]) for token in likely]))
    return float(np.mean(errors))


class TestLogits:
    @pytest.mark.parametrize(
        ("recipe", "times"),
        [(Recipe.Q4_K_M, 1), (Recipe.Q5_K, 1), (Recipe.Q8_0, 1), (Recipe.Q4_K_M, 2)],
    )
    def test_they_are_as_near_to_exact_as_the_small_models_own(
        self,
        recipe: Recipe,
        times: int,
        base: BaseModel,
        exact: list[NDArray[np.float64]],
        own_error: float,
        tmp_path: Path,
    ) -> None:
        path = tmp_path / "large.gguf"
        assert inflate(path, base, large(base, recipe, times), base_name="small").exact
        error = mean_error(path, exact, tmp_path / "server.log")
        path.unlink()
        print(f"{recipe} with {times}x the experts: {error:.3f} nats off, the small model {own_error:.3f}")
        assert error < 1.5 * own_error


@pytest.fixture(scope="module")
def demo() -> BaseModel:
    return BaseModel(resolve_model("demo", cache_dir=cache_dir()).path)


class TestText:
    def texts(self, model: Path, log: Path) -> list[dict[str, Any]]:
        with serving(model, log) as url:
            return [complete(url, text, N_TOKENS, 8) for text in TEXTS]

    def test_the_greedy_text_is_the_demos_until_a_near_tie(self, demo: BaseModel, tmp_path: Path) -> None:
        path = tmp_path / "large.gguf"
        assert inflate(path, demo, large(demo, Recipe.Q4_K_M), base_name="demo").exact
        ours = self.texts(path, tmp_path / "large.log")
        path.unlink()
        theirs = self.texts(demo.path, tmp_path / "small.log")
        equal = 0
        for text, mine, wanted in zip(TEXTS, ours, theirs, strict=True):
            pairs = enumerate(zip(mine["tokens"], wanted["tokens"], strict=True))
            parted = next((at for at, (a, b) in pairs if a != b), N_TOKENS)
            equal += parted
            print(f"{text!r}: equal for {parted} of {N_TOKENS} tokens")
            if parted < N_TOKENS:
                top = wanted["completion_probabilities"][parted]["top_logprobs"]
                behind = {one["id"]: top[0]["logprob"] - one["logprob"] for one in top}
                assert behind.get(mine["tokens"][parted], np.inf) < NEAR_TIE
        assert equal > N_TOKENS * len(TEXTS) / 2
