"""Equal arms are not told apart, a gain is found, and rules that get it wrong are caught."""

from __future__ import annotations

from pathlib import Path

import planned_values
import pytest

from bench.verdicts.broken import one_arm_after_the_other, stop_at_the_first_narrow_one, unpaired
from bench.verdicts.noise import Noise
from bench.verdicts.scenarios import CALM, DRIFTING, GAIN, LOSS, NOISY, STICKY, arms
from bench.verdicts.simulate import Shares, simulate, winners_curse
from hottune.search.confirm import confirm, contest
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.rounds import MOST_ROUNDS, Rounds
from hottune.search.storage import sqlite_url
from hottune.stats import FIXED_LEVEL

RUNS, SEED = 800, 11
OPEN = Rounds(MOST_ROUNDS, precise=True)


def tells_equal_arms_apart(shares: Shares) -> bool:
    """More than 5 in 100, by more than three standard errors: the A/A check."""
    return 1 - shares.cannot_tell > 0.05 + 3 * (0.05 * 0.95 / shares.runs) ** 0.5


@pytest.mark.parametrize("noise", [CALM, NOISY, DRIFTING], ids=lambda noise: noise.name)
@pytest.mark.parametrize("layout", ["pair", "run"])
@pytest.mark.parametrize("rounds", [OPEN, Rounds(3), Rounds(12)], ids=["open", "3", "12"])
def test_equal_arms_are_told_apart_at_most_5_times_in_100(noise: Noise, layout: str, rounds: Rounds) -> None:
    assert not tells_equal_arms_apart(simulate(arms(layout, 0), noise, rounds, runs=RUNS, seed=SEED))


def test_noise_that_lasts_from_server_to_server_is_more_than_two_arms_alone_can_take() -> None:
    """A known limit (docs/measuring.md): in A B, B A the two Bs are neighbours."""
    alone, among = (
        simulate(arms(layout, 0), STICKY, Rounds(12), runs=RUNS, seed=SEED) for layout in ("pair", "run")
    )
    assert tells_equal_arms_apart(alone)
    assert not tells_equal_arms_apart(among)


def test_three_equal_candidates_are_no_more_often_told_apart_than_one() -> None:
    assert not tells_equal_arms_apart(simulate(arms("run 3", 0), CALM, Rounds(6), runs=RUNS, seed=SEED))


def test_a_gain_of_5_percent_is_found_at_3_percent_noise_in_12_rounds() -> None:
    for layout in ("pair", "run"):
        assert simulate(arms(layout, GAIN), CALM, Rounds(12), runs=RUNS, seed=SEED).faster >= 0.9


def test_at_7_percent_noise_12_rounds_are_too_few_and_60_are_enough() -> None:
    assert simulate(arms("run", GAIN), NOISY, Rounds(12), runs=RUNS, seed=SEED).faster < 0.5
    assert simulate(arms("run", GAIN), NOISY, Rounds(60), runs=RUNS, seed=SEED).faster >= 0.9


@pytest.mark.parametrize("rounds", [OPEN, Rounds(2), Rounds(12)], ids=["open", "2", "12"])
def test_what_is_3_percent_slower_is_hardly_ever_recommended(rounds: Rounds) -> None:
    for noise in (CALM, NOISY):
        assert simulate(arms("run 3", LOSS), noise, rounds, runs=RUNS // 2, seed=SEED).recommended_hot < 0.025


def test_measuring_one_arm_after_the_other_fails_the_check_when_speed_drifts() -> None:
    blocked = simulate(
        arms("pair", 0), DRIFTING, Rounds(6), runs=RUNS, seed=SEED, in_order=one_arm_after_the_other
    )
    assert tells_equal_arms_apart(blocked)


def test_stopping_at_the_first_narrow_interval_fails_the_check() -> None:
    eager = simulate(
        arms("pair", 0),
        CALM,
        Rounds(12, precise=True),
        runs=2 * RUNS,
        seed=SEED,
        stop=stop_at_the_first_narrow_one,
        level=FIXED_LEVEL,
    )
    assert tells_equal_arms_apart(eager)
    assert not tells_equal_arms_apart(
        simulate(arms("pair", 0), CALM, Rounds(12, precise=True), runs=2 * RUNS, seed=SEED)
    )


def test_without_pairing_drift_hides_a_gain() -> None:
    options = {"runs": RUNS, "seed": SEED}
    paired = simulate(arms("pair", GAIN), DRIFTING, Rounds(12), **options)  # type: ignore[arg-type]
    apart = simulate(arms("pair", GAIN), DRIFTING, Rounds(12), judge=unpaired, **options)  # type: ignore[arg-type]
    assert paired.faster > apart.faster + 0.4


def test_the_searchs_own_number_flatters_and_the_replicates_do_not() -> None:
    search, again = winners_curse(NOISY, trials=20, top=2, rounds=8, runs=RUNS, seed=SEED)
    assert search > 0.10
    assert abs(again) < 0.01


def test_the_same_seed_gives_the_same_numbers() -> None:
    one, two, other = (simulate(arms("pair", GAIN), CALM, OPEN, runs=200, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("cv", [0.01, 0.08])
def test_a_simulated_stage_ends_like_the_tools_own(tmp_path: Path, cv: float) -> None:
    noise = Noise("one", cv)
    servers = planned_values.Servers(arms("run", GAIN), noise, OPEN.most, seed=5)
    journal = Journal("x", sqlite_url(tmp_path / "x.db"), Objective.TURN)
    confirmed = confirm(journal, servers.placements, OPEN, servers)
    shares = simulate(arms("run", GAIN), noise, OPEN, runs=1, seed=5)
    rounds = {len(found) for found in confirmed.replicates.values()}
    assert rounds == {shares.rounds}
    judged = contest(confirmed.replicates, Objective.TURN, confirmed.level)
    advice = judged.advise()
    assert advice is not None
    assert advice.arm.startswith("hot") == bool(shares.recommended_hot)
    verdicts = {one.verdict for (_, base), one in judged.verdicts().items() if base == judged.best_baseline}
    assert ("faster" in verdicts) == bool(shares.faster)
