"""Replicates are taken forward and backward in turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.stats.order import interleaved

NAMES = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=6, unique=True)


def test_two_arms_are_measured_a_b_b_a() -> None:
    assert interleaved(["A", "B"], 2) == ["A", "B", "B", "A"]
    assert interleaved(["A", "B", "C"], 3) == ["A", "B", "C", "C", "B", "A", "A", "B", "C"]


@given(NAMES, st.integers(0, 6))
def test_every_round_has_every_arm_once(names: list[str], rounds: int) -> None:
    order = interleaved(names, rounds)
    chunks = [order[i : i + len(names)] for i in range(0, len(order), len(names))]
    assert len(chunks) == rounds
    assert all(sorted(chunk) == sorted(names) for chunk in chunks)


@given(NAMES, st.integers(1, 4))
def test_over_even_rounds_no_arm_comes_earlier_than_another_on_average(names: list[str], half: int) -> None:
    order = interleaved(names, 2 * half)
    sums = {name: sum(i for i, entry in enumerate(order) if entry == name) for name in names}
    assert len(set(sums.values())) == 1


def test_names_that_could_not_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="names must differ"):
        interleaved(["A", "A"], 1)
    with pytest.raises(ValueError, match="-1 rounds"):
        interleaved(["A"], -1)
