"""What a server expects next at each position of a fixed text: from it comes the divergence beside speed.

The text's tokens are given one more at a time (teacher forcing): a prompt of n tokens, then of n + 1, and so
on, one slot keeping what it has. Each request after the first so decodes exactly one token, as answers do,
and with the cache on it passes through the cache. The server says how many tokens it processed, so this is
checked and not hoped for.

llama-server (b11434) takes `completion_probabilities` from the softmax of the raw logits over the whole
vocabulary, unless `post_sampling_probs` is set (get_token_probabilities in tools/server/server-common.cpp),
so no sampler setting touches them. It reports none for a token that ends within a character, so a bias makes
the sampler choose a whole word. A request's `cache_prompt` wins over the server's --no-cache-prompt.
"""

from __future__ import annotations

import math
from typing import Any

import httpx

from hottune.outcomes import NextTokens
from hottune.workload.client import CONNECT_TIMEOUT_S, cut_prompt, failure_of, require_ok, tokenize
from hottune.workload.facts import Request
from hottune.workload.stream import WrongAnswer

TEXT = "lighthouses"
#: Tokens that are given at once before the first position. With sliding-window attention llama-server goes on
#: only from a prompt longer than the window (128 tokens in gpt-oss, 1,024 in Gemma). The first to do counts.
PREFIXES = (160, 1100)
#: Positions that are scored, and most probable tokens that are kept of each.
POSITIONS = 64
TOP = 32
#: Tokens that a look at the logits generates: one after the prompt, one after a step of decoding.
_LOOK_TOKENS = 2

#: What llama-server writes for log 0 (single precision's lowest number), or close to it.
_NEVER = -100.0
#: What the sampler is made to choose, and how much is added to its logit.
_WORD, _BIAS = "the", 10_000.0
_DECIMALS = 6


class CannotScore(Exception):
    """The text cannot be given token by token: a context too short, or a server that begins anew each time.

    It is no failure of the placement.
    """


def score(
    base_url: str, *, context: int, positions: int = POSITIONS, request_timeout_s: float = 600.0
) -> NextTokens:
    """Return what the server expects next at each position.

    Args:
        base_url: where llama-server listens.
        context: of a slot, tokens.
        positions: how many.
        request_timeout_s: seconds that one of the short requests may take.

    Raises:
        RequestFailed: the server died, answered with an error, or took too long.
        WrongAnswer: its logits are not finite, or it gave no probabilities.
        CannotScore: it does not process the text token by token.
    """
    why = CannotScore(f"a context of {context} tokens is too short")
    with _client(base_url, request_timeout_s) as http:
        for prefix_tokens in PREFIXES:
            if prefix_tokens + positions < context:
                try:
                    return _score(http, prefix_tokens, positions)
                except CannotScore as reason:
                    why = reason
    raise why


def require_finite(base_url: str, *, request_timeout_s: float = 600.0) -> None:
    """Look at the logits after a short prompt and after a step of decoding.

    Raises:
        RequestFailed: as `score`.
        WrongAnswer: they are not finite, or it gave no probabilities.
    """
    with _client(base_url, request_timeout_s) as http:
        prompt = cut_prompt(http, Request(text=TEXT, prompt_tokens=_LOOK_TOKENS, output_tokens=_LOOK_TOKENS))
        _tops(_ask(http, prompt, _word(http), n_tokens=_LOOK_TOKENS, go_on=False), _LOOK_TOKENS)


def _word(http: httpx.Client) -> int:
    ids = tokenize(http, _WORD, special=False)
    if not ids:
        raise WrongAnswer(f"/tokenize gave no token for the word '{_WORD}'")
    return ids[-1]


def _client(base_url: str, request_timeout_s: float) -> httpx.Client:
    timeout = httpx.Timeout(request_timeout_s, connect=min(CONNECT_TIMEOUT_S, request_timeout_s))
    return httpx.Client(base_url=base_url, timeout=timeout, headers={"Connection": "close"}, trust_env=False)


def _score(http: httpx.Client, prefix_tokens: int, positions: int) -> NextTokens:
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    length = prefix_tokens + positions - 1
    tokens = cut_prompt(http, Request(text=TEXT, prompt_tokens=length, output_tokens=1))
    word = _word(http)
    for n_tokens in range(prefix_tokens, length + 1):
        answer = _ask(http, tokens[:n_tokens], word, n_tokens=1, go_on=bool(ids))
        if ids:
            _require_one_step(answer)
        (top,) = _tops(answer, 1)
        ids.append(list(top))
        logprobs.append(list(top.values()))
    return NextTokens(text=TEXT, prefix_tokens=prefix_tokens, ids=ids, logprobs=logprobs)


def _ask(http: httpx.Client, prompt: list[int], word: int, *, n_tokens: int, go_on: bool) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": n_tokens,
        "logit_bias": [[word, _BIAS]],  # of the sampler alone: the probabilities are those before it
        "cache_prompt": go_on,  # what the workload left in the slot is not taken over
        "id_slot": 0,
        "n_probs": TOP,
        "post_sampling_probs": False,
        "samplers": ["top_k"],
        "top_k": 1,
    }
    try:
        answer = http.post("/completion", json=body)
    except httpx.HTTPError as error:
        raise failure_of(error) from error
    require_ok(answer)
    try:
        found = answer.json()
    except ValueError as error:
        raise WrongAnswer(f"/completion gave no JSON: {answer.text[:80]!r}") from error
    if not isinstance(found, dict):
        raise WrongAnswer(f"/completion gave no object: {answer.text[:80]!r}")
    return found


def _require_one_step(answer: dict[str, Any]) -> None:
    timings = answer.get("timings")
    processed = timings.get("prompt_n") if isinstance(timings, dict) else None
    if processed != 1:
        raise CannotScore(f"{processed} tokens were processed for one more")


def _tops(answer: dict[str, Any], n_tokens: int) -> list[dict[int, float]]:
    """Return the most probable tokens of each generated token's position, in order.

    Raises:
        WrongAnswer: there are none, or a probability is not a number.
    """
    try:
        listed = [
            [(one["id"], one["logprob"]) for one in position["top_logprobs"]]
            for position in answer["completion_probabilities"]
        ]
    except (KeyError, TypeError) as error:
        raise WrongAnswer("the server gave no probabilities of the next token") from error
    tops = [_top(position) for position in listed]
    if len(tops) != n_tokens:
        raise WrongAnswer(f"the server gave probabilities of {len(tops)} tokens, not {n_tokens}")
    return tops


def _top(listed: list[tuple[Any, Any]]) -> dict[int, float]:
    top: dict[int, float] = {}
    for token, logprob in listed:
        # JSON has no NaN: llama-server writes null.
        if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not math.isfinite(logprob):
            raise WrongAnswer(f"the logits are not finite: the log-probability of a token is {logprob}")
        if type(token) is not int or logprob > 1e-3:
            raise WrongAnswer(f"token {token!r} with log-probability {logprob} is none")
        if logprob > _NEVER:
            top[token] = round(min(0.0, float(logprob)), _DECIMALS)
    if not top:
        raise WrongAnswer("the server gave no probabilities of the next token")
    return top
