"""Outliers by the modified z-score, and a first run that was slower."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.stats.outliers import first_run_slower, modified_z_scores, outliers

VALUES = st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=20)


def test_scores_match_a_hand_calculation() -> None:
    """Median 3, absolute distances 2 1 0 1 97, MAD 1."""
    assert modified_z_scores([1, 2, 3, 4, 100]) == pytest.approx([-1.349, -0.6745, 0, 0.6745, 65.4265])


def test_a_value_far_from_the_rest_is_found_on_either_side() -> None:
    assert outliers([10, 11, 10, 12, 50, 11, -40]) == [4, 6]
    assert outliers([10, 11, 10, 12, 11]) == []
    assert outliers([10, 11, 10, 50, 11]) == [3]


def test_fewer_than_five_values_are_too_few_to_call_one_an_outlier():
    assert outliers([10, 10, 10, 50]) == []
    assert outliers([10, 10, 50]) == []


def test_one_odd_value_among_equal_ones_is_found_although_the_mad_is_zero() -> None:
    assert modified_z_scores([5, 5, 5, 5, 6]) == pytest.approx([0, 0, 0, 0, 1 / (0.2 * 1.2533141)])
    assert outliers([5] * 9 + [6]) == [9]


@pytest.mark.parametrize("values", [[], [7.0], [7.0, 7.0, 7.0]])
def test_nothing_differs_from_nothing(values: list[float]) -> None:
    assert modified_z_scores(values) == [0.0] * len(values)
    assert outliers(values) == []


@given(VALUES, st.integers(-50, 50), st.sampled_from([0.5, 2.0, 8.0]))
def test_scores_do_not_depend_on_origin_or_unit(values: list[float], shift: int, factor: float) -> None:
    moved = [value * factor + shift for value in values]
    assert modified_z_scores(moved) == pytest.approx(modified_z_scores(values), abs=1e-9)


def test_a_cold_first_run_is_told_with_its_excess() -> None:
    assert first_run_slower([13.0, 10.0, 10.1, 9.9]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "seconds",
    [
        [10.0, 10.1, 9.9, 10.0],  # like the others
        [9.0, 10.0, 10.1, 9.9],  # faster
        [10.2, 10.001, 10.0, 9.999],  # an outlier, but by 2 %
        [12.0, 10.0, 12.5, 9.0, 11.0],  # everything scatters
        [20.0, 10.0],  # two runs: no one knows which is odd
        [],
    ],
)
def test_a_first_run_that_is_not_clearly_slower_is_not_told(seconds: list[float]) -> None:
    assert first_run_slower(seconds) is None
