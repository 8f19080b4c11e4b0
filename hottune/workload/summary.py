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
) -> Measurement:
    """Sum up the warm requests of one server.

    Speeds are sums over sums, so that a long request weighs as much as it takes. Decode speed counts the
    decode steps, which are one fewer than the tokens: a request's first token comes out of its prompt's last
    batch, and llama-server's decode time starts there. Percentiles are over the token gaps of all warm
    requests together.

    Raises:
        ValueError: there is no warm request, or none with two tokens.
    """
    warm = [sample for sample in samples if not sample.warmup]
    gaps = [gap for sample in warm for gap in sample.token_ms]
    if not gaps:
        raise ValueError("no warm request with at least two tokens")
    n_steps = sum(sample.output_tokens - 1 for sample in warm)
    p50, p95, p99 = (float(value) for value in np.percentile(gaps, [50, 95, 99]))
    return Measurement(
        prefill_tok_s=1000 * sum(s.prompt_tokens for s in warm) / sum(s.prefill_ms for s in warm),
        decode_tok_s=1000 * n_steps / sum(s.decode_ms for s in warm),
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


def same_text(one: Sequence[RequestSample], other: Sequence[RequestSample]) -> bool:
    """Tell whether two servers wrote the same text in every request (decoding is greedy)."""
    return [sample.text_sha256 for sample in one] == [sample.text_sha256 for sample in other]
