"""The noise model: what is drawn has the shape that was asked for, and fitting finds it again."""

from __future__ import annotations

import numpy as np
import pytest

from bench.verdicts.fitted import Server, fit, fits, pooled
from bench.verdicts.noise import Noise


def drawn(runs: int = 400, servers: int = 40, **facts: float) -> np.ndarray:
    return Noise("x", **facts).draw(np.random.default_rng(3), runs, servers)  # type: ignore[arg-type]


def test_drawn_durations_scatter_by_the_stated_cv_at_every_position() -> None:
    seconds = np.exp(drawn(cv=0.05, lag1=0.6, runs=4000, servers=10))
    assert seconds.std(axis=0) / seconds.mean(axis=0) == pytest.approx(np.full(10, 0.05), rel=0.06)


def test_neighbours_are_correlated_as_stated() -> None:
    logs = drawn(cv=0.05, lag1=-0.4)
    assert np.corrcoef(logs[:, :-1].ravel(), logs[:, 1:].ravel())[0, 1] == pytest.approx(-0.4, abs=0.03)


def test_drift_first_server_and_outliers_add_to_the_logarithm() -> None:
    still = drawn(cv=0.02)
    assert drawn(cv=0.02, drift=0.01) - still == pytest.approx(np.tile(0.01 * np.arange(40), (400, 1)))
    first = drawn(cv=0.02, first=0.1) - still
    assert first[:, 0] == pytest.approx(np.full(400, 0.1))
    assert first[:, 1:] == pytest.approx(np.zeros((400, 39)))
    far = drawn(cv=0.02, outlier_share=0.1, outlier=0.3) - still
    assert set(np.unique(far.round(9))) == {0.0, 0.3}
    assert np.mean(far > 0) == pytest.approx(0.1, abs=0.01)


def test_a_fit_finds_the_noise_that_was_drawn() -> None:
    logs = drawn(cv=0.04, drift=0.01, lag1=0.3, runs=1, servers=400)[0]
    logs[[50, 200]] += 0.4
    found = fit(
        "x", [Server(place % 4, place, float(np.exp(log + place % 4))) for place, log in enumerate(logs)]
    )
    assert found.cv == pytest.approx(0.04, rel=0.1)
    assert found.drift == pytest.approx(0.01, rel=0.05)
    assert found.lag1 == pytest.approx(0.3, abs=0.1)
    assert sorted(found.outliers) == pytest.approx([0.4, 0.4], abs=0.1)
    assert found.noise.outlier_share == 2 / 400


def test_of_two_replicates_that_are_far_apart_the_slower_one_is_the_outlier() -> None:
    turns = [[arm + 1.0, arm + 1.0 + 0.01 * (-1) ** arm] for arm in range(12)]
    turns[8] = [9.0, 12.6]
    order = [*range(12), *reversed(range(12))]
    servers = [Server(arm, place, turns[arm][place // 12]) for place, arm in enumerate(order)]
    assert fit("x", servers).outliers == pytest.approx((np.log(12.6 / 9.0),), abs=0.02)


def test_the_published_sessions_scatter_by_3_to_10_percent() -> None:
    found = fits()
    assert [one.servers for one in found] == [12, 12, 20]
    assert all(0.03 < one.cv < 0.10 for one in found)
    assert [len(one.outliers) for one in found] == [0, 0, 2]
    every = pooled(found)
    assert 0.05 < every.cv < 0.07
    assert every.outlier_share == pytest.approx(2 / 44)
