"""The recommendation: the best baseline, unless the challenger is surely not slower."""

from __future__ import annotations

import pytest

from hottune.stats.intervals import PairedChange, Verdict
from hottune.stats.recommend import recommend


def change(ratio: float, low: float | None, high: float | None, verdict: Verdict) -> PairedChange:
    return PairedChange(ratio, low, high, verdict, "t")


@pytest.mark.parametrize(
    ("measured", "arm"),
    [
        (change(1.2, 1.1, 1.3, "faster"), "hot"),
        (change(1.05, 0.99, 1.11, "can't tell"), "hot"),
        (change(1.05, 0.98, 1.12, "can't tell"), "layers"),
        (change(0.8, 0.7, 0.9, "slower"), "layers"),
        (change(3.0, None, None, "can't tell"), "layers"),
        (None, "layers"),
    ],
)
def test_the_lower_bound_decides(measured: PairedChange | None, arm: str) -> None:
    assert recommend("layers", "hot", measured).arm == arm


def test_without_a_challenger_the_best_baseline_is_recommended() -> None:
    assert recommend("fit", None, None).arm == "fit"


def test_reasons_are_sentences_with_the_numbers() -> None:
    assert recommend("layers", "hot", change(1.2, 1.1, 1.3, "faster")).reason == (
        "hot was 1.20x as fast as layers (1.10 to 1.30, faster)"
    )
    assert "too few replicates" in recommend("layers", "hot", change(3.0, None, None, "can't tell")).reason
    assert "0.98 to 1.12" in recommend("layers", "hot", change(1.05, 0.98, 1.12, "can't tell")).reason
