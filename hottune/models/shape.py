"""MoeShape: what a model's header says about its experts, in counts and bytes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hottune.models.inflation import Inflation
from hottune.placement import KvType

#: Bytes an element of the KV cache takes, by type (block quantization included).
KV_BYTES = {KvType.F16: 2.0, KvType.Q8_0: 34 / 32, KvType.Q4_0: 18 / 32}


class MoeShape(BaseModel):
    """Counts and sizes of a Mixture-of-Experts model, read from its GGUF header.

    Layer-wise lists have `n_layers` entries; a dense layer has 0 expert bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = Field(description="general.architecture, for example qwen3moe")
    n_layers: int
    n_experts: int = Field(description="experts of a layer")
    n_used: int = Field(description="experts used for a token (top-k)")
    n_embd: int
    n_ff_expert: int = Field(description="width of one expert's hidden layer")
    n_params: int
    layer_expert_bytes: tuple[int, ...] = Field(description="bytes of all routed experts of each layer")
    layer_dense_bytes: tuple[int, ...] = Field(description="bytes of each layer's other tensors")
    other_bytes: int = Field(description="bytes outside the layers that go to VRAM: output head, norms")
    host_bytes: int = Field(description="bytes outside the layers that stay in RAM: token embedding")
    kv_elements_k: int = Field(description="elements of K that one token adds to the cache, all layers")
    kv_elements_v: int = Field(description="elements of V that one token adds to the cache, all layers")
    context_train: int = Field(description="context length the model was trained for, tokens")
    n_vocab: int
    quant: str = Field(description="dominant type of the expert weights: Q4_K, MXFP4, ...")

    @property
    def n_moe_layers(self) -> int:
        """Layers that have routed experts."""
        return sum(1 for n_bytes in self.layer_expert_bytes if n_bytes)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts of all layers."""
        return sum(self.layer_expert_bytes)

    @property
    def one_expert_bytes(self) -> int:
        """Mean bytes of one expert of one layer (up + gate + down and their biases)."""
        return self.expert_bytes // max(1, self.n_moe_layers * self.n_experts)

    @property
    def dense_bytes(self) -> int:
        """Bytes that always go to VRAM with `-ngl 99`: attention, norms, routers, shared experts, head."""
        return sum(self.layer_dense_bytes) + self.other_bytes

    def kv_bytes(self, context: int, type_k: KvType, type_v: KvType) -> int:
        """Bytes of the KV cache at `context` tokens."""
        per_token = self.kv_elements_k * KV_BYTES[type_k] + self.kv_elements_v * KV_BYTES[type_v]
        return int(context * per_token)


class ModelFile(BaseModel):
    """A model that lies on this machine, ready to be served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    argument: str = Field(description="the MODEL argument as given")
    name: str = Field(description="short name for reports, for example Qwen3-30B-A3B-Q4_K_M")
    path: Path = Field(description="the file, or the first of a split model's files")
    size_bytes: int = Field(description="all parts together")
    fingerprint: str = Field(
        description="sha256 over size, header and 64 evenly spaced 64 KiB blocks of every part (fast)"
    )
    synthetic: bool = Field(description="weights are random or inflated: speed is real, text is not")
    inflated: Inflation | None = Field(default=None, description="how a small model was inflated to this")
    shape: MoeShape
