"""The bound lies below the divergence of the whole distributions, and is not blind."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hottune.stats.divergence import divergence, kl_bound

#: Logits of P and Q over a vocabulary, and how many tokens of each are known.
LOGITS = st.floats(-8, 8)
CASES = st.integers(4, 40).flatmap(
    lambda n: st.tuples(
        st.lists(LOGITS, min_size=n, max_size=n),
        st.lists(LOGITS, min_size=n, max_size=n),
        st.integers(1, n),
    )
)


def softmax(logits: list[float]) -> np.ndarray:
    shifted = np.exp(np.asarray(logits) - max(logits))
    return shifted / shifted.sum()


def top(probabilities: np.ndarray, k: int) -> dict[int, float]:
    order = np.argsort(-probabilities, kind="stable")[:k]
    return {int(token): float(np.log(probabilities[token])) for token in order}


@given(CASES)
@settings(max_examples=300)
def test_the_bound_is_never_above_the_true_divergence_nor_below_zero(case) -> None:
    logits_p, logits_q, k = case
    p, q = softmax(logits_p), softmax(logits_q)
    true = float((p * np.log(p / q)).sum())
    assert 0 <= kl_bound(top(p, k), top(q, k)) <= true + 1e-9


@given(CASES)
def test_with_all_tokens_known_it_is_the_divergence_itself(case) -> None:
    p, q = softmax(case[0]), softmax(case[1])
    true = float((p * np.log(p / q)).sum())
    assert kl_bound(top(p, len(p)), top(q, len(q))) == pytest.approx(true, abs=1e-6)


@given(st.lists(LOGITS, min_size=2, max_size=40), st.integers(1, 40))
def test_equal_distributions_do_not_diverge(logits, k) -> None:
    p = top(softmax(logits), k)
    assert kl_bound(p, p) == pytest.approx(0, abs=1e-12)


def test_distributions_that_share_no_token_are_far_apart() -> None:
    p = {1: math.log(0.6), 2: math.log(0.3)}
    q = {3: math.log(0.6), 4: math.log(0.3)}
    # 1 and 2 have 0.1 of Q at most: 0.9 log(0.9 / 0.1) less what the rest gives back, 0.1 log(0.1 / 0.9)
    assert kl_bound(p, q) == pytest.approx(0.9 * math.log(9) + 0.1 * math.log(1 / 9))


def test_one_token_that_the_other_side_does_not_know_can_have_no_more_than_its_least_known_one() -> None:
    p = {1: math.log(0.5), 2: math.log(0.4)}
    q = {1: math.log(0.5), 3: math.log(0.01)}
    expected = 0.4 * math.log(0.4 / 0.01) + 0.1 * math.log(0.1 / 0.49)
    assert kl_bound(p, q) == pytest.approx(expected)


def test_a_certainty_that_the_other_side_lacks_stays_finite() -> None:
    sure = {1: 0.0}
    torn = {1: math.log(0.5), 2: math.log(0.5)}
    assert kl_bound(sure, torn) == pytest.approx(math.log(2))
    assert 1 < kl_bound(torn, sure) < math.inf


def test_positions_are_averaged_and_their_top_tokens_compared() -> None:
    one, other = {1: math.log(0.5), 2: math.log(0.5)}, {2: math.log(0.75), 1: math.log(0.25)}
    found = divergence([one, one], [one, other])
    assert found.kld == pytest.approx(kl_bound(one, other) / 2)
    assert (found.same_top, found.positions) == (0.5, 2)


@pytest.mark.parametrize(("p", "q"), [([], []), ([{1: 0.0}], [])])
def test_nothing_to_compare_is_an_error(p, q) -> None:
    with pytest.raises(ValueError, match="positions"):
        divergence(p, q)


def test_a_position_without_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        kl_bound({}, {1: 0.0})
