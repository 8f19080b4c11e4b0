"""Holm's adjustment and the verdicts that survive it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.stats.intervals import paired_change
from hottune.stats.multiple import holm, holm_changes

P_VALUES = st.lists(st.floats(0, 1), max_size=8)


def test_holm_matches_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
def test_adjusting_never_lowers_a_p_value_and_stays_below_bonferroni(p_values: list[float]) -> None:
    for before, after in zip(p_values, holm(p_values), strict=True):
        assert before <= after <= min(1.0, len(p_values) * before) + 1e-12


@given(P_VALUES, st.randoms())
def test_the_order_of_the_comparisons_does_not_matter(p_values: list[float], random: object) -> None:
    adjusted = dict(zip(p_values, holm(p_values), strict=True))
    shuffled = sorted(p_values, reverse=True)
    assert holm(shuffled) == pytest.approx([adjusted[p] for p in shuffled])


@pytest.mark.parametrize("p_values", [[-0.1], [1.1], [float("nan")]])
def test_what_is_no_probability_is_refused(p_values: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(p_values)


def test_a_verdict_that_does_not_survive_becomes_cannot_tell() -> None:
    weak = paired_change([1.02, 1.053, 1.03, 1.015], [1.0] * 4)
    strong = paired_change([1.50, 1.51, 1.49, 1.50], [1.0] * 4)
    alone = holm_changes([weak])
    assert alone == [weak]
    assert weak.verdict == "faster"
    assert weak.p_value is not None
    assert 0.025 < weak.p_value < 0.05
    first, second, third = holm_changes([weak, strong, weak])
    assert [first.verdict, second.verdict, third.verdict] == ["can't tell", "faster", "can't tell"]
    assert (first.low, first.high) == (weak.low, weak.high)
    assert first.method.endswith("verdict by Holm over 3")


def test_a_comparison_without_a_test_counts_and_stays_silent() -> None:
    single = paired_change([2.0], [1.0])
    weak = paired_change([1.02, 1.053, 1.03, 1.015], [1.0] * 4)
    changes = holm_changes([single, weak])
    assert [change.verdict for change in changes] == ["can't tell", "can't tell"]
    assert changes[0].p_value is None


def test_among_five_equal_arms_a_false_verdict_comes_in_at_most_5_of_100_runs() -> None:
    rng = np.random.default_rng(4)
    n_runs, n_false, n_false_without = 2000, 0, 0
    for _ in range(n_runs):
        base, *arms = (list(np.exp(rng.normal(0, 0.05, 5))) for _ in range(6))
        changes = [paired_change(arm, base) for arm in arms]
        n_false_without += any(change.verdict != "can't tell" for change in changes)
        n_false += any(change.verdict != "can't tell" for change in holm_changes(changes))
    assert n_false / n_runs <= 0.05 + 2 * (0.05 * 0.95 / n_runs) ** 0.5
    assert n_false_without / n_runs > 0.10  # what the adjustment is for
