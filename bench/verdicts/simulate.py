"""Confirm stages with simulated servers, decided by the tool's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.verdicts.noise import Noise
from hottune.search.baselines import BASELINES
from hottune.search.confirm import HOT_ARMS, enough, level_of
from hottune.search.rounds import Rounds
from hottune.stats import Contest, interleaved

#: A rule that decides a stage: may it stop after so many whole rounds?
Stop = Callable[[Rounds, int, Contest], bool]
#: The order in which arms run, by their names and the number of rounds.
Order = Callable[[Sequence[str], int], list[str]]
#: Makes the contest of the values so far.
Judge = Callable[[Mapping[str, Sequence[float]], float], Contest]


@dataclass(frozen=True)
class Arms:
    """True speeds, by arm; 1 is that of the best baseline."""

    name: str
    speeds: Mapping[str, float]


@dataclass(frozen=True)
class Shares:
    """What simulated stages ended as, as shares of all of them.

    A stage counts as faster when any candidate is called faster than the best baseline, else as slower when
    any is called slower, else as "can't tell".
    """

    runs: int
    faster: float
    slower: float
    cannot_tell: float
    recommended_hot: float
    rounds: float


def by_the_tool(values: Mapping[str, Sequence[float]], level: float) -> Contest:
    """Return the tool's contest of durations."""
    static = [arm for arm in BASELINES if arm in values]
    hot = [arm for arm in HOT_ARMS if arm in values]
    return Contest(values, static, hot, higher_is_better=False, level=level)


def simulate(
    arms: Arms,
    noise: Noise,
    rounds: Rounds,
    *,
    runs: int,
    seed: int,
    stop: Stop = enough,
    judge: Judge = by_the_tool,
    in_order: Order = interleaved,
    level: float | None = None,
) -> Shares:
    """Run many stages with one noise and return what they ended as.

    Args:
        arms: what is compared, and how fast it really is.
        noise: of the servers.
        rounds: as in `hottune.search.confirm.confirm`.
        runs: simulated stages.
        seed: of all draws; the same seed gives the same numbers.
        stop: when to stop; like the next three the tool's own, or another to show what it would do.
        judge: how to compare.
        in_order: which server runs when.
        level: of the intervals; None = the tool's.
    """
    names = list(arms.speeds)
    order = in_order(names, rounds.most)
    slow = np.array([-math.log(arms.speeds[name]) for name in order])
    drawn = np.exp(slow + noise.draw(np.random.default_rng(seed), runs, len(order)))
    level = level_of(rounds) if level is None else level
    ended = [_stage(names, order, [float(one) for one in row], rounds, stop, judge, level) for row in drawn]
    verdicts = [verdict for verdict, _, _ in ended]
    return Shares(
        runs=runs,
        faster=verdicts.count("faster") / runs,
        slower=verdicts.count("slower") / runs,
        cannot_tell=verdicts.count("can't tell") / runs,
        recommended_hot=sum(arm in HOT_ARMS for _, arm, _ in ended) / runs,
        rounds=sum(used for _, _, used in ended) / runs,
    )


def _stage(
    names: Sequence[str],
    order: Sequence[str],
    seconds: Sequence[float],
    rounds: Rounds,
    stop: Stop,
    judge: Judge,
    level: float,
) -> tuple[str, str, int]:
    """Return verdict, recommended arm and rounds of one stage."""
    values: dict[str, list[float]] = {name: [] for name in names}
    used = 0
    for done in range(rounds.most):
        if done and stop(rounds, done, judge(values, level)):
            break
        for position in range(done * len(names), (done + 1) * len(names)):
            values[order[position]].append(seconds[position])
        used = done + 1
    contest = judge(values, level)
    best, advice = contest.best_baseline, contest.advise()
    assert best is not None
    assert advice is not None
    found = {change.verdict for (_, base), change in contest.verdicts().items() if base == best}
    verdict = next((one for one in ("faster", "slower") if one in found), "can't tell")
    return verdict, advice.arm, used


def winners_curse(
    noise: Noise, *, trials: int, top: int, rounds: int, runs: int, seed: int
) -> tuple[float, float]:
    """Search among equal placements, measure the best again, and return by how much each seems to be faster.

    Args:
        noise: of the servers, also those of the search.
        trials: placements of the search, all as fast as the baseline.
        top: how many of them are measured again.
        rounds: fresh servers of each.
        runs: simulated studies.
        seed: of all draws.

    Returns:
        Mean gain (relative) of the search's best over the baseline by the search's own numbers, and by fresh
        replicates.
    """
    rng = np.random.default_rng(seed)
    search = noise.draw(rng, runs, trials + 1)
    searched = search[:, :1] - search[:, 1:].min(axis=1, keepdims=True)
    order = interleaved(["layers", *HOT_ARMS[:top]], rounds)
    fresh = noise.draw(rng, runs, len(order))
    where = np.array(order)
    again = fresh[:, where == "layers"].mean(axis=1) - fresh[:, where == "hot"].mean(axis=1)
    return math.expm1(float(searched.mean())), math.expm1(float(again.mean()))
