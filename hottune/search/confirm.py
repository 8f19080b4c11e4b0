"""Confirm: the best of the search and every baseline again, in fresh servers and interleaved.

The best of many noisy trials looks better than it is (the winner's curse), so the search's own numbers
decide only what is measured again, never what is recommended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.report.schema import ArmName, Replicate, Trial
from hottune.search.baselines import BASELINES
from hottune.search.journal import Journal
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.recorder import Measure
from hottune.search.rounds import Rounds
from hottune.search.study import best_of_arms, ranked
from hottune.stats import FIRST_LOOK, FIXED_LEVEL, LOOKING_LEVEL, Contest
from hottune.stats.order import interleaved

#: Rounds that are measured even when the time budget is used up: two hardly ever tell anything from noise.
LEAST_ROUNDS = 3
#: The candidates of the search, best first; `hot` is the search's best, whatever the replicates then say.
HOT_ARMS: tuple[ArmName, ...] = ("hot", "hot-2", "hot-3")

#: Why the stage ended: so many rounds were asked for; all deciding intervals were narrow; they were not after
#: the most rounds; the time was up; it did not come to its end yet.
Ended = Literal["fixed", "precise", "most", "time", "interrupted"]


@dataclass(frozen=True)
class Confirmed:
    """Replicates of each arm, in the order they were measured."""

    placements: dict[ArmName, Placement]
    replicates: dict[ArmName, list[Replicate]] = field(default_factory=dict)
    level: float = FIXED_LEVEL
    ended: Ended = "fixed"


Watch = Callable[[ArmName, Placement, Replicate], None]


def candidates(
    trials: Iterable[Trial], objective: Objective, top: int, limits: Limits = NO_LIMITS
) -> dict[ArmName, Trial]:
    """Return what is measured again: the best of each baseline and engine, and the search's `top` best."""
    known = list(trials)
    best = best_of_arms(known, objective, limits)
    found = {arm: trial for arm, trial in best.items() if arm in BASELINES}
    for engine in rivals_in(known):
        mine = ranked((trial for trial in known if trial.arm == engine), objective, limits)
        found |= {engine: mine[0]} if mine else {}
    hot = ranked((trial for trial in known if trial.arm is None), objective, limits)
    return found | dict(zip(HOT_ARMS[:top], hot, strict=False))


def rivals_in(trials: Iterable[Trial]) -> list[ArmName]:
    """Return the other engines that trials are of, in the order of their first one."""
    arms = dict.fromkeys(trial.arm for trial in trials if trial.arm and trial.placement.engine)
    return [arm for arm in arms if arm is not None]


def confirm(
    journal: Journal,
    placements: Mapping[ArmName, Placement],
    rounds: Rounds,
    measure: Measure | None,
    *,
    spent: Callable[[], bool] = lambda: False,
    watch: Watch = lambda arm, placement, replicate: None,
) -> Confirmed:
    """Measure every arm once a round, in interleaved order; replicates already in the journal are kept.

    Whether to stop follows from the replicates (and the clock) alone, so a stage that is resumed ends where
    it would have ended.

    Args:
        journal: where replicates are kept; a killed process loses only the one that ran.
        placements: what to measure again, by arm.
        rounds: replicates of each arm.
        measure: starts a fresh server and measures a placement in it; None only reads what there is.
        spent: says that the time is up; asked before each round from the fourth on that is not yet measured.
        watch: told about every replicate, also about those that were kept.
    """
    key = plan_key(placements)
    done = journal.replicates(key)
    replicates: dict[ArmName, list[Replicate]] = {arm: [] for arm in placements}
    level = level_of(rounds)
    ended: Ended = "most" if rounds.precise else "fixed"
    n_arms = max(1, len(placements))
    for position, name in enumerate(interleaved(list(placements), rounds.most)):
        arm = next(known for known in placements if known == name)
        round_number, place = divmod(position, n_arms)
        if place == 0 and enough(rounds, round_number, contest(replicates, journal.objective, level)):
            ended = "precise"
            break
        if position not in done:
            if measure is None:
                ended = "interrupted"
                break
            if place == 0 and round_number >= LEAST_ROUNDS and spent():
                ended = "time"
                break
            done[position] = (
                arm,
                journal.try_replicate(key, position, arm, placements[arm], measure),
            )
        replicate = done[position][1]
        replicates[arm].append(replicate)
        watch(arm, placements[arm], replicate)
    return Confirmed(dict(placements), replicates, level, ended)


def level_of(rounds: Rounds) -> float:
    """Return the confidence level: wider intervals where the stage looks at them to decide when to stop."""
    return LOOKING_LEVEL if rounds.precise else FIXED_LEVEL


def enough(rounds: Rounds, done: int, so_far: Contest) -> bool:
    """Tell whether the stage may stop after `done` whole rounds (why so late: hottune/stats/contest.py)."""
    return rounds.precise and done >= FIRST_LOOK and so_far.precise()


def contest(
    replicates: Mapping[ArmName, list[Replicate]],
    objective: Objective,
    level: float = FIXED_LEVEL,
    *,
    baselines: Iterable[ArmName] = BASELINES,
    candidates: Iterable[ArmName] = HOT_ARMS,
) -> Contest:
    """Return what the replicates say about the objective.

    Other engines take no part by default: they are neither what one has without the cache nor what hottune
    can recommend.
    """
    values: dict[str, list[float | None]] = {
        arm: [
            objective.measured(one.outcome) if isinstance(one.outcome, Measurement) else None for one in found
        ]
        for arm, found in replicates.items()
    }
    hot = [arm for arm in candidates if arm in replicates]
    static = [arm for arm in baselines if arm in replicates]
    return Contest(values, static, hot, objective.metric != "turn", level)


def plan_key(placements: Mapping[ArmName, Placement]) -> str:
    """Return a key of what is compared, so that replicates of another comparison are never mixed in."""
    text = "\n".join(f"{arm} {placement.model_dump_json()}" for arm, placement in placements.items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
