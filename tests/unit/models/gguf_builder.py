"""Small GGUF files and headers for the tests, made with gguf-py: the format's reference writer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from hottune.models.gguf_header import GgufHeader, TensorInfo
from hottune.models.shape import MoeShape

Q4_K, F32 = GGMLQuantizationType.Q4_K, GGMLQuantizationType.F32


def write_small_gguf(path: Path, *, tokens: int = 50, moe: bool = True, weights: int = 4) -> None:
    """Write a GGUF with all kinds of metadata and, with `moe`, the tensors of two MoE layers."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 1])
    writer.add_context_length(4096)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(tokens)])
    writer.add_token_types([1] * tokens)
    writer.add_bool("test.flag", True)
    writer.add_int64("test.negative", -5)
    writer.add_string("test.text", "häuser")
    writer.add_tensor("token_embd.weight", np.zeros((tokens, 32), dtype=np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(32, dtype=np.float32))
    for layer in range(2):
        writer.add_tensor(f"blk.{layer}.attn_k.weight", np.zeros((16, 32), dtype=np.float32))
        kinds = ("gate", "up", "down") if moe else ()
        for kind in kinds:
            rows, columns = (32, 8 * weights) if kind == "down" else (8 * weights, 32)
            name = f"blk.{layer}.ffn_{kind}_exps.weight"
            writer.add_tensor(name, np.zeros((4, rows, columns), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(path: Path, words: list[str]) -> None:
    """Write a GGUF that holds a tokenizer alone; the last two words are control tokens."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-coder")
    writer.add_token_list(words)
    writer.add_token_types([1] * (len(words) - 2) + [3, 3])
    writer.add_token_merges([])
    writer.add_eos_token_id(len(words) - 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def header(
    tensors: dict[str, tuple[tuple[int, ...], GGMLQuantizationType]],
    architecture: str = "qwen3moe",
    **of_architecture: object,
) -> GgufHeader:
    """Return a header made up from tensor shapes (ggml's order) and keys (`__` stands for a dot)."""
    metadata: dict[str, object] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in of_architecture.items()}
    infos = []
    for name, (shape, kind) in tensors.items():
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        infos.append(TensorInfo(name, shape, kind, 0, int(np.prod(shape)) // block * block_bytes))
    return GgufHeader(3, metadata, {}, tuple(infos), 0, 0)  # type: ignore[arg-type]


def moe_layer(layer: int, *, embd: int = 256, ff: int = 512, experts: int = 8) -> dict:
    """Return the tensors of one ordinary MoE layer."""
    block = f"blk.{layer}."
    return {
        f"{block}attn_q.weight": ((embd, embd), Q4_K),
        f"{block}attn_k.weight": ((embd, embd // 2), Q4_K),
        f"{block}ffn_gate_inp.weight": ((embd, experts), F32),
        f"{block}ffn_gate_exps.weight": ((embd, ff, experts), Q4_K),
        f"{block}ffn_up_exps.weight": ((embd, ff, experts), Q4_K),
        f"{block}ffn_down_exps.weight": ((ff, embd, experts), Q4_K),
    }


def shape(
    *,
    layer_expert_bytes: tuple[int, ...] = (64 << 20,) * 8,
    n_experts: int = 64,
    dense_bytes: int = 1 << 20,
) -> MoeShape:
    """Return a shape with round numbers: 1 MiB an expert unless said otherwise."""
    n_layers = len(layer_expert_bytes)
    return MoeShape(
        architecture="qwen3moe",
        n_layers=n_layers,
        n_experts=n_experts,
        n_used=8,
        n_embd=512,
        n_ff_expert=256,
        n_params=10**9,
        layer_expert_bytes=layer_expert_bytes,
        layer_dense_bytes=(dense_bytes,) * n_layers,
        other_bytes=10 << 20,
        host_bytes=20 << 20,
        kv_elements_k=128 * n_layers,
        kv_elements_v=128 * n_layers,
        context_train=32768,
        n_vocab=32000,
        quant="Q4_K",
    )
