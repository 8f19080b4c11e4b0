"""A random small qwen3moe model as Q4_0, and a forward pass in numpy that says logits and routing.

The model is made like the trained demo (see `BaseModel`), only smaller; the pass follows llama.cpp's
src/models/qwen3moe.cpp, in float64, with dequantized weights and no quantized activations.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from hottune.models.base_model import UNUSED_TOKEN
from hottune.models.gguf_header import read_header_file
from hottune.models.gguf_write import PlannedTensor, key_value, write_gguf

Floats = NDArray[np.float64]


def byte_words(n_words: int) -> tuple[str, ...]:
    """Return a byte-level vocabulary: how GPT-2 writes the 256 bytes, made-up words, the unused token."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(len(rest))]
    return (*letters, *(f"word{number}" for number in range(n_words - 257)), UNUSED_TOKEN)


@dataclass(frozen=True)
class SmallSpec:
    n_layers: int = 3
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_experts: int = 16
    n_used: int = 4
    n_ff: int = 32
    sharpness: float = 2.0  # deviation of router logits; sharp ones make the last used expert matter less
    own_head: bool = False  # with the embedding as head, a random model only repeats the last token
    gain: float = 1.0  # of the blocks' outputs; less is less chaotic
    words: tuple[str, ...] = field(default=(*(f"w{number}" for number in range(99)), UNUSED_TOKEN))


def write_small_moe(path: Path, spec: SmallSpec = SmallSpec(), seed: int = 1) -> None:
    """Write the model; its last word has an output row that never wins."""
    rng = np.random.default_rng(seed)
    of_model = {
        "block_count": spec.n_layers,
        "context_length": 512,
        "embedding_length": spec.n_embd,
        "feed_forward_length": spec.n_ff * spec.n_used,
        "attention.head_count": spec.n_head,
        "attention.head_count_kv": spec.n_head_kv,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": 1e6,
        "expert_count": spec.n_experts,
        "expert_used_count": spec.n_used,
        "expert_feed_forward_length": spec.n_ff,
    }
    pairs: dict[str, str | bool | int | float] = {"general.architecture": "qwen3moe"}
    pairs |= {f"qwen3moe.{key}": value for key, value in of_model.items()}
    pairs |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "hottune.demo": True}
    arrays = [
        array("tokenizer.ggml.tokens", list(spec.words)),
        array("tokenizer.ggml.token_type", [1] * (len(spec.words) - 1) + [5]),
        array("tokenizer.ggml.merges", ["w 1"]),
    ]
    tensors: list[PlannedTensor] = []

    def matrix(name: str, *shape: int, gain: float = 1.0) -> None:
        values = rng.standard_normal(shape[::-1], dtype=np.float32) * np.float32(gain / np.sqrt(shape[0]))
        if name == "token_embd":
            # Like a trained model's: its direction is opposed by every other token's.
            values[:, 0] = np.abs(values[:, 0]) * 4
        if name in ("token_embd", "output"):
            values[-1] = 0
            values[-1, 0] = -40 * np.abs(values).max()
        raw = quantize(values, GGMLQuantizationType.Q4_0)
        planned(name, shape, GGMLQuantizationType.Q4_0, raw)

    def numbers(name: str, values: NDArray[np.float64]) -> None:
        planned(name, values.shape[::-1], GGMLQuantizationType.F32, values.astype("<f4"))

    def planned(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, raw: NDArray) -> None:
        tensors.append(PlannedTensor(f"{name}.weight", shape, kind, lambda: [raw]))

    embd, heads, kv = spec.n_embd, spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim
    matrix("token_embd", embd, len(spec.words), gain=np.sqrt(embd))
    if spec.own_head:
        matrix("output", embd, len(spec.words), gain=4.0)
    numbers("output_norm", rng.uniform(0.5, 1.5, embd))
    for layer in range(spec.n_layers):
        block = f"blk.{layer}."
        for name, width in (("attn_norm", embd), ("ffn_norm", embd)):
            numbers(block + name, rng.uniform(0.5, 1.5, width))
        for name in ("attn_q_norm", "attn_k_norm"):
            numbers(block + name, rng.uniform(1.0, 2.0, spec.head_dim))
        matrix(f"{block}attn_q", embd, heads)
        matrix(f"{block}attn_k", embd, kv)
        matrix(f"{block}attn_v", embd, kv)
        matrix(f"{block}attn_output", heads, embd, gain=spec.gain)
        numbers(
            f"{block}ffn_gate_inp",
            rng.standard_normal((spec.n_experts, embd)) * spec.sharpness / np.sqrt(embd),
        )
        matrix(f"{block}ffn_gate_exps", embd, spec.n_ff, spec.n_experts)
        matrix(f"{block}ffn_up_exps", embd, spec.n_ff, spec.n_experts)
        matrix(f"{block}ffn_down_exps", spec.n_ff, embd, spec.n_experts, gain=3.0 * spec.gain)
    raw = b"".join(key_value(key, value) for key, value in pairs.items())
    write_gguf(path, raw + b"".join(arrays), len(pairs) + len(arrays), tensors)


def array(key: str, values: list) -> bytes:
    """Return a metadata pair that is an array of texts or of whole numbers."""
    head = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 9)
    if isinstance(values[0], str):
        texts = b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in values)
        return head + struct.pack("<IQ", 8, len(values)) + texts
    return head + struct.pack(f"<IQ{len(values)}i", 5, len(values), *values)


class Pass:
    """The forward pass: `logits` (tokens x vocabulary) and `chosen` (layers x tokens x used, sorted)."""

    def __init__(self, path: Path, tokens: list[int]) -> None:
        header = read_header_file(path)
        self.weights = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        number = header.of_architecture
        self.head_dim, self.n_used = number("attention.key_length"), number("expert_used_count")
        self.eps, self.base = number("attention.layer_norm_rms_epsilon"), number("rope.freq_base")
        self.chosen: list[NDArray[np.intp]] = []
        self.gates: list[Floats] = []
        self.streams: list[Floats] = []
        embedding = self.w("token_embd")
        x = embedding[tokens]
        for layer in range(number("block_count")):
            block = f"blk.{layer}."
            x = x + self.attention(block, self.norm(x, block + "attn_norm"))
            x = x + self.experts(block, self.norm(x, block + "ffn_norm"))
            self.streams.append(x)
        head = self.w("output") if "output.weight" in self.weights else embedding
        self.logits = self.norm(x, "output_norm") @ head.T

    def w(self, name: str) -> Floats:
        tensor = self.weights[f"{name}.weight"]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float64)

    def norm(self, x: Floats, name: str) -> Floats:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.eps) * self.w(name)

    def rope(self, x: Floats) -> Floats:
        half = self.head_dim // 2
        angle = np.arange(len(x))[:, None, None] * self.base ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1
        )

    def attention(self, block: str, x: Floats) -> Floats:
        q, k, v = ((x @ self.w(f"{block}attn_{part}").T).reshape(len(x), -1, self.head_dim) for part in "qkv")
        q, k = self.rope(self.norm(q, f"{block}attn_q_norm")), self.rope(self.norm(k, f"{block}attn_k_norm"))
        repeat = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, repeat, axis=1), np.repeat(v, repeat, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(self.head_dim)
        scores[:, ~np.tri(len(x), dtype=bool)] = -np.inf
        mixed = np.einsum("hij,jhd->ihd", softmax(scores), v).reshape(len(x), -1)
        return mixed @ self.w(f"{block}attn_output").T

    def experts(self, block: str, x: Floats) -> Floats:
        scores = softmax(x @ self.w(f"{block}ffn_gate_inp").T)
        chosen = np.sort(np.argsort(-scores, axis=1)[:, : self.n_used], axis=1)
        self.chosen.append(chosen)
        share = np.take_along_axis(scores, chosen, axis=1)
        share /= share.sum(axis=1, keepdims=True)
        self.gates.append(share)
        gate, up, down = (self.w(f"{block}ffn_{part}_exps") for part in ("gate", "up", "down"))
        out = np.zeros_like(x)
        for token, (ids, weights) in enumerate(zip(chosen, share, strict=True)):
            for expert, weight in zip(ids, weights, strict=True):
                a, b = gate[expert] @ x[token], up[expert] @ x[token]
                out[token] += weight * (down[expert] @ (a / (1 + np.exp(-a)) * b))
        return out


def softmax(x: Floats) -> Floats:
    grown = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))
