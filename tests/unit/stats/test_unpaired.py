"""Unpaired changes: scipy's numbers, invariances, coverage, and when they stay silent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.stats.unpaired import unpaired_change

SIDES = st.lists(st.floats(0.1, 1e5), min_size=1, max_size=8)
MIRROR = {"faster": "slower", "slower": "faster", "can't tell": "can't tell"}


@given(SIDES, SIDES, st.booleans())
def test_the_other_way_round_is_the_reciprocal(a, b, higher):
    there = unpaired_change(a, b, higher_is_better=higher)
    back = unpaired_change(b, a, higher_is_better=higher)
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.verdict == MIRROR[back.verdict]
    if there.low is None or there.high is None:
        assert back.low is None
        assert min(len(a), len(b)) < 2
    else:
        assert back.low == pytest.approx(1 / there.high if math.isfinite(there.high) else 0)


@given(SIDES)
def test_a_side_compared_with_itself_has_ratio_1_and_cannot_be_told_apart(a):
    change = unpaired_change(a, a)
    assert change.ratio == 1
    assert change.verdict == "can't tell"


@given(SIDES, SIDES)
def test_seconds_say_the_same_as_their_speeds(a, b):
    speeds = unpaired_change(a, b)
    seconds = unpaired_change([1 / x for x in a], [1 / x for x in b], higher_is_better=False)
    assert seconds.ratio == pytest.approx(speeds.ratio)


def test_it_is_welch_s_t_as_scipy_has_it():
    stats = pytest.importorskip("scipy.stats")
    a, b = [10.0, 11.0, 12.5], [8.0, 8.2, 8.1, 9.0, 7.9]
    found = unpaired_change(a, b)
    theirs = stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    assert found.p_value == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.method == "Welch's t on log values, unpaired, n=3 and 5"


def test_equal_arms_are_told_apart_about_5_times_in_100():
    draws = np.random.default_rng(7)
    wrong = sum(
        unpaired_change(np.exp(draws.normal(0, 0.08, 3)), np.exp(draws.normal(0, 0.02, 6))).verdict
        != "can't tell"
        for _ in range(2000)
    )
    assert 60 <= wrong <= 140


def test_one_replicate_gives_a_ratio_without_interval():
    change = unpaired_change([20.0], [10.0, 10.0])
    assert (change.ratio, change.low, change.verdict) == (pytest.approx(2), None, "can't tell")
    assert "needs n>=2 on both sides, n=1 and 2" in change.method


def test_a_wider_level_is_named_and_wider():
    a, b = [10.0, 11.0, 12.0], [9.0, 9.5, 9.1]
    usual, wide = unpaired_change(a, b), unpaired_change(a, b, level=0.97)
    assert usual.low is not None
    assert wide.low is not None
    assert wide.low < usual.low
    assert "at 97 %" in wide.method


@pytest.mark.parametrize(("a", "level"), [([], 0.95), ([0.0], 0.95), ([float("inf")], 0.95), ([1.0], 1.0)])
def test_what_cannot_be_compared_is_refused(a, level):
    with pytest.raises(ValueError):
        unpaired_change(a, [1.0, 2.0], level=level)
