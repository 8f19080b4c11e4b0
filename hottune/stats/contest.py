"""What confirmed replicates decide: when there are enough of them, which verdicts hold, which arm to use.

Plain numbers go in, one of each arm a round, so that the controls of bench/verdicts run the tool's own rules.

The stage may go on until its intervals are narrow. Looking after every round and stopping at the first narrow
one picks the rounds that scattered least by luck: with a first look after 3 rounds and intervals at 95 %, two
equal arms would be told apart 9 times in 100 instead of 5 (Anscombe 1953, "Sequential estimation", J. R.
Stat. Soc. B 15, explains why; `python -m bench.verdicts` counts it). So the first look comes after
`FIRST_LOOK` rounds, and whatever is looked at again and again has intervals at `LOOKING_LEVEL`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from hottune.stats.intervals import PairedChange, paired_change, precise_enough
from hottune.stats.multiple import holm_changes
from hottune.stats.recommend import Recommendation, recommend

#: Confidence level where the number of rounds was fixed before the first one.
FIXED_LEVEL = 0.95
#: Confidence level where the stage looks after each round whether it may stop.
LOOKING_LEVEL = 0.97
#: Rounds after which such a stage looks for the first time.
FIRST_LOOK = 5

Series = Sequence[float | None]


@dataclass(frozen=True)
class Contest:
    """Candidates against baselines, by one number of each replicate.

    Args:
        values: by arm, its value (tok/s, seconds) in each round; None where a replicate is no measurement.
        baselines: what could be had without the cache. Arms without any value take no part.
        candidates: what might replace the best of them.
        higher_is_better: True for speeds, False for durations.
        level: confidence level of intervals and verdicts.
    """

    values: Mapping[str, Series]
    baselines: Sequence[str]
    candidates: Sequence[str]
    higher_is_better: bool
    level: float = FIXED_LEVEL

    def mean(self, arm: str) -> float | None:
        """Return an arm's mean over its measurements; None when there are none."""
        found = [value for value in self.values.get(arm, ()) if value is not None]
        return fmean(found) if found else None

    @property
    def best_baseline(self) -> str | None:
        """The baseline with the best mean."""
        return self._best(self.baselines)

    @property
    def best_candidate(self) -> str | None:
        """The candidate with the best mean."""
        return self._best(self.candidates)

    def _best(self, arms: Sequence[str]) -> str | None:
        sign = -1 if self.higher_is_better else 1
        costs = {arm: sign * mean for arm in arms if (mean := self.mean(arm)) is not None}
        return min(costs, key=lambda arm: costs[arm], default=None)

    def change(self, arm: str, base: str, level: float | None = None) -> PairedChange | None:
        """Compare the rounds in which both arms were measured; None when there is no such round."""
        both = zip(self.values.get(arm, ()), self.values.get(base, ()), strict=False)
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        if not pairs:
            return None
        return paired_change(
            [a for a, _ in pairs],
            [b for _, b in pairs],
            level=self.level if level is None else level,
            higher_is_better=self.higher_is_better,
        )

    def precise(self, within: float = 0.03) -> bool:
        """Tell whether every candidate's interval against the best baseline is within ±`within`.

        True as well when nothing is left to decide: no candidate or no baseline could be measured.
        """
        best = self.best_baseline
        if best is None:
            return True
        changes = [change for arm in self.candidates if (change := self.change(arm, best))]
        return all(precise_enough(change, within) for change in changes)

    def verdicts(self) -> dict[tuple[str, str], PairedChange]:
        """Compare every candidate with every baseline; verdicts by Holm over all of these comparisons.

        All baselines are in the family because the best of them is chosen from the same replicates: among
        three that are equal the luckiest is the best, and any candidate looks slow beside it. A baseline that
        is far behind costs nothing, for its tiny p-value is the first that Holm's method is done with.
        """
        found = {
            (arm, base): change
            for arm in self.candidates
            for base in self.baselines
            if (change := self.change(arm, base)) is not None
        }
        return dict(zip(found, holm_changes(list(found.values()), level=self.level), strict=True))

    def advise(self) -> Recommendation | None:
        """Recommend the best candidate or the best baseline; None when no baseline was measured.

        The best of several candidates was chosen by the numbers that are to prove it, so its interval is one
        of a family that holds for all of them at once (Bonferroni's method). The verdict is `verdicts`' own.
        """
        best, candidate = self.best_baseline, self.best_candidate
        if best is None:
            return None
        if candidate is None:
            return recommend(best, None, None)
        rivals = sum(1 for arm in self.candidates if self.mean(arm) is not None)
        change = self.change(candidate, best, simultaneous_level(self.level, rivals))
        if change is not None:
            change = replace(change, verdict=self.verdicts()[candidate, best].verdict)
        return recommend(best, candidate, change, rivals=rivals)


def simultaneous_level(level: float, comparisons: int) -> float:
    """Return the level of each interval so that all hold at once with probability `level` (Bonferroni).

    Dunn (1961), "Multiple comparisons among means", J. Am. Stat. Assoc. 56, 52-64.
    """
    return 1 - (1 - level) / max(1, comparisons)
