"""What is simulated: noise x arms x rounds, each with equal arms, a gain of 5 % and a loss of 3 %."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.verdicts.broken import one_arm_after_the_other, stop_at_the_first_narrow_one, unpaired
from bench.verdicts.fitted import Fit, pooled
from bench.verdicts.noise import Noise
from bench.verdicts.simulate import Arms, Shares, simulate
from hottune.search.confirm import HOT_ARMS
from hottune.search.rounds import MOST_ROUNDS, Rounds
from hottune.stats import FIXED_LEVEL

GAIN, LOSS = 0.05, -0.03
CALM, NOISY = Noise("CV 3 %", 0.03), Noise("CV 7 %", 0.07)
DRIFTING = Noise("CV 3 %, each server 2 % slower", 0.03, drift=0.02)
STICKY = Noise("CV 3 %, neighbours correlated 0.5", 0.03, lag1=0.5)
COLD = Noise("CV 3 %, first server 10 % slower", 0.03, first=0.1)

DEFAULT = Rounds(MOST_ROUNDS, precise=True)


def arms(layout: str, effect: float) -> Arms:
    """Return a layout with all candidates faster than the best baseline by `effect`.

    `pair`: one baseline, one candidate. `run`: what `hottune run` compares, with two baselines that are equal
    (which one is best is then luck) and one far behind; `run 3`: the same with three candidates.
    """
    hot = {"pair": 1, "run": 2, "run 3": 3}[layout]
    static = {"layers": 1.0} if layout == "pair" else {"all-cpu": 0.6, "layers": 1.0, "fit": 1.0}
    return Arms(layout, static | dict.fromkeys(HOT_ARMS[:hot], 1 + effect))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    noise: Noise
    layout: str
    rounds: Rounds
    equal: Shares
    gain: Shares
    loss: Shares

    @property
    def servers(self) -> float:
        """Servers of a stage, on average, at a gain."""
        return self.gain.rounds * len(arms(self.layout, 0).speeds)


def planned(found: list[Fit]) -> list[tuple[Noise, str, Rounds]]:
    """Return all lines of the table."""
    calm = [(CALM, layout, rounds) for layout in ("pair", "run", "run 3") for rounds in (DEFAULT, Rounds(12))]
    noisy = [
        (NOISY, layout, rounds) for layout in ("pair", "run") for rounds in (DEFAULT, Rounds(12), Rounds(60))
    ]
    harder = [
        (noise, "run", rounds) for noise in (DRIFTING, STICKY, COLD) for rounds in (DEFAULT, Rounds(12))
    ]
    harder += [(STICKY, "pair", rounds) for rounds in (DEFAULT, Rounds(12))]
    real = [one.noise for one in found] + [pooled(found)]
    fitted = [(noise, "run", rounds) for noise in real for rounds in (DEFAULT, Rounds(12))]
    return [*calm, *noisy, *harder, *fitted, (real[-1], "run", Rounds(60))]


def table(found: list[Fit], runs: int, seed: int) -> Iterator[Row]:
    """Simulate line after line."""
    for noise, layout, rounds in planned(found):
        shares = [
            simulate(arms(layout, effect), noise, rounds, runs=runs, seed=seed + index)
            for index, effect in enumerate((0.0, GAIN, LOSS))
        ]
        yield Row(noise, layout, rounds, *shares)


def broken(runs: int, seed: int) -> Iterator[tuple[str, Shares, Shares]]:
    """Simulate rules that the tool does not use: equal arms, and a gain of 5 %."""
    equal, gain = arms("pair", 0), arms("pair", GAIN)
    yield (
        "all of A, then all of B; 12 rounds, each server 2 % slower",
        *(
            simulate(one, DRIFTING, Rounds(12), runs=runs, seed=seed, in_order=one_arm_after_the_other)
            for one in (equal, gain)
        ),
    )
    yield (
        "interleaved, but not paired; 12 rounds, each server 2 % slower",
        *(simulate(one, DRIFTING, Rounds(12), runs=runs, seed=seed, judge=unpaired) for one in (equal, gain)),
    )
    yield (
        "intervals at 95 %, the first narrow one from round 3 on ends it, 12 rounds at most; CV 3 %",
        *(
            simulate(
                one,
                CALM,
                Rounds(12, precise=True),
                runs=runs,
                seed=seed,
                stop=stop_at_the_first_narrow_one,
                level=FIXED_LEVEL,
            )
            for one in (equal, gain)
        ),
    )
