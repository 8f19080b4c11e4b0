"""Run the controls: `python -m bench.verdicts`; with real servers `python -m bench.verdicts --real demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.verdicts.fitted import Fit, fits, pooled
from bench.verdicts.scenarios import CALM, NOISY, Row, broken, table
from bench.verdicts.simulate import winners_curse
from hottune.search.rounds import Rounds

TOLD_APART, FOUND = 0.05, 0.90
RUNS, SEED = 4000, 20260301


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the controls; return 0, or 1 when equal arms were told apart too often."""
    parser = argparse.ArgumentParser(prog="python -m bench.verdicts", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"stages a line (default {RUNS})")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--real", metavar="MODEL", help="one A/A stage with real servers instead")
    parser.add_argument("--rounds", type=int, default=6, help="with --real: fresh servers of each arm")
    asked = parser.parse_args(arguments)
    if asked.real:
        from bench.verdicts.real import equal_arms

        return equal_arms(asked.real, asked.rounds)
    return simulated(asked.runs, asked.seed)


def simulated(runs: int, seed: int) -> int:
    """Print noise of real sessions, the table, and what other rules would do."""
    found = fits()
    say("Noise of published sessions (turn):\n")
    say("| session | servers | arms | CV | drift a server | lag-1 | first server | outliers |")
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for one in found:
        say(fit_line(one))
    every = pooled(found)
    say(
        f"| {every.name} | {sum(one.servers for one in found)} | | {every.cv:.1%} | | {every.lag1:+.2f} | | "
        f"{every.outlier_share:.1%} of servers |"
    )
    say(f"\n{runs} simulated stages a line and effect, seed {seed}:\n")
    say(
        "| noise | arms | rounds | A/A: faster / slower / can't tell | +5 % found | −3 % recommended | "
        "rounds used | servers |"
    )
    say("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for row in table(found, runs, seed):
        rows.append(row)
        say(row_line(row))
    say("\nOther rules, one baseline and one candidate:\n")
    say("| rule | A/A: can't tell | +5 % found |\n| --- | ---: | ---: |")
    for name, equal, gain in broken(runs, seed):
        say(f"| {name} | {equal.cannot_tell:.1%} | {gain.faster:.1%} |")
    for noise in (CALM, NOISY, every):
        search, again = winners_curse(noise, trials=20, top=2, rounds=8, runs=runs, seed=seed)
        say(f"\nBest of 20 equal placements, {noise.name}: {search:+.1%} in the search, {again:+.1%} again.")
    # Two standard errors: a share that is exactly 5 % is above it in half of all simulations.
    allowed = TOLD_APART + 2 * (TOLD_APART * (1 - TOLD_APART) / runs) ** 0.5
    apart = [row for row in rows if 1 - row.equal.cannot_tell > allowed]
    for row in apart:
        say(
            f"\nMISSED: {row.noise.name}, {row.layout}: equal arms told apart {1 - row.equal.cannot_tell:.1%}"
        )
    return 1 if apart else 0


def fit_line(one: Fit) -> str:
    """Return a session as a line of its table."""
    first = "" if one.first is None else f"{one.first:+.1%}"
    far = ", ".join(f"+{size:.0%}" for size in one.outliers) or "none"
    return (
        f"| {one.name} | {one.servers} | {one.arms} | {one.cv:.1%} | {one.drift:+.1%} | {one.lag1:+.2f} | "
        f"{first} | {far} |"
    )


def row_line(row: Row) -> str:
    """Return a line of the table; what misses its goal is marked."""
    equal = row.equal
    missed = " (missed)" if row.gain.faster < FOUND else ""
    apart = f"{equal.faster:.1%} / {equal.slower:.1%} / {equal.cannot_tell:.1%}"
    return (
        f"| {row.noise.name} | {row.layout} | {rounds_words(row.rounds)} | "
        f"{apart} | {row.gain.faster:.1%}{missed} | "
        f"{row.loss.recommended_hot:.2%} | {row.gain.rounds:.1f} | {row.servers:.0f} |"
    )


def rounds_words(rounds: Rounds) -> str:
    """Return how many rounds were allowed."""
    return f"default, at most {rounds.most}" if rounds.precise else f"{rounds.most}"


def say(line: str) -> None:
    """Print a line at once: the table takes minutes."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
