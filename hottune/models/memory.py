"""What a placement needs: VRAM and host memory, from the shape alone. Planned here, verified by measuring."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from hottune.models.shape import MoeShape
from hottune.placement import Placement
from hottune.units import mib

_FLOAT = 4  # bytes of an activation
_MASK = 2  # bytes of one entry of the attention mask
_CONTEXT_STEP = 256  # llama.cpp rounds the context up to a multiple of this
_OFFLOAD_BATCH = 32  # llama.cpp's GGML_OP_OFFLOAD_MIN_BATCH


class MemoryNeed(BaseModel):
    """Predicted memory of a placement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vram_dense_mib: float = Field(description="attention, norms, routers, shared experts, output head")
    vram_experts_mib: float = Field(description="experts of the layers that lie whole in VRAM")
    vram_cache_mib: float = Field(description="experts kept by the hot-expert device")
    vram_kv_mib: float = Field(description="KV cache")
    vram_compute_mib: float = Field(description="llama.cpp's compute buffers, an estimate")
    vram_overhead_mib: float = Field(default=0.0, description="GPU context and libraries, as given")
    host_mib: float = Field(description="weights in host memory: token embedding and the other experts")

    @property
    def vram_mib(self) -> float:
        """All VRAM together."""
        return (
            self.vram_dense_mib
            + self.vram_experts_mib
            + self.vram_cache_mib
            + self.vram_kv_mib
            + self.vram_compute_mib
            + self.vram_overhead_mib
        )


def estimate(shape: MoeShape, placement: Placement, *, overhead_mib: float = 0.0) -> MemoryNeed:
    """Predict what a placement needs, with all layers on the GPU (`-ngl 99`).

    `n_cpu_moe` and `hot_k` are taken as they stand, also when `fit` is set (llama.cpp then decides itself).

    Args:
        shape: of the model.
        placement: to predict.
        overhead_mib: VRAM that the driver's context takes before anything else; about 500 MiB with CUDA.
    """
    on_cpu = shape.layer_expert_bytes[: placement.n_cpu_moe]
    whole = shape.layer_expert_bytes[placement.n_cpu_moe :]
    kept = min(placement.hot_k, shape.n_experts)
    streamed = stream_bytes(on_cpu, placement)
    return MemoryNeed(
        vram_dense_mib=mib(shape.dense_bytes),
        vram_experts_mib=mib(sum(whole)),
        vram_cache_mib=mib(sum(layer // shape.n_experts * kept for layer in on_cpu) + streamed),
        vram_kv_mib=mib(
            shape.kv_bytes(placement.context * placement.parallel, placement.kv_type_k, placement.kv_type_v)
        ),
        vram_compute_mib=mib(_compute_bytes(shape, placement)),
        vram_overhead_mib=overhead_mib,
        host_mib=mib(shape.host_bytes + sum(on_cpu)),
    )


def stream_bytes(layers: Sequence[int], placement: Placement) -> int:
    """Return the bytes of VRAM through which the device passes the experts of large batches.

    Args:
        layers: bytes of the experts of each layer that lies in host memory: the largest counts.
        placement: which has a cache and batches that are large enough, or takes none.
    """
    streams = placement.hot_k > 0 and 0 < placement.stream_from <= placement.ubatch
    return max(layers, default=0) if streams else 0


def _compute_bytes(shape: MoeShape, placement: Placement) -> int:
    """Estimate llama.cpp's compute buffers; what the load log says replaces it as soon as there is one.

    Fitted from above to build b11434 with flash attention and two qwen3moe shapes, ubatch 64 to 2048 and
    context 2,048 to 16,384: 9 to 52 % too much. For each token of the ubatch, the widest moment is in the MoE
    block: gate, up, and the used experts' outputs twice, beside the residual stream. To it come the mask
    (ubatch x context), a row of logits for each token of a decoding batch (a server asks for no more; for one
    slot without drafts that is one), and with experts in host memory and large batches the weights that
    llama.cpp copies to the GPU for one matrix product at a time: a third to two thirds of a layer's experts,
    taken as a half. No ubatch is larger than the context of all slots.
    """
    positions = _CONTEXT_STEP * math.ceil(placement.context * placement.parallel / _CONTEXT_STEP)
    ubatch = min(placement.ubatch, positions)
    width = 2 * shape.n_used * (shape.n_embd + shape.n_ff_expert) + 2 * shape.n_embd
    activations = ubatch * width * _FLOAT
    mask = ubatch * placement.context * _MASK
    logits = shape.n_vocab * _FLOAT * min(placement.decode_batch, ubatch)
    staged = 0
    if ubatch >= _OFFLOAD_BATCH:
        staged = max(shape.layer_expert_bytes[: placement.n_cpu_moe], default=0) // 2
    return activations + mask + logits + staged


def max_hot_k(shape: MoeShape, placement: Placement, budget_mib: float, *, overhead_mib: float = 0.0) -> int:
    """Return the largest `hot_k` with which the placement fits into `budget_mib`; 0 when none does.

    It is 0 too when no layer has its experts in host memory: then there is nothing to cache.
    """
    if not any(shape.layer_expert_bytes[: placement.n_cpu_moe]):
        return 0

    def fits(hot_k: int) -> bool:
        tried = placement.model_copy(update={"hot_k": hot_k})
        return estimate(shape, tried, overhead_mib=overhead_mib).vram_mib <= budget_mib

    low, high = 0, shape.n_experts
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def min_n_cpu_moe(
    shape: MoeShape, placement: Placement, ceiling_mib: float, *, overhead_mib: float = 0.0
) -> int | None:
    """Return the smallest `n_cpu_moe` with which the placement fits under the ceiling; None when none does.

    Every number is tried, for the need does not always fall: the first layer in host memory brings staging
    buffers, and leading dense layers take nothing off.
    """
    for n_cpu_moe in range(shape.n_layers + 1):
        tried = placement.model_copy(update={"n_cpu_moe": n_cpu_moe})
        if estimate(shape, tried, overhead_mib=overhead_mib).vram_mib <= ceiling_mib:
            return n_cpu_moe
    return None
