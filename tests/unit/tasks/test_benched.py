"""`hottune bench`: what is measured, and what it says about batches."""

from __future__ import annotations

from typing import Any

import pytest
import report_builder as build

from hottune.errors import BadSettingError
from hottune.outcomes import HotStats, Measurement
from hottune.placement import Placement
from hottune.tasks.benched import Asked, multi, summary

LAYERS, EXPERTS = 6, 64


def base(**changes: Any) -> Placement:
    return Placement(**({"n_cpu_moe": 0, "threads": 1} | changes))


def placed(base: Placement, **changes: Any) -> Placement:
    facts: dict[str, Any] = {"fit": False, "policy": "lfru", "rebalance_interval": 60, "shared_budget": False}
    facts |= {"hot_k": 8, "upload_mib": 128, "stream_from": 0, "hot_profile": None, "ubatch": 512}
    return Asked(**(facts | changes)).placement(base, LAYERS, EXPERTS)


def measurement(**counters: int) -> Measurement:
    counts = {"slots": 8, "layers": 6, "hits": 60, "misses": 40, "uploads": 1}
    hot = HotStats(**(counts | {"uploaded_bytes": 1, "cache_bytes": 1} | counters))
    sample = build.sample().model_copy(update={"drafted": 9, "draft_accepted": 4})
    engagement = build.engagement().model_copy(update={"hot": hot})
    return build.measurement(engagement=engagement, requests=[sample])


@pytest.mark.parametrize(
    ("shared", "bypass"),
    [
        ({}, 1),
        ({"parallel": 4}, 4),
        ({"spec_type": "ngram-cache"}, 9),
        ({"spec_type": "ngram-simple"}, 49),
        ({"spec_type": "ngram-simple", "parallel": 4}, 64),
        ({"spec_type": "ngram-cache", "parallel": 16}, 64),
    ],
)
def test_what_is_decoded_at_once_goes_through_the_cache_by_default(
    shared: dict[str, Any], bypass: int
) -> None:
    assert placed(base(**shared)).prefill_bypass == bypass
    assert placed(base(**shared), prefill_bypass=2).prefill_bypass == 2, "what is asked for is asked for"


def test_all_experts_stay_in_ram_by_default() -> None:
    assert placed(base()).n_cpu_moe == LAYERS
    assert placed(base(), n_cpu_moe=2).n_cpu_moe == 2


@pytest.mark.parametrize("changes", [{"hot_k": EXPERTS + 1}, {"n_cpu_moe": LAYERS + 1}])
def test_more_than_the_model_has_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(BadSettingError, match="has"):
        placed(base(), **changes)


def test_hits_in_batches_of_several_tokens_are_summed_over_the_replicates() -> None:
    one = measurement(multi_blocks=5, multi_tokens=20, multi_hits=30, multi_misses=10)
    assert multi([one, one]) == {"blocks": 10, "tokens": 40, "hits": 60, "misses": 20, "hit_rate": 0.75}
    assert summary([one])["multi"] == multi([one])


def test_without_such_batches_there_is_no_number() -> None:
    assert multi([measurement()]) is None


def test_drafts_of_all_requests_are_summed() -> None:
    assert summary([measurement(), measurement()])["drafts"] == {"drafted": 18, "accepted": 8}
