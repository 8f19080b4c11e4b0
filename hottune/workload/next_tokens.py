"""What a server expects next at each position of a fixed text: from it comes the divergence beside speed.

The text's tokens are given one more at a time (teacher forcing): a prompt of n tokens, then of n + 1, and so
on, one slot keeping what it has. Each request after the first so decodes exactly one token, as answers do,
and with the cache on it passes through the cache. The server says how many tokens it processed, so this is
checked and not hoped for.

llama-server (b11434) takes `completion_probabilities` from the softmax of the raw logits over the whole
vocabulary, unless `post_sampling_probs` is set (get_token_probabilities in tools/server/server-common.cpp),
so no sampler setting touches them. A request's `cache_prompt` wins over the server's --no-cache-prompt.
"""

from __future__ import annotations

import math
from typing import Any

import httpx

from hottune.outcomes import NextTokens
from hottune.workload.client import CONNECT_TIMEOUT_S, cut_prompt, failure_of, require_ok
from hottune.workload.facts import Request
from hottune.workload.stream import WrongAnswer

TEXT = "lighthouses"
#: Tokens that are given at once before the first position.
PREFIX_TOKENS = 64
#: Positions that are scored, and most probable tokens that are kept of each.
POSITIONS = 64
TOP = 32
#: Shortest context, in tokens, in which all positions can be scored.
CONTEXT_NEEDED = PREFIX_TOKENS + POSITIONS + 1
#: Enough to see that logits are finite, after a prompt and after a step of decoding.
FEW_POSITIONS = 2

#: What llama-server writes for log 0 (single precision's lowest number), or close to it.
_NEVER = -100.0
_DECIMALS = 6


class CannotScore(Exception):
    """The server cannot go on with what it has processed (recurrent models, for example): nothing to compare.

    It is no failure of the placement.
    """


def score(
    base_url: str,
    *,
    positions: int = POSITIONS,
    prefix_tokens: int = PREFIX_TOKENS,
    request_timeout_s: float = 600.0,
) -> NextTokens:
    """Return what the server expects next at each position.

    Args:
        base_url: where llama-server listens.
        positions: how many.
        prefix_tokens: tokens before the first position.
        request_timeout_s: seconds that one of the short requests may take.

    Raises:
        RequestFailed: the server died, answered with an error, or took too long.
        WrongAnswer: its logits are not finite, or it gave no probabilities.
        CannotScore: it does not process the text token by token.
    """
    timeout = httpx.Timeout(request_timeout_s, connect=min(CONNECT_TIMEOUT_S, request_timeout_s))
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    headers = {"Connection": "close"}
    with httpx.Client(base_url=base_url, timeout=timeout, headers=headers, trust_env=False) as http:
        length = prefix_tokens + positions - 1
        tokens = cut_prompt(http, Request(text=TEXT, prompt_tokens=length, output_tokens=1))
        for n_tokens in range(prefix_tokens, length + 1):
            answer = _ask(http, tokens[:n_tokens], go_on=bool(ids))
            if ids:
                _require_one_step(answer)
            top = _top(answer)
            ids.append(list(top))
            logprobs.append(list(top.values()))
    return NextTokens(text=TEXT, prefix_tokens=prefix_tokens, ids=ids, logprobs=logprobs)


def _ask(http: httpx.Client, prompt: list[int], *, go_on: bool) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "n_predict": 1,
        "ignore_eos": True,  # of the sampler alone: the reported probabilities are those before it
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


def _top(answer: dict[str, Any]) -> dict[int, float]:
    """Return the most probable tokens of the one position that was asked for, in order.

    Raises:
        WrongAnswer: there are none, or a probability is not a number.
    """
    try:
        (position,) = answer["completion_probabilities"]
        listed = [(one["id"], one["logprob"]) for one in position["top_logprobs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise WrongAnswer("the server gave no probabilities of the next token") from error
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
