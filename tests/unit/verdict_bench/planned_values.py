"""Servers that take as long as a simulated stage says."""

from __future__ import annotations

import math

import numpy as np

from bench.verdicts.noise import Noise
from bench.verdicts.simulate import Arms
from hottune.outcomes import Engagement, Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName
from hottune.search.baselines import BASELINES
from hottune.search.confirm import HOT_ARMS


class Servers:
    """Measures the arms of a stage in the order in which it asks for them."""

    def __init__(self, arms: Arms, noise: Noise, most: int, seed: int) -> None:
        names: list[ArmName] = [arm for arm in (*BASELINES, *HOT_ARMS) if arm in arms.speeds]
        self.placements = {arm: Placement(n_cpu_moe=number, threads=1) for number, arm in enumerate(names)}
        self._speeds = [arms.speeds[arm] for arm in names]
        self._logs = noise.draw(np.random.default_rng(seed), 1, most * len(names))[0]
        self._count = 0

    def __call__(self, placement: Placement) -> Outcome:
        turn_s = math.exp(self._logs[self._count] - math.log(self._speeds[placement.n_cpu_moe]))
        self._count += 1
        return Measurement(
            prefill_tok_s=1,
            decode_tok_s=1,
            ttft_ms=1,
            turn_s=turn_s,
            token_ms_p50=1,
            token_ms_p95=1,
            token_ms_p99=1,
            vram_peak_mib=1,
            vram_source="virtual",
            load_s=1,
            engagement=Engagement(
                gpu_device="VGPU0", vram_model_mib=1, vram_kv_mib=1, vram_compute_mib=1, host_model_mib=1
            ),
            requests=[],
        )
