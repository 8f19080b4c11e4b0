"""What confirmed replicates decide, by plain numbers."""

from __future__ import annotations

import pytest

from hottune.stats import Contest
from hottune.stats.contest import simultaneous_level

BASE = [10.0, 10.1, 9.9, 10.05, 9.95]
FASTER = [8.0, 8.12, 7.88, 8.02, 7.98]


def contest(level: float = 0.95, **seconds: list[float | None]) -> Contest:
    values = {name.replace("_", "-"): found for name, found in seconds.items()}
    static = [arm for arm in ("all-cpu", "layers", "fit") if arm in values]
    return Contest(values, static, [arm for arm in values if arm.startswith("hot")], False, level)


def test_the_best_are_those_with_the_best_means_of_what_was_measured() -> None:
    one = contest(layers=[3.0, None, 5.0], fit=[4.5, 4.5, 4.5], hot=[2.0], hot_2=[1.0, 2.0])
    assert (one.best_baseline, one.best_candidate) == ("layers", "hot-2")
    speeds = Contest(one.values, one.baselines, one.candidates, higher_is_better=True)
    assert (speeds.best_baseline, speeds.best_candidate) == ("fit", "hot")


def test_only_rounds_in_which_both_were_measured_are_compared() -> None:
    one = contest(layers=[10.0, None, 10.0, 10.0], hot=[5.0, 1.0, 5.0, None])
    change = one.change("hot", "layers")
    assert change is not None
    assert change.ratio == pytest.approx(2.0)
    assert change.method.endswith("n=2")
    assert contest(layers=[None, 1.0], hot=[1.0, None]).change("hot", "layers") is None


def test_precision_asks_every_candidate() -> None:
    wide = [8.0, 9.0, 7.0, 10.0, 6.0]
    assert contest(layers=BASE, hot=FASTER).precise()
    assert not contest(layers=BASE, hot=FASTER, hot_2=wide).precise()
    assert contest(layers=BASE, fit=[2 * one for one in wide], hot=FASTER).precise(), "fit does not decide"


def test_a_higher_level_asks_for_more_precision() -> None:
    nearly = [8.0, 8.3, 7.7, 8.1, 7.95]
    assert contest(layers=BASE, hot=nearly).precise()
    assert not contest(0.99, layers=BASE, hot=nearly).precise()


def test_where_nothing_is_left_to_decide_nothing_more_is_measured() -> None:
    assert contest(hot=FASTER).precise()
    assert contest(layers=BASE, hot=[None] * 5).precise()


def test_verdicts_are_by_holm_over_candidates_and_baselines() -> None:
    one = contest(layers=BASE, fit=BASE, hot=FASTER, hot_2=[value * 0.985 for value in reversed(BASE)])
    alone = one.change("hot-2", "layers")
    found = one.verdicts()
    assert found.keys() == {(a, b) for a in ("hot", "hot-2") for b in ("layers", "fit")}
    assert found["hot", "layers"].verdict == "faster"
    assert alone is not None
    assert alone.p_value is not None
    assert (found["hot-2", "layers"].p_value or 0) > alone.p_value
    assert found["hot-2", "layers"].method.endswith("Holm over 4")


def test_a_baseline_far_behind_does_not_weaken_the_verdict() -> None:
    weak = [9.95, 10.02, 9.65, 10.0, 9.7]
    assert contest(layers=BASE, hot=weak).verdicts()["hot", "layers"].verdict == "faster"
    behind = contest(layers=BASE, all_cpu=[4 * value for value in BASE], hot=weak)
    assert behind.verdicts()["hot", "layers"].verdict == "faster"
    close = contest(layers=BASE, fit=[10.1, 9.9, 10.2, 9.8, 10.3], all_cpu=list(reversed(BASE)), hot=weak)
    assert close.verdicts()["hot", "layers"].verdict == "can't tell"


def test_the_best_of_several_needs_more_than_a_single_one() -> None:
    hot = [9.7, 10.1, 9.95, 9.8, 9.85]
    single = contest(layers=BASE, hot=hot).advise()
    assert single is not None
    assert single.arm == "hot"
    several = contest(layers=BASE, hot=hot, hot_2=[11.0] * 5, hot_3=[11.0] * 5).advise()
    assert several is not None
    assert several.arm == "layers"
    assert "interval for the best of 3" in several.reason


def test_without_a_baseline_or_a_candidate_there_is_nothing_to_weigh() -> None:
    assert contest(hot=FASTER).advise() is None
    only = contest(layers=BASE, hot=[None] * 5).advise()
    assert only is not None
    assert only.arm == "layers"


def test_simultaneous_levels_share_what_may_go_wrong() -> None:
    assert simultaneous_level(0.95, 1) == pytest.approx(0.95)
    assert simultaneous_level(0.97, 3) == pytest.approx(0.99)
