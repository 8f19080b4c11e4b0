"""A landscape: what every placement of one model on one machine costs, and how long it takes to find out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

import numpy as np

from bench.made_up import hot_stats, measured
from hottune.outcomes import Measurement, Outcome, OutOfMemory, RequestSample
from hottune.placement import Placement, needs_restart
from hottune.search.looks import looks_among
from hottune.search.space import Space


@dataclass(frozen=True)
class Truth:
    """What one placement would give on average, without noise."""

    prompt_tokens: int
    output_tokens: int
    prefill_s: float
    decode_s: float
    vram_mib: float
    hit_rate: float | None

    @property
    def turn_s(self) -> float:
        """Wall-clock of a warm request, seconds."""
        return self.prefill_s + self.decode_s


class Landscape(Protocol):
    """One model on one machine under one ceiling."""

    name: str
    space: Space
    noise: float  # coefficient of variation of a measured turn
    load_s: float  # to start a server
    requests: int  # that a measurement drives, the warm-up included

    def truth(self, placement: Placement) -> Truth | None:
        """Return what a placement gives, or None when it does not fit into VRAM."""

    def grid(self) -> list[Placement]:
        """Return every placement of the exhaustive grid, ordered so that few servers are started."""


@dataclass
class Clocked:
    """Measures placements of a landscape with noise, and counts the seconds that real servers would take.

    A placement that differs from the one before in live settings alone needs no fresh server, as in the tool.
    """

    landscape: Landscape
    seed: int
    #: What was measured: placement, seconds on the clock when it was known, measured turn (None: failed).
    history: list[tuple[Placement, float, float | None]] = field(default_factory=list)
    seconds: float = 0.0
    servers: int = 0
    _up: Placement | None = None
    _truths: dict[Placement, Truth | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def __call__(self, placement: Placement) -> Outcome:
        """Measure a placement."""
        truth = self.truth(placement)
        reuse = self._up is not None and placement.hot_k > 0 and not needs_restart(self._up, placement)
        if not reuse:
            self.seconds += self.landscape.load_s
            self.servers += 1
        if truth is None:
            self._up = None
            self.history.append((placement, self.seconds, None))
            return OutOfMemory(stage="load", detail="does not fit")
        sigma = math.sqrt(math.log1p(self.landscape.noise**2))
        wobble = float(np.exp(self._rng.normal(0.0, sigma)))
        self._up = placement if placement.hot_k else None
        self.seconds += self.landscape.requests * truth.turn_s
        self.history.append((placement, self.seconds, truth.turn_s * wobble))
        return outcome(placement, truth, wobble)

    def truth(self, placement: Placement) -> Truth | None:
        """Return what the landscape says of a placement, computed once."""
        if placement not in self._truths:
            self._truths[placement] = self.landscape.truth(placement)
        return self._truths[placement]

    def quality_at(self, seconds: float, optimum_s: float) -> float:
        """Return the share of the best speed that the best placement known by then has; 0 without one.

        The best is chosen by what was measured, as the tool does (`search.study.ranked`); what counts is its
        true turn.
        """
        turns: dict[Placement, list[float]] = {}
        for placement, at, turn_s in self.history:
            if turn_s is not None and at <= seconds:
                turns.setdefault(placement, []).append(turn_s)
        if not turns:
            return 0.0
        looks = looks_among(turns.values())
        known = [placement for placement, found in turns.items() if len(found) >= looks]
        best = self.truth(min(known, key=lambda placement: fmean(turns[placement])))
        assert best is not None
        return optimum_s / best.turn_s


def outcome(placement: Placement, truth: Truth, wobble: float = 1.0) -> Measurement:
    """Return a measurement with the numbers of a landscape."""
    prefill_s, decode_s = truth.prefill_s * wobble, truth.decode_s * wobble
    hits = round(1000 * (truth.hit_rate or 0.0))
    sample = RequestSample(
        workload="landscape",
        warmup=False,
        prompt_tokens=truth.prompt_tokens,
        output_tokens=truth.output_tokens,
        prefill_ms=1000 * prefill_s,
        decode_ms=1000 * decode_s,
        ttft_ms=1000 * prefill_s,
        turn_s=prefill_s + decode_s,
        token_ms=[1000 * decode_s / max(1, truth.output_tokens - 1)],
        text_sha256="",
    )
    return measured(sample, truth.vram_mib, hot_stats(placement, hits, 1000 - hits))


def sweep(landscape: Landscape) -> tuple[float, float]:
    """Return the least true turn of the exhaustive grid, and the seconds that measuring all of it takes."""
    clock = Clocked(landscape, 0)
    best = math.inf
    for placement in landscape.grid():
        clock(placement)
        truth = clock.truth(placement)
        if truth is not None:
            best = min(best, truth.turn_s)
    return best, clock.seconds
