"""Paired changes: what they are invariant to, what they cover, and when they stay silent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.stats.intervals import (
    MAX_PERMUTATION_N,
    Method,
    paired_change,
    precise_enough,
    smallest_permutation_n,
)

SPEEDS = st.floats(0.1, 1e5)
METHODS = st.sampled_from(["t", "permutation"])
MIRROR = {"faster": "slower", "slower": "faster", "can't tell": "can't tell"}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    n = draw(st.integers(2, 8))
    return draw(st.lists(SPEEDS, min_size=n, max_size=n)), draw(st.lists(SPEEDS, min_size=n, max_size=n))


@given(pairs(), METHODS)
def test_swapping_the_arms_mirrors_the_result(data: tuple[list[float], list[float]], method: Method) -> None:
    a, b = data
    forward, backward = paired_change(a, b, method=method), paired_change(b, a, method=method)
    assert forward.ratio == pytest.approx(1 / backward.ratio)
    assert forward.verdict == MIRROR[backward.verdict]
    assert forward.p_value == pytest.approx(backward.p_value)
    if forward.low is not None and backward.high is not None:
        assert math.log(forward.low) == pytest.approx(-math.log(backward.high), abs=1e-9)


@given(pairs(), METHODS, st.sampled_from([0.001, 3.0, 1000.0]))
def test_the_unit_of_speed_does_not_matter(
    data: tuple[list[float], list[float]], method: Method, factor: float
) -> None:
    a, b = data
    one = paired_change(a, b, method=method)
    other = paired_change([x * factor for x in a], [x * factor for x in b], method=method)
    assert (other.verdict, other.method) == (one.verdict, one.method)
    assert other.ratio == pytest.approx(one.ratio)
    if one.low is not None:
        assert (other.low, other.high) == pytest.approx((one.low, one.high), rel=1e-6)


@given(pairs(), METHODS)
def test_durations_are_compared_the_other_way_round(
    data: tuple[list[float], list[float]], method: Method
) -> None:
    a, b = data
    assert paired_change(a, b, higher_is_better=False, method=method) == paired_change(b, a, method=method)


@given(pairs(), METHODS)
def test_the_interval_and_the_test_agree_with_the_verdict(
    data: tuple[list[float], list[float]], method: Method
) -> None:
    change = paired_change(*data, method=method)
    if change.low is None or change.high is None or change.p_value is None:
        assert change.verdict == "can't tell"
        return
    assert change.low <= change.ratio * (1 + 1e-9)
    assert change.ratio <= change.high * (1 + 1e-9)
    assert (change.verdict == "faster") == (change.low > 1)
    assert (change.verdict == "slower") == (change.high < 1)
    if method == "t" and abs(change.p_value - 0.05) > 1e-6:
        assert (change.verdict != "can't tell") == (change.p_value < 0.05)


def test_the_t_interval_matches_a_hand_calculation() -> None:
    """Log-ratios 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, t(0.975, 2) = 4.30265."""
    a = [math.exp(0.1), math.exp(0.2), math.exp(0.3)]
    change = paired_change(a, [1.0, 1.0, 1.0])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert (change.low, change.high) == pytest.approx((math.exp(0.2 - half), math.exp(0.2 + half)))
    assert change.p_value == pytest.approx(0.0741799, abs=1e-6)
    assert change.method == "t on paired log-ratios, n=3"


def test_the_exact_interval_of_six_pairs_runs_from_the_least_to_the_largest() -> None:
    a = [1.01, 1.02, 1.03, 1.04, 1.05, 1.06]
    change = paired_change(a, [1.0] * 6, method="permutation")
    assert (change.low, change.high) == pytest.approx((1.01, 1.06))
    assert change.p_value == pytest.approx(2 / 64)
    assert change.verdict == "faster"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_fewer_pairs_than_could_reject_never_give_a_verdict(n: int) -> None:
    change = paired_change([9.0] * n, [1.0] * n, method="permutation")
    assert (change.ratio, change.low, change.high) == (pytest.approx(9), None, None)
    assert (change.verdict, change.p_value) == ("can't tell", None)
    assert change.method == f"exact sign-flip on paired log-ratios needs n>=6, n={n}"


def test_a_single_pair_has_a_ratio_but_no_interval() -> None:
    change = paired_change([3.0], [2.0])
    assert (change.ratio, change.low, change.high) == (pytest.approx(1.5), None, None)
    assert change.verdict == "can't tell"


@pytest.mark.parametrize(("level", "n"), [(0.90, 5), (0.95, 6), (0.99, 8), (0.5, 2)])
def test_the_smallest_n_is_the_first_with_a_small_enough_p_value(level: float, n: int) -> None:
    assert smallest_permutation_n(level) == n
    assert 2 / 2**n <= 1 - level + 1e-12 < 2 / 2 ** (n - 1)


def test_identical_arms_are_never_different() -> None:
    for method in ("t", "permutation"):
        change = paired_change([5.0, 6.0, 7.0] * 3, [5.0, 6.0, 7.0] * 3, method=method)
        assert (change.ratio, change.low, change.high, change.p_value) == (1.0, 1.0, 1.0, 1.0)
        assert change.verdict == "can't tell"


def simulated(rng: np.random.Generator, n: int, cv: float, gain: float) -> tuple[list[float], list[float]]:
    """Replicates with relative noise `cv` in each arm and a drift that both arms share."""
    drift = rng.normal(0, 0.05, n)
    a, b = (np.exp(drift + rng.normal(0, cv, n)) for _ in range(2))
    return list(a * (1 + gain)), list(b)


@pytest.mark.parametrize(("n", "method"), [(3, "t"), (5, "t"), (6, "permutation"), (8, "permutation")])
def test_null_control_equal_arms_are_told_apart_in_at_most_5_of_100_runs(n: int, method: Method) -> None:
    rng = np.random.default_rng(1)
    n_runs = 2000
    verdicts = [paired_change(*simulated(rng, n, 0.05, 0.0), method=method).verdict for _ in range(n_runs)]
    share = verdicts.count("can't tell") / n_runs
    assert share >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / n_runs)  # two standard errors of the simulation


@pytest.mark.parametrize(("n", "cv"), [(12, 0.03), (4, 0.01)])
def test_positive_control_a_gain_of_5_percent_is_found_in_90_of_100_runs(n: int, cv: float) -> None:
    rng = np.random.default_rng(2)
    verdicts = [paired_change(*simulated(rng, n, cv, 0.05)).verdict for _ in range(500)]
    assert verdicts.count("faster") >= 450
    assert verdicts.count("slower") == 0


@pytest.mark.parametrize("method", ["t", "permutation"])
def test_the_interval_holds_the_truth_as_often_as_its_level_says(method: Method) -> None:
    rng = np.random.default_rng(3)
    n_held = 0
    for _ in range(1500):
        change = paired_change(*simulated(rng, 7, 0.05, 0.2), method=method)
        assert change.low is not None
        assert change.high is not None
        n_held += change.low <= 1.2 <= change.high
    assert 0.935 <= n_held / 1500 <= 0.985  # the exact one covers 1 - 2 * 3 / 2**7 = 0.953


def test_precision_is_judged_relative_to_the_ratio() -> None:
    tight = paired_change([2.00, 2.01, 2.02, 2.01], [1.0] * 4)
    loose = paired_change([2.0, 2.2, 1.8, 2.1], [1.0] * 4)
    assert precise_enough(tight)
    assert not precise_enough(loose)
    assert not precise_enough(paired_change([2.0], [1.0]))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([], []),
        ([1.0], [1.0, 2.0]),
        ([0.0], [1.0]),
        ([1.0], [-1.0]),
        ([math.nan], [1.0]),
        ([1.0], [math.inf]),
    ],
)
def test_replicates_that_cannot_be_paired_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="replicates must"):
        paired_change(a, b)


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence level"):
        paired_change([1.0, 2.0], [1.0, 2.0], level=95)
    n = MAX_PERMUTATION_N + 1
    with pytest.raises(ValueError, match="too many"):
        paired_change([1.0] * n, [2.0] * n, method="permutation")
