"""Modelled landscapes: machines and models that differ in what limits them, by the bound of `routing.bound`.

What the bound leaves out is put in by rules with the size of what was measured on real machines
(reports/device): fewer threads read memory slower; more than half of the cores slow the device's hand-over
down; policies and intervals shift the misses; the memory model is some percent off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from bench.search.landscape import Truth
from hottune.models.memory import estimate
from hottune.models.shape import MoeShape
from hottune.placement import Placement
from hottune.routing.bound import Bandwidths, LayerLoad, TokenLoad, predict
from hottune.routing.published import independent_misses
from hottune.search.objective import Objective
from hottune.search.space import Space, plan
from hottune.tasks.forecast import Forecast
from hottune.tasks.foresight import expert_bytes_from_ram, with_constants
from hottune.units import MIB
from hottune.workload.facts import Request, Workload

OVERHEAD_MIB = 500.0


@dataclass(frozen=True)
class Modelled:
    """A machine and a model. GB are 10^9 bytes."""

    name: str
    shape: MoeShape
    ceiling_mib: float
    cores: int
    cpu_gb_s: float
    hbm_gb_s: float
    pcie_gb_s: float
    compute_tok_s: float  # prefill with all experts at hand
    prompt_tokens: int = 2930
    output_tokens: int = 300
    skew: float = 1.0  # below 1: the router spreads more, and a cache hits less
    best_interval: int = 60
    memory_error: float = 0.05  # what a server takes more than the memory model says, of the computed part
    noise: float = 0.04
    load_s: float = 12.0
    requests: int = 3
    ubatches: tuple[int, ...] = (512, 2048, 4096)

    @cached_property
    def space(self) -> Space:
        """The space as `hottune run` would make it."""
        base = Placement(n_cpu_moe=self.shape.n_layers, threads=max(1, self.cores - 1), batch=4096)
        return plan(
            self.shape,
            base,
            self.ceiling_mib,
            ubatches=self.ubatches,
            bypasses=(1, 8),
            threads=tuple(max(1, round(share * self.cores)) for share in (0.75, 0.5, 0.25)),
            need_mib=self._predicted_mib,
            foresee=self._forecast(),
        )

    def _forecast(self) -> Forecast:
        """Return the tool's cost model: it knows the bandwidths, but not routing, threads and policies."""
        one = Request(text="", prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens)
        return Forecast(
            self.shape,
            self._bandwidths(1.0),
            Workload(name="modelled", requests=(one,), warmup_requests=0, sha256=""),
            Objective.TURN,
        )

    def _bandwidths(self, reach: float) -> Bandwidths:
        """Return the machine's bandwidths where threads reach so much of the CPU's."""
        return Bandwidths(
            cpu=self.cpu_gb_s * reach,
            hbm=self.hbm_gb_s,
            pcie_h2d=self.pcie_gb_s,
            cpu_overlapped=self.cpu_gb_s * reach * 0.73,
            pcie_overlapped=self.pcie_gb_s * 0.64,
        )

    def _predicted_mib(self, placement: Placement) -> float:
        return estimate(self.shape, placement, overhead_mib=OVERHEAD_MIB).vram_mib

    def truth(self, placement: Placement) -> Truth | None:
        """Return what a placement gives, or None when it does not fit into VRAM."""
        if placement.fit:
            # Whole layers, as llama.cpp's own fit places them: one fewer than fits exactly.
            fewest = self.space.fewest_cpu_layers(placement.ubatch)
            placement = placement.model_copy(
                update={"fit": False, "n_cpu_moe": min(self.shape.n_layers, fewest + 1)}
            )
        vram_mib = self._vram_mib(placement)
        if vram_mib > self.ceiling_mib:
            return None
        hit_rate = self.hit_rate(placement)
        return Truth(
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            prefill_s=self._prefill_s(placement),
            decode_s=(self.output_tokens - 1) / self._decode_tok_s(placement, hit_rate),
            vram_mib=vram_mib,
            hit_rate=hit_rate,
        )

    def hit_rate(self, placement: Placement) -> float | None:
        """Return the share of choices that hit: concave in the cache's share, shifted by its settings."""
        if placement.hot_k == 0:
            return None
        share = placement.hot_k / self.shape.n_experts
        miss = (1 - share) ** (1 + 4.5 * self.skew)
        if placement.policy == "lru":
            miss *= 1.10
        else:
            off = math.log2(placement.rebalance_interval / self.best_interval)
            miss *= (1.0 if placement.policy == "lfru" else 1.06) * (1 + 0.012 * off * off)
        return 1 - min(1.0, miss * (0.97 if placement.shared_budget else 1.0))

    def _decode_tok_s(self, placement: Placement, hit_rate: float | None) -> float:
        shape, share = self.shape, placement.threads / self.cores
        reach = min(1.0, share / 0.55) ** 0.9 * (1 - 0.08 * max(0.0, share - 0.8))
        crowded = 1 + 1.6 * max(0.0, share - 0.5) / 0.5 if placement.hot_k else 1.0
        machine = with_constants(self._bandwidths(reach), shape.n_layers)
        n_used = shape.n_used
        misses = (0.0,) * n_used + (1.0,) if hit_rate is None else independent_misses(n_used, hit_rate)
        # All layers are alike and their times add up, so one of the size of all of them stands for them.
        n_ram, one = placement.n_cpu_moe, shape.layer_expert_bytes[0] / shape.n_experts
        machine = machine.model_copy(update={"t_sync_us": machine.t_sync_us * crowded * n_ram})
        layers = [LayerLoad(expert_bytes=one * n_ram, n_used=n_used, misses=misses)] * (n_ram > 0)
        layers += [LayerLoad(expert_bytes=one * (shape.n_layers - n_ram), n_used=n_used, misses=())]
        read = expert_bytes_from_ram(shape, placement, lambda _: hit_rate or 0.0)
        load = TokenLoad(
            dense_bytes=shape.dense_bytes,
            layers=tuple(layers),
            uploaded_bytes=0.3 * min(read, placement.upload_mib * MIB) if placement.hot_k else 0.0,
        )
        return predict(load, machine).tokens_per_second

    def _prefill_s(self, placement: Placement) -> float:
        in_ram = sum(self.shape.layer_expert_bytes[: placement.n_cpu_moe])
        batches = math.ceil(self.prompt_tokens / placement.ubatch)
        compute_s = self.prompt_tokens / self.compute_tok_s * (1 + 60 / placement.ubatch)
        streams = placement.hot_k > 0 and 0 < placement.stream_from <= self.prompt_tokens
        if not streams:
            return compute_s + batches * in_ram / (self.pcie_gb_s * 1e9)
        # The device streams what is not resident while the GPU computes.
        moved = in_ram * (1 - placement.hot_k / self.shape.n_experts)
        return max(compute_s, batches * moved / (self.pcie_gb_s * 1e9)) + 0.15 * compute_s

    def grid(self) -> list[Placement]:
        """Return every placement of the exhaustive grid, ordered so that few servers are started."""
        space = self.space
        found: dict[Placement, None] = {}
        for ubatch, threads, step in product(self.ubatches, space.threads, range(9)):
            n_cpu_moe = space.fullest(space.mixed(step / 8, ubatch), ubatch)
            found[space.layers(n_cpu_moe, ubatch, threads)] = None
            for share, (policy, interval), shared in product(
                (1.0, 0.8),
                (("lfru", 16), ("lfru", 60), ("lfru", 240), ("window", 60), ("lru", 60)),
                (False, True),
            ):
                hot = space.hot(
                    n_cpu_moe,
                    ubatch,
                    share=share,
                    threads=threads,
                    policy=policy,
                    interval=interval,
                    shared=shared,
                )
                if hot is not None:
                    found[self._fitting(hot)] = None
        return list(found)

    def _fitting(self, placement: Placement) -> Placement:
        """Return the placement with the largest cache that really fits: a sweep of all would have it."""
        while placement.hot_k > 1 and self._vram_mib(placement) > self.ceiling_mib:
            placement = placement.model_copy(update={"hot_k": placement.hot_k - 1})
        return placement

    def _vram_mib(self, placement: Placement) -> float:
        """Return what a placement really takes: more than the memory model says."""
        need = estimate(self.shape, placement, overhead_mib=OVERHEAD_MIB)
        return need.vram_mib + self.memory_error * (need.vram_compute_mib + OVERHEAD_MIB)


def _shape(n_layers: int, n_experts: int, n_used: int, n_embd: int, n_ff: int, bits: float) -> MoeShape:
    layer = int(3 * n_embd * n_ff * n_experts * bits / 8)
    return MoeShape(
        architecture="qwen3moe",
        n_layers=n_layers,
        n_experts=n_experts,
        n_used=n_used,
        n_embd=n_embd,
        n_ff_expert=n_ff,
        n_params=n_layers * 3 * n_embd * n_ff * n_experts,
        layer_expert_bytes=(layer,) * n_layers,
        layer_dense_bytes=(int(12 * n_embd * n_embd * bits / 8),) * n_layers,
        other_bytes=int(150_000 * n_embd * bits / 8),
        host_bytes=int(150_000 * n_embd * bits / 8),
        kv_elements_k=n_layers * 512,
        kv_elements_v=n_layers * 512,
        context_train=32768,
        n_vocab=150_000,
        quant="Q4_K",
    )


_A3B = _shape(48, 128, 8, 2048, 768, 4.8)
_A10B = _shape(48, 256, 8, 3072, 1024, 4.5)
_WIDE = _shape(60, 512, 10, 2048, 512, 4.5)
_FEW = _shape(32, 8, 2, 4096, 14336, 4.5)

_SERVER = Modelled("server, 128 experts, 5 GiB", _A3B, 5300, 16, 90, 2500, 50, 12000)


def modelled() -> list[Modelled]:
    """Return the landscapes of the benchmark."""
    desktop = replace(
        _SERVER, cores=8, cpu_gb_s=60, hbm_gb_s=900, pcie_gb_s=25, compute_tok_s=4000, load_s=15, noise=0.05
    )
    return [
        _SERVER,
        replace(_SERVER, name="server, 128 experts, 11 GiB", ceiling_mib=11000),
        replace(desktop, name="desktop, 128 experts, 8 GiB", ceiling_mib=8000),
        replace(desktop, name="desktop, 256 experts, 22 GiB", shape=_A10B, ceiling_mib=22000, load_s=40),
        replace(desktop, name="desktop, 512 experts, 12 GiB", shape=_WIDE, ceiling_mib=12000, skew=0.6),
        replace(desktop, name="desktop, 8 large experts, 16 GiB", shape=_FEW, ceiling_mib=16000, skew=0.2),
        replace(
            desktop,
            name="laptop, 128 experts, 6 GiB, noisy",
            ceiling_mib=6000,
            cores=6,
            cpu_gb_s=40,
            hbm_gb_s=300,
            pcie_gb_s=12,
            compute_tok_s=1500,
            noise=0.08,
            memory_error=0.3,
        ),
        replace(
            desktop,
            name="desktop, chat, fast drift of topics",
            ceiling_mib=7000,
            prompt_tokens=60,
            best_interval=12,
            ubatches=(512,),
        ),
    ]
