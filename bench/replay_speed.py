"""How long a whole sweep of replays takes: 4 policies x 8 sizes x 1 M choices a layer x 48 layers.

The routing is made here: top 8 of 128 scores, each a fixed part, a part of the prompt, and an AR(1) part
(rho 0.61), with the deviations of a fit to Qwen3-30B-A3B (docs/routing.md). Six layers are drawn; the others
are those with their experts renumbered, which costs a cache the same.

    python bench/replay_speed.py [--tokens N] [--threads N]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import numpy.typing as npt

from hottune.cli.common import cache_dir
from hottune.engine.replay_library import provide_replay_library
from hottune.placement import Policy
from hottune.routing.replay import Replay, ReplaySettings, Routing

N_LAYERS, N_DRAWN, N_EXPERT, N_USED = 48, 6, 128, 8
SIGMA_FIXED, SIGMA_PROMPT, SIGMA_TOKEN, RHO = 0.75, 2.06, 1.83, 0.61
PROMPT = 512  # tokens
POLICIES: tuple[Policy, ...] = ("window", "lru", "lfru", "static")
SIZES = (8, 16, 24, 32, 48, 64, 80, 96)
EXPERT_BYTES = 2_654_208  # of Qwen3-30B-A3B in Q4_K: 3 x 2048 x 768 weights of 4.5 bits
GOAL_S = 60.0


def draw_layer(n_tokens: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    fixed = rng.normal(0, SIGMA_FIXED, N_EXPERT)
    token = rng.normal(0, SIGMA_TOKEN, N_EXPERT)
    chosen = np.empty((n_tokens, N_USED), np.int32)
    for start in range(0, n_tokens, PROMPT):
        n = min(PROMPT, n_tokens - start)
        steps = rng.normal(0, SIGMA_TOKEN * (1 - RHO**2) ** 0.5, (n, N_EXPERT))
        for row in steps:
            token = RHO * token + row
            row[:] = token
        scores = steps + fixed + rng.normal(0, SIGMA_PROMPT, N_EXPERT) + rng.normal(0, 1, (n, N_EXPERT))
        chosen[start : start + n] = np.argpartition(-scores, N_USED - 1, axis=1)[:, :N_USED]
    return chosen


def draw(n_tokens: int, seed: int = 1) -> Routing:
    rng = np.random.default_rng(seed)
    drawn = [draw_layer(n_tokens, rng) for _ in range(N_DRAWN)]
    experts = np.empty((n_tokens, N_LAYERS, N_USED), np.int32)
    for layer in range(N_LAYERS):
        experts[:, layer] = rng.permutation(N_EXPERT).astype(np.int32)[drawn[layer % N_DRAWN]]
    return Routing.from_choices(experts, N_EXPERT)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tokens", type=int, default=1_000_000 // N_USED)
    options.add_argument("--threads", type=int, default=2)
    asked = options.parse_args()
    began = time.monotonic()
    routing = draw(asked.tokens)
    print(f"{len(routing.experts):,} choices in {N_LAYERS} layers, drawn in {time.monotonic() - began:.1f} s")
    replay = Replay(provide_replay_library(cache_dir()), routing, expert_bytes=[EXPERT_BYTES] * N_LAYERS)
    swept = time.monotonic()
    for policy in POLICIES:
        one = time.monotonic()
        results = replay.sweep([ReplaySettings(policy=policy, slots=k) for k in SIZES], threads=asked.threads)
        rates = " ".join(f"{k}:{100 * result.hit_rate:.1f}" for k, result in zip(SIZES, results, strict=True))
        print(f"{policy:7} {time.monotonic() - one:5.1f} s  hits % by slots {rates}")
    took = time.monotonic() - swept
    verdict = "within" if took <= GOAL_S else "ABOVE"
    n_caches = len(POLICIES) * len(SIZES)
    print(f"{n_caches} caches on {asked.threads} threads: {took:.1f} s, {verdict} {GOAL_S:.0f} s")


if __name__ == "__main__":
    main()
