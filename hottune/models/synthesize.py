"""Synthetic MoE models: random weights, a real tokenizer, routing that looks like a real model's.

The file is an ordinary qwen3moe GGUF. Speed on it is real; its text is word salad. How it is made to behave:

*Activations.* Embeddings have variance 1 a channel. All attention and expert outputs together add `_UPDATES`
times that, spread evenly over the layers, so nothing explodes or vanishes at any depth, and the next token
depends more on what the experts compute than on the last token. Queries are sharpened (`_SHARPNESS`), so that
attention picks a few positions also in a long context instead of averaging everything away.

*Routing.* The first 32 channels of every embedding hold a constant. Attention and the output head do not see
them (norm weight 0); experts hardly do (`_WHISPER`); the router weighs them up again and turns them into a
fixed preference for some experts, a normal draw an expert. All other channels give a preference that depends
on the token and its context. `skew` is the deviation of the first over the second: at 0.65 the most used
quarter of the experts gets about 60 % of the selections, and neighbouring tokens share about a quarter of
theirs. Real models: shares of 50-75 % (static), and more repetition from token to token. The first tenth of
the layers have half the skew, as early layers of real models are flatter.

*Text.* Logits have deviation `_LOGITS`, so the greedy choice leads the second by about one unit on average
and is rarely a tie that rounding decides. Tokens that are not plain printable text have logit 0, far below
the best, and so are never chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hottune.errors import BadSettingError
from hottune.models.blocks import BlockPool, WeightType, make_pool, quantize_q8_0
from hottune.models.gguf_write import PlannedTensor, key_value, write_gguf
from hottune.models.vocabulary import Vocabulary, read_vocabulary
from hottune.progress import Progress

ARCHITECTURE = "qwen3moe"
SYNTHETIC_KEY = "hottune.synthetic"
SPEC_KEY = "hottune.spec"

_BIAS_CHANNELS = 32
_BIAS_SHARE = 0.2  # of an embedding's energy that the constant channels add
_WHISPER = 1 / 16  # how much of the constant channels the experts see
_UPDATES = 2.0
_SHARPNESS = 2.5
_ROUTER_DEVIATION = 2.0
_LOGITS = 4.0
_SILU_GAIN = 3.0  # undoes what silu(gate) * up and the mean over the used experts take off
_FILE_TYPE = {WeightType.Q4_K: 15, WeightType.Q8_0: 7, WeightType.F16: 1}

Make = Callable[[], Iterator[NDArray[Any]]]


class SyntheticSpec(BaseModel):
    """What a synthetic model looks like. The defaults are Qwen3-30B-A3B's shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int = Field(default=48, ge=1, le=512)
    n_experts: int = Field(default=128, ge=2, le=512, description="experts of a layer")
    n_used: int = Field(default=8, ge=1, description="experts used for a token")
    n_embd: int = Field(default=2048, ge=64)
    n_ff_expert: int = Field(default=768, ge=32, description="width of one expert's hidden layer")
    n_head: int = Field(default=32, ge=1)
    n_head_kv: int = Field(default=4, ge=1)
    head_dim: int = Field(default=128, ge=2)
    n_vocab: int = Field(default=32000, ge=8, description="tokens, when there is no tokenizer")
    context: int = Field(default=131072, ge=1, description="context length in the metadata, tokens")
    quant: WeightType = Field(default=WeightType.Q4_K, description="type of the matrices")
    skew: float = Field(default=0.65, ge=0, description="fixed over token-dependent routing preference")
    seed: int = Field(default=1, ge=0)
    with_tokenizer: bool = Field(default=True, description="copy a real tokenizer into the model")

    @model_validator(mode="after")
    def _consistent(self) -> SyntheticSpec:
        block = self.quant.block
        for name, width in (
            ("n_embd", self.n_embd),
            ("n_ff_expert", self.n_ff_expert),
            ("n_head * head_dim", self.n_head * self.head_dim),
        ):
            if width % block:
                raise ValueError(f"{name} is {width}; {self.quant} needs a multiple of {block}")
        if self.n_embd % 32:
            raise ValueError(f"n_embd is {self.n_embd}; it must be a multiple of 32")
        if self.n_used > self.n_experts:
            raise ValueError(f"n_used ({self.n_used}) is more than n_experts ({self.n_experts})")
        if self.n_head % self.n_head_kv or self.head_dim % 2:
            raise ValueError("n_head must be a multiple of n_head_kv, and head_dim even")
        return self


#: The tokenizer of synthetic models: the one that their shape's real counterpart has.
DEFAULT_VOCABULARY = "ggml-vocab-qwen2.gguf"


def synthesize(
    path: Path,
    spec: SyntheticSpec,
    *,
    tokenizer_vocab: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the synthetic model of `spec` to `path`, as a stream: memory stays below 200 MiB at any size.

    Args:
        path: the GGUF to write; appears only when complete.
        spec: equal specs with equal tokenizers give equal files.
        tokenizer_vocab: a GGUF whose tokenizer is copied; needed when `spec.with_tokenizer`.
        progress: told the bytes written.

    Raises:
        BadSettingError: the spec wants a tokenizer and none was given.
        NoSpaceError: the disk has too little room.
        ModelCorruptError: `tokenizer_vocab` is not a GGUF with a tokenizer.
    """
    vocabulary = None
    if spec.with_tokenizer:
        if tokenizer_vocab is None:
            raise BadSettingError("A synthetic model with a tokenizer needs a vocabulary file.")
        vocabulary = read_vocabulary(tokenizer_vocab)
    metadata, n_keys = _metadata(path.stem, spec, vocabulary)
    write_gguf(path, metadata, n_keys, _Tensors(spec, vocabulary).planned(), progress)


def _metadata(name: str, spec: SyntheticSpec, vocabulary: Vocabulary | None) -> tuple[bytes, int]:
    of_model: dict[str, int | float] = {
        "block_count": spec.n_layers,
        "context_length": spec.context,
        "embedding_length": spec.n_embd,
        "feed_forward_length": spec.n_ff_expert * spec.n_used,
        "attention.head_count": spec.n_head,
        "attention.head_count_kv": spec.n_head_kv,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": 1e6,
        "expert_count": spec.n_experts,
        "expert_used_count": spec.n_used,
        "expert_feed_forward_length": spec.n_ff_expert,
        "vocab_size": vocabulary.n_tokens if vocabulary else spec.n_vocab,
    }
    pairs: dict[str, str | bool | int | float] = {
        "general.architecture": ARCHITECTURE,
        "general.name": name,
        "general.type": "model",
        "general.file_type": _FILE_TYPE[spec.quant],
        "general.quantization_version": 2,
        SYNTHETIC_KEY: True,
        SPEC_KEY: spec.model_dump_json(),
    }
    pairs |= {f"{ARCHITECTURE}.{key}": value for key, value in of_model.items()}
    if vocabulary is None:
        pairs["tokenizer.ggml.model"] = "none"
    raw = b"".join(key_value(key, value) for key, value in pairs.items())
    if vocabulary is None:
        return raw, len(pairs)
    return raw + vocabulary.metadata, len(pairs) + vocabulary.n_keys


class _Tensors:
    """Plans every tensor of a model; the weights are made when they are written."""

    def __init__(self, spec: SyntheticSpec, vocabulary: Vocabulary | None) -> None:
        self.spec = spec
        self.n_vocab = vocabulary.n_tokens if vocabulary else spec.n_vocab
        self.speakable = vocabulary.speakable if vocabulary else np.ones(self.n_vocab, dtype=np.bool_)
        self.update = math.sqrt(_UPDATES / (2 * spec.n_layers))  # deviation of one block's output
        self.pools: dict[tuple[WeightType, float], BlockPool] = {}
        self.tensors: list[PlannedTensor] = []

    def planned(self) -> list[PlannedTensor]:
        spec = self.spec
        embd, heads, kv = spec.n_embd, spec.n_head * spec.head_dim, spec.n_head_kv * spec.head_dim
        self._add("token_embd.weight", (embd, self.n_vocab), GGMLQuantizationType.Q8_0, self._embedding)
        self._norm("output_norm", embd, constant=0.0)
        self._add("output.weight", (embd, self.n_vocab), _ggml(self._head_type), self._head)
        for layer in range(spec.n_layers):
            block = f"blk.{layer}."
            self._norm(f"{block}attn_norm", embd, constant=0.0)
            self._norm(f"{block}ffn_norm", embd, constant=_WHISPER)
            self._norm(f"{block}attn_q_norm", spec.head_dim, everywhere=_SHARPNESS)
            self._norm(f"{block}attn_k_norm", spec.head_dim)
            self._matrix(f"{block}attn_q", (embd, heads))
            self._matrix(f"{block}attn_k", (embd, kv))
            self._matrix(f"{block}attn_v", (embd, kv))
            self._matrix(f"{block}attn_output", (heads, embd), gain=self.update)
            self._add(
                f"{block}ffn_gate_inp.weight",
                (embd, spec.n_experts),
                GGMLQuantizationType.F32,
                partial(self._router, layer),
            )
            self._matrix(f"{block}ffn_gate_exps", (embd, spec.n_ff_expert, spec.n_experts))
            self._matrix(f"{block}ffn_up_exps", (embd, spec.n_ff_expert, spec.n_experts))
            self._matrix(
                f"{block}ffn_down_exps",
                (spec.n_ff_expert, embd, spec.n_experts),
                gain=_SILU_GAIN * self.update,
            )
        return self.tensors

    @property
    def _head_type(self) -> WeightType:
        """Type of the output head: with a single block a row, drawing would give many tokens equal rows."""
        single = self.spec.n_embd == self.spec.quant.block
        return WeightType.Q8_0 if single else self.spec.quant

    def _add(self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, make: Make) -> None:
        self.tensors.append(PlannedTensor(name, shape, kind, make))

    def _norm(self, name: str, width: int, *, constant: float | None = None, everywhere: float = 1.0) -> None:
        weights = np.full(width, everywhere, dtype="<f4")
        if constant is not None:
            weights[:_BIAS_CHANNELS] = constant
        self._add(f"{name}.weight", (width,), GGMLQuantizationType.F32, lambda: iter([weights]))

    def _matrix(self, name: str, shape: tuple[int, ...], *, gain: float = 1.0) -> None:
        """Plan a matrix, or a stack of them: input of variance 1 becomes output of deviation `gain`."""
        pool = self._pool(self.spec.quant, gain / math.sqrt(shape[0]))
        n_blocks = math.prod(shape) // self.spec.quant.block
        rng = self._rng(name)
        self._add(f"{name}.weight", shape, _ggml(self.spec.quant), lambda: pool.chunks(rng(), n_blocks))

    def _pool(self, kind: WeightType, deviation: float) -> BlockPool:
        key = (kind, deviation)
        if key not in self.pools:
            self.pools[key] = make_pool(kind, self._rng(f"pool {kind} {len(self.pools)}")(), deviation)
        return self.pools[key]

    def _rng(self, name: str) -> Callable[[], np.random.Generator]:
        """Return a maker of the generator of one tensor: the same again whenever it is asked."""
        return lambda: np.random.default_rng([self.spec.seed, *name.encode()])

    def _embedding(self) -> Iterator[NDArray[Any]]:
        level = math.sqrt(_BIAS_SHARE * self.spec.n_embd / _BIAS_CHANNELS)
        constant = quantize_q8_0(np.full((1, 32), level, dtype=np.float32)).view(np.uint16)
        pool, rng = self._pool(WeightType.Q8_0, 1.0), self._rng("token_embd")()
        per_row = self.spec.n_embd // 32
        for rows in _batches(self.n_vocab):
            blocks = pool.draw(rng, len(rows) * per_row)
            blocks[::per_row] = constant
            yield blocks

    def _head(self) -> Iterator[NDArray[Any]]:
        pool = self._pool(self._head_type, _LOGITS / math.sqrt(self.spec.n_embd))
        rng, per_row = self._rng("output")(), self.spec.n_embd // self._head_type.block
        for rows in _batches(self.n_vocab):
            blocks = pool.draw(rng, len(rows) * per_row).reshape(len(rows), -1)
            blocks[~self.speakable[rows.start : rows.stop]] = 0
            yield blocks

    def _router(self, layer: int) -> Iterator[NDArray[np.float32]]:
        """Make one layer's router, experts x channels: fixed preference and token-dependent preference."""
        spec, rng = self.spec, self._rng(f"router {layer}")()
        skew = spec.skew / 2 if layer < max(1, spec.n_layers // 10) else spec.skew
        by_token = _ROUTER_DEVIATION / math.sqrt(1 + skew**2)
        # Energy a channel of the residual stream at this point, and the norm's input scale that follows.
        varying = 1 + (2 * layer + 1) * self.update**2
        scale = math.sqrt(varying + _BIAS_SHARE)
        weights = rng.standard_normal((spec.n_experts, spec.n_embd), dtype=np.float32)
        weights *= np.float32(by_token * scale / math.sqrt(varying * spec.n_embd))
        # What the constant channels bring to the router when each has weight 1.
        level = math.sqrt(_BIAS_SHARE * spec.n_embd / _BIAS_CHANNELS)
        brings = _BIAS_CHANNELS * level / scale * _WHISPER
        preference = rng.standard_normal((spec.n_experts, 1), dtype=np.float32) * (skew * by_token)
        weights[:, :_BIAS_CHANNELS] = preference / brings
        yield weights


def _ggml(kind: WeightType) -> GGMLQuantizationType:
    return GGMLQuantizationType[kind.value]


def _batches(n_rows: int, at_once: int = 8192) -> Iterator[range]:
    for start in range(0, n_rows, at_once):
        yield range(start, min(n_rows, start + at_once))
