"""A simulated machine: a cost model with a hard VRAM wall, so that studies run in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bench import made_up
from hottune.models.shape import MoeShape
from hottune.outcomes import HotStats, Measurement, NotEngaged, Outcome, OutOfMemory, RequestSample
from hottune.placement import Placement
from hottune.units import MIB

LAYERS, EXPERTS, EXPERT_MIB, DENSE_MIB = 12, 32, 1.0, 100.0
CEILING_MIB = 260.0


def shape(n_layers: int = LAYERS, n_experts: int = EXPERTS) -> MoeShape:
    return MoeShape(
        architecture="qwen3moe",
        n_layers=n_layers,
        n_experts=n_experts,
        n_used=4,
        n_embd=256,
        n_ff_expert=128,
        n_params=1,
        layer_expert_bytes=(int(n_experts * EXPERT_MIB * MIB),) * n_layers,
        layer_dense_bytes=(MIB,) * n_layers,
        other_bytes=MIB,
        host_bytes=MIB,
        kv_elements_k=64,
        kv_elements_v=64,
        context_train=4096,
        n_vocab=1000,
        quant="Q4_K",
    )


def base() -> Placement:
    return Placement(n_cpu_moe=LAYERS, threads=2, context=1024)


def need_mib(placement: Placement) -> float:
    """What the simulated machine really needs (and, by default, what the memory model predicts)."""
    experts = (LAYERS - placement.n_cpu_moe) * EXPERTS * EXPERT_MIB
    cache = placement.n_cpu_moe * placement.hot_k * EXPERT_MIB
    return DENSE_MIB + placement.ubatch / 64 + experts + cache


def measurement(
    turn_s: float = 1.0, *, vram_mib: float = 100.0, hot: HotStats | None = None, text: str = "a"
) -> Measurement:
    sample = RequestSample(
        workload="chat",
        warmup=False,
        prompt_tokens=100,
        output_tokens=51,
        prefill_ms=200.0,
        decode_ms=turn_s * 1000,
        ttft_ms=210.0,
        turn_s=turn_s,
        token_ms=[1.0],
        text_sha256=text,
    )
    return made_up.measured(sample, vram_mib, hot, load_s=0.1)


@dataclass
class SimulatedMachine:
    """Measures placements by formula; counts what was asked of it; can be killed in the middle."""

    ceiling_mib: float = CEILING_MIB
    really_needs: Callable[[Placement], float] = need_mib
    fit_engages: bool = True
    dies_at: int | None = None
    asked: list[Placement] = field(default_factory=list)

    def __call__(self, placement: Placement) -> Outcome:
        self.asked.append(placement)
        if self.dies_at is not None and len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        if placement.fit:
            return (
                measurement(0.9, vram_mib=200)
                if self.fit_engages
                else NotEngaged(detail="fit placed nothing")
            )
        needs = self.really_needs(placement)
        if needs > self.ceiling_mib:
            return OutOfMemory(stage="load", detail="simulated")
        hot = made_up.hot_stats(placement, 9, 1)
        return measurement(self.turn_s(placement), vram_mib=needs, hot=hot)

    @staticmethod
    def turn_s(placement: Placement) -> float:
        """Best: all layers on the CPU, the largest cache, rebalanced about every 64 tokens."""
        hit = (placement.hot_k / EXPERTS) ** 0.5
        away = abs(placement.rebalance_interval - 64) / 512
        return 0.2 + 0.8 * placement.n_cpu_moe / LAYERS * (1 - hit) + 0.1 * away
