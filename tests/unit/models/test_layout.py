"""Where the small model lies in the large one: nothing is lost, nothing lies twice, nothing is crowded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.models.layout import (
    arrange_experts,
    arrange_heads,
    arrange_layers,
    chosen_copies,
    heads_needed,
    spread,
    steering_weights,
)


@given(n_groups=st.integers(1, 16), more=st.integers(0, 300), terms=st.integers(1, 2))
def test_groups_crowd_a_block_only_when_all_blocks_are_taken(n_groups: int, more: int, terms: int) -> None:
    width = 32 * (terms * n_groups + more)
    positions = spread(n_groups, width, terms)
    assert len({place for places in positions for place in places}) == n_groups * terms
    assert max(max(places) for places in positions) < width // 32
    assert all(len({place // 8 for place in places}) == 1 for places in positions)
    blocks = Counter(places[0] // 8 for places in positions)
    whole = width // 256
    if whole >= n_groups:
        assert max(blocks.values()) == 1


def test_a_row_too_short_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        spread(9, 256)


@given(
    n_kv=st.integers(1, 4),
    per_kv=st.integers(1, 4),
    wanted=st.tuples(st.integers(1, 96), st.integers(1, 32)),
    head_dim=st.sampled_from([32, 64, 128, 256]),
)
def test_every_part_of_every_head_is_delivered_once_within_its_group(
    n_kv: int, per_kv: int, wanted: tuple[int, int], head_dim: int
) -> None:
    small = (n_kv * per_kv, n_kv)
    large = heads_needed(small, wanted)
    heads = arrange_heads(small, large, head_dim)
    parts = head_dim // 32
    assert sorted(part for _, part in heads.delivers) == list(range(small[0] * parts))
    assert not set(heads.delivers) & set(heads.seconds)
    assert len({place for place, _ in heads.seconds}) == len(heads.seconds)
    assert not heads.seconds or sorted(part for _, part in heads.seconds) == list(range(small[0] * parts))
    for place, part in [*heads.delivers, *heads.seconds]:
        assert heads.q[place // parts] == part // parts
        assert place % parts == part % parts
    for head, is_copy_of in enumerate(heads.q):
        assert heads.kv[head // (large[0] // large[1])] == is_copy_of // per_kv


def test_in_a_30b_a3b_no_block_of_the_attention_output_takes_two_groups() -> None:
    heads = arrange_heads((4, 2), (32, 4), 128)
    assert Counter(place // 8 for place, _ in heads.delivers) == dict.fromkeys(range(16), 1)
    block = {part: place // 8 for place, part in heads.delivers}
    assert all(place // 8 == block[part] for place, part in heads.seconds)
    assert len(heads.seconds) == 16


@given(n_small=st.integers(1, 12), n_large=st.integers(1, 120))
def test_layers_keep_their_order_and_each_is_there_once(n_small: int, n_large: int) -> None:
    roles = arrange_layers(n_small, n_large)
    real = [role.of for role in roles if not role.repeat]
    assert len(roles) == n_large
    assert [role.of for role in roles] == sorted(role.of for role in roles)
    assert len(set(real)) == len(real)
    if n_large >= n_small:
        assert real == list(range(n_small))


@given(n_small=st.integers(2, 40), n_large=st.integers(2, 300), token=st.integers(0, 99))
def test_exactly_one_copy_of_every_expert_is_lifted_for_a_token(
    n_small: int, n_large: int, token: int
) -> None:
    experts = arrange_experts(n_small, n_large)
    if n_large <= n_small or experts.n_copies > 32:
        return
    on = np.zeros(32)
    copies = chosen_copies(100, experts)[token]
    on[np.arange(experts.n_teams) * experts.n_copies + copies] = 1
    lifted = steering_weights(experts, 3, 5.0) @ on
    assert set(lifted) <= {0.0, 5.0}
    assert [lifted[experts.of == expert].sum() for expert in range(n_small)] == [5.0] * n_small


def test_fewer_experts_are_different_ones() -> None:
    kept = arrange_experts(128, 32).of
    assert len(set(kept.tolist())) == 32
    assert kept.max() < 128
