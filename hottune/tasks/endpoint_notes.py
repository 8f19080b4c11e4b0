"""What makes an endpoint's numbers weaker: warnings of its result, each with what to do."""

from __future__ import annotations

from hottune.report.endpoint import EndpointResult
from hottune.report.schema import WarningNote
from hottune.workload.openai_summary import as_asked

#: Shares above which something is told.
_CACHED, _ROUND_TRIP, _MANY_TOKENS = 0.02, 0.03, 1.05


def endpoint_notes(result: EndpointResult) -> list[WarningNote]:
    """Return the warnings of a result, by its samples."""
    requests = [one for each in result.passes for one in each.requests if not one.warmup]
    found: dict[str, str] = {
        "client-timed": "Timed by the client: the first token's time has the way there and back and one "
        "token's sampling in it, so prefill looks slower than by the server's own clock."
    }
    prompts = sum(one.prompt_tokens or 0 for one in requests)
    cached = sum(one.cached_tokens for one in requests)
    if cached > _CACHED * prompts:
        found["cached-prompts"] = (
            f"{cached / prompts:.0%} of the prompt tokens came from the server's prompt cache, although each "
            "prompt begins anew. They count in no speed, but the turn is shorter: turn the cache off."
        )
    if any(one.counted == "chunks" for one in requests):
        found["counted-as-chunks"] = (
            "The server sends no usage: tokens counted as chunks. Where a chunk has several tokens, decode "
            "is faster than it says."
        )
    elif sum(one.output_tokens for one in requests) > _MANY_TOKENS * sum(one.chunks for one in requests):
        found["tokens-in-lumps"] = (
            "The server sends several tokens in a chunk (or such without text). Those of the first chunk "
            "take part of the prefill's time, so decode looks a little faster than it is."
        )
    if any(one.prompt_tokens is None for one in requests):
        found["prompt-tokens-unknown"] = (
            "The server does not tell how many tokens a prompt has: no prefill speed, and prompts of about "
            "the asked length only."
        )
    early = [one for one in requests if one.output_tokens < one.asked_output_tokens]
    if early:
        reasons = ", ".join(sorted({one.finish_reason or "no reason given" for one in early}))
        why = (
            "its context is full, so start it with a longer one"
            if reasons == "length"
            else "the server does not take ignore_eos"
        )
        found["stopped-early"] = (
            f"{len(early)} of {len(requests)} answers ended early ({reasons}), the shortest after "
            f"{min(one.output_tokens for one in early)} of {early[0].asked_output_tokens} tokens: {why}. "
            "Speeds are those of the shorter answers; turns do not compare."
        )
    if any(one.output_tokens > one.asked_output_tokens for one in requests):
        found["longer-than-asked"] = "Answers are longer than max_tokens: turns do not compare."
    if any(not as_asked(one) and one.prompt_tokens and one not in early for one in requests):
        lengths = [one.processed_tokens / one.asked_prompt_tokens for one in requests if one.processed_tokens]
        found["prompt-lengths"] = (
            f"Prompts had {min(lengths):.0%} to {max(lengths):.0%} of the asked tokens: the server cuts text "
            "in its own way and has no /tokenize. Speeds are by the tokens it counted; turns do not compare."
        )
    gaps = [gap for one in requests for gap in one.chunk_ms]
    if gaps and sum(gap == 0 for gap in gaps) > len(gaps) / 2:
        found["in-bursts"] = (
            "Most chunks came in bursts: something between buffers the stream, so first token and decode "
            "speed are not those of the server. Ask the server itself, without a proxy."
        )
    first = sorted(one.ttft_ms for one in requests)[len(requests) // 2]
    if result.round_trip_ms > _ROUND_TRIP * first:
        found["round-trip"] = (
            f"The way there and back takes {result.round_trip_ms:.1f} ms of {first:.0f} ms to the first "
            "token: use longer prompts, or measure on the server's own machine."
        )
    if "seed" not in result.fields or "extensions" not in result.fields:
        kept = ", ".join(result.fields) or "none"
        found["not-all-fields"] = (
            f"The server refuses some of the optional fields (it took: {kept}), so sampling "
            "and lengths are its own."
        )
    if len(result.passes) > 1:
        found["one-server"] = (
            "All passes went to one server and share its luck: their spread is smaller than that of "
            "fresh servers."
        )
    return [WarningNote(code=code, text=text) for code, text in found.items()]
