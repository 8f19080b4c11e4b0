"""Rules that the tool does not use, to show that the controls notice: each fails one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from bench.verdicts.simulate import by_the_tool
from hottune.search.rounds import Rounds
from hottune.stats import Contest, PairedChange


def one_arm_after_the_other(names: Sequence[str], rounds: int) -> list[str]:
    """Return the order A A A B B B."""
    return [name for name in names for _ in range(rounds)]


def stop_at_the_first_narrow_one(rounds: Rounds, done: int, so_far: Contest) -> bool:
    """Look after every round from the third on."""
    return rounds.precise and done >= 3 and so_far.precise()


class Unpaired(Contest):
    """Compares the means of two arms, whatever round their replicates come from."""

    def change(self, arm: str, base: str, level: float | None = None) -> PairedChange | None:
        """Compare by Welch's t on the logarithms. Welch (1947), Biometrika 34, 28-35."""
        level = self.level if level is None else level
        a, b = (np.log([one for one in self.values[name] if one is not None]) for name in (arm, base))
        parts = np.array([np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)])
        error = math.sqrt(float(parts.sum()))
        df = error**4 / float((parts**2 / [len(a) - 1, len(b) - 1]).sum())
        mean = float(np.mean(b) - np.mean(a))
        half = float(student.ppf(0.5 + level / 2, df)) * error
        verdict = "faster" if mean > half else "slower" if mean < -half else "can't tell"
        p_value = 2 * float(student.sf(abs(mean) / error, df))
        bounds = math.exp(mean - half), math.exp(mean + half)
        return PairedChange(math.exp(mean), *bounds, verdict, "Welch's t", p_value)  # type: ignore[arg-type]


def unpaired(values: Mapping[str, Sequence[float]], level: float) -> Contest:
    """Return the contest of durations that forgets rounds."""
    one = by_the_tool(values, level)
    return Unpaired(one.values, one.baselines, one.candidates, False, level)
