"""What `hottune plan` tells: how fast a placement would be, by the bound and the machine's bandwidths.

Two numbers for decoding. `at most`: the bound with the measured bandwidths and nothing else. `predicted`: the
same with three constants for what the bound leaves out, read off one machine (an H100 with 16 virtual cores,
Qwen3-30B-A3B's shape in Q4_K, llama.cpp b11434; measured while the device was designed):

- llama.cpp's kernels got through expert weights at 43 to 53 GB/s, where memory was read at 90.5;
- with everything in VRAM a token took 4.5 ms, of which memory explains 0.7: 80 us a layer;
- a layer with experts in RAM took about 60 us more, also when all experts hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from pydantic import BaseModel, ConfigDict, Field

from hottune.machine.bandwidth import MachineBandwidths
from hottune.models.shape import MoeShape
from hottune.placement import Placement
from hottune.routing.bound import Bandwidths, LayerLoad, TokenLoad, predict
from hottune.routing.published import HitCurve, independent_misses

CPU_EFFICIENCY = 0.53
LAYER_US = 80.0
SYNC_US = 60.0
#: How much of each is left while both are busy, on a desktop: CPU 30 to 21.9 GB/s, PCIe 13.1 to 8.4 (posted
#: with a public engine, FreeToken issue 436); for a GPU that is not here to be measured.
_CPU_LEFT, _PCIE_LEFT = 21.9 / 30, 8.4 / 13.1
_OFFLOAD_BATCH = 32  # llama.cpp's GGML_OP_OFFLOAD_MIN_BATCH
_GB = 1e9

CONSTANTS = (
    f"{CPU_EFFICIENCY:.0%} of memory's speed reaches llama.cpp's CPU kernels, each layer takes "
    f"{LAYER_US:.0f} us and one with experts in RAM {SYNC_US:.0f} us more: one machine's figures"
)


class GpuGiven(BaseModel):
    """Bandwidths of a GPU that is not here, as the user gave them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hbm_gb_per_s: float = Field(gt=0, le=1e6)
    pcie_gb_per_s: float = Field(gt=0, le=1e6)


class Speed(BaseModel):
    """Predicted speeds of a placement; nothing is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decode_tok_s: float = Field(description="predicted")
    decode_at_most_tok_s: float = Field(description="by bytes and bandwidths alone")
    prefill_at_most_tok_s: float | None = Field(
        description="by the experts that a batch brings over PCIe; None where none are brought"
    )


def machine_bandwidths(found: MachineBandwidths, given: GpuGiven | None) -> Bandwidths | None:
    """Return what the bound needs, from measurements and a given GPU; None without either GPU."""
    if given is not None:
        cpu = found.cpu_gb_per_s
        return Bandwidths(
            cpu=cpu,
            hbm=given.hbm_gb_per_s,
            pcie_h2d=given.pcie_gb_per_s,
            cpu_overlapped=cpu * _CPU_LEFT,
            pcie_overlapped=given.pcie_gb_per_s * _PCIE_LEFT,
        )
    if found.gpu is None:
        return None
    return Bandwidths(
        cpu=found.cpu_gb_per_s,
        hbm=found.gpu.hbm_gb_per_s,
        pcie_h2d=found.gpu.pcie_h2d_gb_per_s,
        cpu_overlapped=found.gpu.cpu_overlapped_gb_per_s,
        pcie_overlapped=found.gpu.pcie_overlapped_gb_per_s,
    )


def with_constants(machine: Bandwidths, n_layers: int) -> Bandwidths:
    """Return the bandwidths as llama.cpp uses them (see the module's constants)."""
    return machine.model_copy(
        update={
            "cpu": machine.cpu * CPU_EFFICIENCY,
            "cpu_overlapped": machine.cpu_overlapped * CPU_EFFICIENCY,
            "t_sync_us": SYNC_US,
            "t_token_fixed_us": LAYER_US * n_layers,
        }
    )


def hit_rate(shape: MoeShape, placement: Placement, curve: HitCurve) -> float | None:
    """Return the share of choices that hit in the layers with experts in RAM; None without a cache."""
    return curve(placement.hot_k / shape.n_experts) if placement.hot_k else None


def expert_bytes_from_ram(shape: MoeShape, placement: Placement, curve: HitCurve) -> float:
    """Return the bytes of experts that a token reads from host memory, mean."""
    hits = hit_rate(shape, placement, curve) or 0.0
    on_cpu = sum(shape.layer_expert_bytes[: placement.n_cpu_moe])
    return on_cpu / shape.n_experts * shape.n_used * (1 - hits)


def layer_loads(
    shape: MoeShape, in_ram: Sequence[float], misses: Iterable[tuple[float, ...]]
) -> tuple[LayerLoad, ...]:
    """Return what each MoE layer needs for a token.

    Args:
        shape: of the model.
        in_ram: share of each layer's expert bytes in RAM, 0 to 1. Of a layer with both, llama.cpp computes
            one part after the other (up and gate before down).
        misses: for each MoE layer with a part in RAM, in order, the distribution of its misses.
    """
    theirs = iter(misses)
    loads = []
    for n_bytes, share in zip(shape.layer_expert_bytes, in_ram, strict=True):
        one = n_bytes / shape.n_experts
        if n_bytes and share > 0:
            loads.append(LayerLoad(expert_bytes=one * share, n_used=shape.n_used, misses=next(theirs)))
        if n_bytes and share < 1:
            loads.append(LayerLoad(expert_bytes=one * (1 - share), n_used=shape.n_used, misses=()))
    return tuple(loads)


def token_load(shape: MoeShape, placement: Placement, curve: HitCurve) -> TokenLoad:
    """Return what a token needs, with the context half full and every miss uploaded (as LRU does)."""
    hits = hit_rate(shape, placement, curve)
    all_miss = (0.0,) * shape.n_used + (1.0,)
    misses = all_miss if hits is None else independent_misses(shape.n_used, hits)
    in_ram = [float(layer < placement.n_cpu_moe) for layer in range(shape.n_layers)]
    layers = layer_loads(shape, in_ram, repeat(misses))
    uploaded = expert_bytes_from_ram(shape, placement, curve) if placement.hot_k else 0.0
    return TokenLoad(
        dense_bytes=shape.dense_bytes,
        kv_bytes=shape.kv_bytes(placement.context // 2, placement.kv_type_k, placement.kv_type_v),
        layers=layers,
        uploaded_bytes=min(uploaded, placement.upload_mib * 2**20),
    )


def speed(shape: MoeShape, placement: Placement, machine: Bandwidths, curve: HitCurve) -> Speed:
    """Predict a placement's speeds on a machine."""
    load = token_load(shape, placement, curve)
    in_ram = sum(shape.layer_expert_bytes[: placement.n_cpu_moe])
    prefill = None
    if in_ram and placement.ubatch >= _OFFLOAD_BATCH:
        prefill = placement.ubatch * machine.pcie_h2d * _GB / in_ram
    return Speed(
        decode_tok_s=predict(load, with_constants(machine, shape.n_layers)).tokens_per_second,
        decode_at_most_tok_s=predict(load, machine).tokens_per_second,
        prefill_at_most_tok_s=prefill,
    )
