"""From the samples of one server's requests to a Measurement: one replicate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hottune.outcomes import Engagement, Measurement, RequestSample


def measurement(
    samples: Sequence[RequestSample],
    *,
    vram_peak_mib: float,
    vram_source: Literal["process", "device-change", "virtual"],
    load_s: float,
    engagement: Engagement,
    parallel: int = 1,
) -> Measurement:
    """Sum up the warm requests of one server.

    Speeds are sums over sums, so that a long request weighs as much as it takes. Decode speed counts the
    decode steps, which are one fewer than the tokens: a request's first token comes out of its prompt's last
    batch, and llama-server's decode time starts there. Percentiles are over the token gaps of all warm
    requests together.

    With several requests in flight, llama-server's times of each request overlap, so their sum says nothing
    of the server. Speeds are then tokens over the client's wall-clock, wave by wave (see `Measurement`).

    Args:
        samples: of all requests, in order.
        vram_peak_mib: of the server.
        vram_source: where that comes from.
        load_s: of the server.
        engagement: of the server.
        parallel: requests that were in flight at once; samples are waves of so many.

    Raises:
        ValueError: there is no warm request, or none with two tokens.
    """
    warm = [sample for sample in samples if not sample.warmup]
    gaps = [gap for sample in warm for gap in sample.token_ms]
    if not gaps:
        raise ValueError("no warm request with at least two tokens")
    n_steps = sum(sample.output_tokens - 1 for sample in warm)
    p50, p95, p99 = (float(value) for value in np.percentile(gaps, [50, 95, 99]))
    if parallel == 1:
        prefill_s = sum(sample.prefill_ms for sample in warm) / 1000
        decode_s = sum(sample.decode_ms for sample in warm) / 1000
    else:
        waves = [samples[first : first + parallel] for first in range(0, len(samples), parallel)]
        times = [_wave_s(wave) for wave in waves if not wave[0].warmup]
        prefill_s, decode_s = (sum(phase) for phase in zip(*times, strict=True))
    return Measurement(
        prefill_tok_s=sum(sample.prompt_tokens for sample in warm) / prefill_s,
        decode_tok_s=n_steps / decode_s,
        ttft_ms=float(np.median([sample.ttft_ms for sample in warm])),
        turn_s=float(np.mean([sample.turn_s for sample in warm])),
        token_ms_p50=p50,
        token_ms_p95=p95,
        token_ms_p99=p99,
        vram_peak_mib=vram_peak_mib,
        vram_source=vram_source,
        load_s=load_s,
        engagement=engagement,
        requests=list(samples),
    )


def _wave_s(wave: Sequence[RequestSample]) -> tuple[float, float]:
    """Return seconds from a wave's start to its last first token, and from its first token to its end."""
    start = min(sample.started_s for sample in wave)
    first_tokens = [sample.started_s + sample.ttft_ms / 1000 for sample in wave]
    end = max(sample.started_s + sample.turn_s for sample in wave)
    return max(first_tokens) - start, end - min(first_tokens)


def same_text(one: Sequence[RequestSample], other: Sequence[RequestSample]) -> bool:
    """Tell whether two servers wrote the same text in every request (the seed is the same)."""
    return [sample.text_sha256 for sample in one] == [sample.text_sha256 for sample in other]
