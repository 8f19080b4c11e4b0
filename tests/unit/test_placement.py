"""The placement: its name, its defaults, and what a running server can change."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.placement import LARGEST_BYPASS, LIVE_FIELDS, STREAM_FROM, Placement, SpecType, needs_restart

#: As a study of the first version kept it.
OLD = (
    '{"n_cpu_moe":6,"hot_k":16,"rebalance_interval":60,"policy":"window","prefill_bypass":1,"fit":false,'
    '"ubatch":512,"batch":2048,"threads":1,"load_mode":"none","kv_type_k":"f16","kv_type_v":"f16","context":256}'
)


def placement(**changes: Any) -> Placement:
    return Placement(**({"n_cpu_moe": 8, "hot_k": 4, "threads": 1} | changes))


def test_a_placement_of_an_older_study_is_the_same_arrangement() -> None:
    wanted = Placement(n_cpu_moe=6, hot_k=16, threads=1, context=256, policy="window")
    assert Placement.model_validate_json(OLD) == wanted


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "ncmoe 8 + hot 4/60 ub 512"),
        ({"hot_k": 0, "policy": "lru"}, "ncmoe 8 ub 512"),
        ({"policy": "lru", "shared_budget": True}, "ncmoe 8 + hot 4 lru shared ub 512"),
        ({"policy": "window"}, "ncmoe 8 + hot 4/60 window ub 512"),
        ({"stream_from": STREAM_FROM}, "ncmoe 8 + hot 4/60 ub 512"),
        ({"stream_from": 64}, "ncmoe 8 + hot 4/60 stream 64 ub 512"),
        ({"policy": "static", "hot_profile": Path("p.json")}, "ncmoe 8 + hot 4 static profile ub 512"),
        ({"prefill_bypass": 8, "parallel": 4}, "ncmoe 8 + hot 4/60 bypass 8 ub 512 np 4"),
        ({"hot_k": 0, "fit": True}, "--fit"),
        ({"fit": True, "spec_type": "ngram-mod"}, "--fit + hot 4/60 ngram-mod"),
    ],
)
def test_what_is_not_the_default_stands_in_the_label(changes: dict[str, Any], label: str) -> None:
    assert placement(**changes).label() == label


@pytest.mark.parametrize(
    "changes",
    [
        {"hot_k": 5},
        {"rebalance_interval": 8},
        {"policy": "lru"},
        {"prefill_bypass": 64},
        {"shared_budget": True},
        {"upload_mib": 1},
    ],
)
def test_the_caches_own_settings_change_without_a_restart(changes: dict[str, Any]) -> None:
    assert set(changes) <= LIVE_FIELDS
    assert not needs_restart(placement(), placement(**changes))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"hot_k": 0}),
        ({"hot_k": 0}, {}),
        ({}, {"n_cpu_moe": 7}),
        ({}, {"fit": True}),
        ({"fit": True}, {"fit": True, "hot_k": 5}),
        ({}, {"stream_from": 64}),
        ({}, {"parallel": 2}),
        ({}, {"hot_profile": Path("p")}),
        ({}, {"policy": "lru", "ubatch": 64}),
    ],
)
def test_what_is_placed_at_load_needs_a_restart(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert needs_restart(placement(**old), placement(**new))


@pytest.mark.parametrize("changes", [{}, {"fit": True}, {"hot_k": 0}])
def test_the_same_placement_never_needs_a_restart(changes: dict[str, Any]) -> None:
    assert not needs_restart(placement(**changes), placement(**changes))


@given(st.sampled_from(get_args(SpecType)), st.integers(1, 64))
def test_a_token_and_its_draft_go_through_the_cache_for_as_many_slots_as_can_be(
    kind: SpecType, parallel: int
) -> None:
    one = placement(spec_type=kind, parallel=parallel)
    assert one.decode_batch == parallel * (1 + one.draft_max)
    assert (one.draft_max == 0) == (kind == "none")
    if kind != "ngram-cache" and parallel <= LARGEST_BYPASS // 2:
        assert one.decode_batch <= LARGEST_BYPASS
    if parallel == 1:
        assert one.draft_max == {"none": 0, "ngram-mod": 63, "ngram-cache": 8}.get(kind, 48)
