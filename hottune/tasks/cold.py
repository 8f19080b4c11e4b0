"""Cold start: what the first request to a fresh server got, while the cache was empty."""

from __future__ import annotations

from itertools import chain
from statistics import fmean

from hottune.outcomes import Measurement, RequestSample
from hottune.report.schema import Arm

#: Tokens of the first answer that count as the beginning, and tokens after them that make a comparison.
FIRST_TOKENS = 100
_LEAST_LATER = 20


def with_cold_start(arm: Arm) -> Arm:
    """Return the arm with its warm-up requests' numbers, each a mean over its replicates.

    "Cold" is the cache, not the process: llama-server has run an empty batch before, and the weights are in
    memory. The speed of the first tokens is that between streamed tokens, by the client's clock.
    """
    found = [one.outcome for one in arm.replicates if isinstance(one.outcome, Measurement)]
    servers = [cold for one in found if (cold := [each for each in one.requests if each.warmup])]
    if not servers:
        return arm
    first, later = _halves(servers)
    return arm.model_copy(
        update={
            "cold_turn_s": fmean(fmean(one.turn_s for one in cold) for cold in servers),
            "cold_decode_tok_s": fmean(_decode_tok_s(cold) for cold in servers),
            "cold_first_100_tok_s": first,
            "cold_later_tok_s": later,
        }
    )


def _decode_tok_s(requests: list[RequestSample]) -> float:
    steps = sum(one.output_tokens - 1 for one in requests)
    return steps / (sum(one.decode_ms for one in requests) / 1000)


def _halves(servers: list[list[RequestSample]]) -> tuple[float | None, float | None]:
    """Return tok/s over the first tokens and over those after them; None where answers are too short."""
    gaps = [one.token_ms for one in chain.from_iterable(servers)]
    if any(len(one) < FIRST_TOKENS + _LEAST_LATER for one in gaps):
        return None, None
    first = sum(sum(one[:FIRST_TOKENS]) for one in gaps)
    later = sum(sum(one[FIRST_TOKENS:]) for one in gaps)
    n_later = sum(len(one) - FIRST_TOKENS for one in gaps)
    if first <= 0 or later <= 0:
        return None, None
    return FIRST_TOKENS * len(gaps) / first * 1000, n_later / later * 1000
