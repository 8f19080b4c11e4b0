"""A Measurement is made of warm requests alone."""

from __future__ import annotations

import pytest

from hottune.outcomes import Engagement, Measurement, RequestSample
from hottune.workload.summary import measurement, same_text

ENGAGEMENT = Engagement(
    gpu_device="CUDA0", vram_model_mib=1, vram_kv_mib=1, vram_compute_mib=1, host_model_mib=1
)


def sample(warmup: bool = False, **changes: object) -> RequestSample:
    fields: dict[str, object] = {
        "workload": "chat",
        "warmup": warmup,
        "prompt_tokens": 100,
        "output_tokens": 11,
        "prefill_ms": 50.0,
        "decode_ms": 200.0,
        "ttft_ms": 60.0,
        "turn_s": 0.3,
        "token_ms": [20.0] * 10,
        "text_sha256": "a",
    }
    return RequestSample.model_validate(fields | changes)


def summed(*samples: RequestSample) -> Measurement:
    return measurement(samples, vram_peak_mib=5, vram_source="process", load_s=2, engagement=ENGAGEMENT)


def test_the_cold_request_counts_in_no_mean_but_is_kept() -> None:
    cold = sample(warmup=True, prefill_ms=9e9, decode_ms=9e9, ttft_ms=9e9, turn_s=9e9, token_ms=[9e9])
    with_cold, without = summed(cold, sample()), summed(sample())
    assert with_cold.requests[0] == cold
    assert with_cold.model_dump(exclude={"requests"}) == without.model_dump(exclude={"requests"})


def test_speeds_are_sums_over_sums() -> None:
    result = summed(sample(), sample(prompt_tokens=900, prefill_ms=150.0))
    assert result.prefill_tok_s == pytest.approx(1000 * (100 + 900) / (50 + 150))


def test_decode_speed_counts_steps_because_the_first_token_belongs_to_the_prompt() -> None:
    assert summed(sample()).decode_tok_s == pytest.approx(10 / 0.2)


def test_percentiles_are_over_all_gaps_together() -> None:
    result = summed(sample(token_ms=[10.0] * 50), sample(token_ms=[30.0] * 50))
    assert (result.token_ms_p50, result.token_ms_p95, result.token_ms_p99) == (20.0, 30.0, 30.0)


def test_turn_is_the_mean_and_first_token_the_median() -> None:
    result = summed(*(sample(turn_s=turn, ttft_ms=ttft) for turn, ttft in [(1, 10), (2, 20), (6, 90)]))
    assert (result.turn_s, result.ttft_ms) == (3.0, 20.0)


def wave(start_s: float, *turns: tuple[float, float], warmup: bool = False) -> list[RequestSample]:
    """Requests sent at once, each with its milliseconds to the first token and its seconds to the last."""
    return [sample(warmup, started_s=start_s, ttft_ms=ttft, turn_s=turn) for ttft, turn in turns]


def summed_waves(parallel: int, *samples: RequestSample) -> Measurement:
    return measurement(
        samples, vram_peak_mib=5, vram_source="process", load_s=2, engagement=ENGAGEMENT, parallel=parallel
    )


def test_with_several_in_flight_speeds_are_tokens_over_wall_clock() -> None:
    cold = wave(0, (1, 9), (9000, 10), warmup=True)
    first = wave(10, (100, 1.1), (300, 1.3))  # prompts take 0.3 s, then all answers 1.2 s
    second = wave(12, (200, 1.0), (200, 2.2))  # 0.2 s and 2.0 s
    result = summed_waves(2, *cold, *first, *second)
    assert result.prefill_tok_s == pytest.approx(4 * 100 / (0.3 + 0.2))
    assert result.decode_tok_s == pytest.approx(4 * 10 / (1.2 + 2.0))
    assert result.turn_s == pytest.approx((1.1 + 1.3 + 1.0 + 2.2) / 4), "what each user waits"
    assert result.token_ms_p50 == 20


def test_two_in_flight_that_each_take_as_long_as_one_alone_are_twice_as_fast() -> None:
    alone = [sample(True), sample(started_s=1.0, ttft_ms=50, turn_s=0.25, decode_ms=200.0)]
    both = wave(0, (50, 0.25), (50, 0.25), warmup=True) + wave(1, (50, 0.25), (50, 0.25))
    one, two = summed(*alone).decode_tok_s, summed_waves(2, *both).decode_tok_s
    assert two == pytest.approx(2 * one)


@pytest.mark.parametrize("samples", [[], [sample(warmup=True)], [sample(token_ms=[])]])
def test_nothing_warm_is_nothing_measured(samples: list[RequestSample]) -> None:
    with pytest.raises(ValueError, match="no warm request"):
        summed(*samples)


def test_texts_are_equal_when_all_their_hashes_are() -> None:
    assert same_text([sample(), sample()], [sample(), sample()])
    assert not same_text([sample(), sample()], [sample(), sample(text_sha256="b")])
    assert not same_text([sample()], [sample(), sample()])
