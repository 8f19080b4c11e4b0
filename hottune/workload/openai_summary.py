"""From the samples of one pass over an endpoint to its speeds, and what makes them weaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from hottune.workload.endpoint_facts import EndpointSample

#: Prompts this near to the asked length make turns comparable.
_NEAR, _FEW = 0.03, 4


@dataclass(frozen=True)
class Speeds:
    """Of the warm requests of one pass."""

    prefill_tok_s: float | None
    decode_tok_s: float
    ttft_ms: float
    turn_s: float
    as_asked: bool


def speeds(samples: Sequence[EndpointSample], parallel: int = 1) -> Speeds:
    """Sum up the warm requests: sums over sums; with several in flight by the wall-clock of each wave.

    Raises:
        ValueError: there is no warm request.
    """
    warm = [sample for sample in samples if not sample.warmup]
    if not warm:
        raise ValueError("no warm request")
    waves = [samples[first : first + parallel] for first in range(0, len(samples), parallel)]
    times = [_wave_s(wave) for wave in waves if not wave[0].warmup]
    prefill_s, decode_s = sum(one for one, _ in times), sum(one for _, one in times)
    prompts = [sample.processed_tokens for sample in warm]
    known: list[int] = [tokens for tokens in prompts if tokens is not None]
    return Speeds(
        prefill_tok_s=sum(known) / prefill_s if known and len(known) == len(warm) else None,
        decode_tok_s=sum(sample.output_tokens - 1 for sample in warm) / decode_s,
        ttft_ms=median(sample.ttft_ms for sample in warm),
        turn_s=fmean(sample.turn_s for sample in warm),
        as_asked=all(as_asked(sample) for sample in warm),
    )


def as_asked(sample: EndpointSample) -> bool:
    """Tell whether a request had the asked lengths: the answer exactly, the processed prompt nearly."""
    prompt = sample.processed_tokens
    return (
        prompt is not None
        and abs(prompt - sample.asked_prompt_tokens) <= max(_FEW, _NEAR * sample.asked_prompt_tokens)
        and sample.output_tokens == sample.asked_output_tokens
    )


def _wave_s(wave: Sequence[EndpointSample]) -> tuple[float, float]:
    """Return seconds from a wave's start to its last first token, and from its first token to its last."""
    start = min(sample.started_s for sample in wave)
    firsts = [sample.started_s + sample.ttft_ms / 1000 for sample in wave]
    lasts = [first + sample.decode_ms / 1000 for first, sample in zip(firsts, wave, strict=True)]
    return max(firsts) - start, max(lasts) - min(firsts)
