"""Recording: how long the answers get, and the placement that is recorded with."""

from __future__ import annotations

from pathlib import Path

import planned
import pytest

from hottune.errors import BadSettingError
from hottune.placement import Placement
from hottune.tasks.prepare import Plan
from hottune.tasks.record import Recorded, Traced, placement_for, with_tokens
from hottune.workload.workloads import load_workload


@pytest.mark.parametrize(("wanted", "each"), [(1000, 251), (1, 2), (8, 3), (9, 4)])
def test_tokens_are_spread_over_the_requests_and_the_first_of_each_answer_is_not_decoded(
    wanted: int, each: int
) -> None:
    chat = load_workload("chat")
    longer = with_tokens(chat, wanted)
    assert [one.output_tokens for one in longer.requests] == [each] * 4
    assert sum(one.output_tokens - 1 for one in longer.requests) >= wanted
    assert [one.text for one in longer.requests] == [one.text for one in chat.requests]
    assert longer.sha256 != chat.sha256


def chosen(plan: Plan, hot_k: int | None = None, *, prompts: bool = False) -> Placement:
    return placement_for(plan, hot_k, prompts=prompts, policy="lru", interval=8)


def test_all_experts_are_in_ram_and_a_quarter_of_them_also_in_vram(tmp_path: Path) -> None:
    placement = chosen(planned.plan(tmp_path))
    assert (placement.n_cpu_moe, placement.hot_k, placement.prefill_bypass) == (8, 4, 1)
    assert (placement.policy, placement.rebalance_interval, placement.ubatch) == ("lru", 8, 64)
    assert chosen(planned.plan(tmp_path), 7).hot_k == 7


def test_fewer_are_kept_where_no_quarter_fits(tmp_path: Path) -> None:
    plan = planned.plan(tmp_path)
    room = plan.space.predicted_mib(chosen(plan, 2))
    tight = planned.plan(tmp_path, vram_mib=room + 1)
    assert chosen(tight).hot_k == 2
    without = planned.plan(tmp_path, vram_mib=plan.space.predicted_mib(chosen(plan, 1)) - 1)
    with pytest.raises(BadSettingError, match="no room in VRAM for one expert"):
        chosen(without)


def test_prompts_go_through_the_cache_in_the_largest_batches_that_it_takes(tmp_path: Path) -> None:
    placement = chosen(planned.plan(tmp_path, ubatches=(512,)), prompts=True)
    assert (placement.ubatch, placement.prefill_bypass) == (64, 64)


@pytest.mark.parametrize("hot_k", [0, 17])
def test_a_cache_of_none_or_of_more_than_there_are_is_refused(tmp_path: Path, hot_k: int) -> None:
    with pytest.raises(BadSettingError, match="a layer has 16 experts"):
        chosen(planned.plan(tmp_path), hot_k)


def test_requests_begin_where_the_trace_was_when_they_were_sent() -> None:
    assert Recorded([Traced("a", 0), Traced("b", 7)]).starts == (0, 7)
