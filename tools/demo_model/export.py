"""Make the demo's GGUF from what training left.

    python export.py OUT/demo.npz TOKENIZER.json demo.gguf

Weights are already Q4_0; they are laid out, not rounded again.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray
from shape import Shape

from hottune.models.gguf_write import PlannedTensor, key_value, write_gguf

_CONTEXT = 32768  # what servers may ask for; trained on is `hottune.demo.context_trained`
_TRAINED = 4096
_STRING, _INT, _ARRAY = 8, 5, 9
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def export(weights: Path, tokenizer: Path, out: Path) -> None:
    """Write the GGUF."""
    arrays = dict(np.load(weights))
    shape = Shape()
    pairs = _metadata(shape, json.loads(tokenizer.read_text()))
    write_gguf(out, b"".join(pairs), len(pairs), list(_tensors(arrays)))


def _tensors(arrays: dict[str, NDArray[Any]]) -> Iterable[PlannedTensor]:
    for name in dict.fromkeys(key.partition(":")[0] for key in arrays):
        if name in arrays:
            values = arrays[name].astype("<f4")
            made = partial(_once, values)
            yield PlannedTensor(_gguf_name(name), values.shape[::-1], GGMLQuantizationType.F32, made)
        else:
            scale = arrays[f"{name}:scale"].astype("<f2").view(np.uint8)
            blocks = np.concatenate([scale, arrays[f"{name}:quants"]], axis=1)
            dimensions = tuple(int(n) for n in arrays[f"{name}:shape"][::-1])
            made = partial(_once, blocks)
            yield PlannedTensor(_gguf_name(name), dimensions, GGMLQuantizationType.Q4_0, made)


def _once(array: NDArray[Any]) -> list[NDArray[Any]]:
    return [np.ascontiguousarray(array)]


def _gguf_name(name: str) -> str:
    return f"{name}.weight"


def _metadata(shape: Shape, tokenizer: dict[str, Any]) -> list[bytes]:
    arch = "qwen3moe"
    of_model: dict[str, int | float] = {
        "block_count": shape.n_layers,
        "context_length": _CONTEXT,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff * shape.n_used,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.rope_base,
        "expert_count": shape.n_experts,
        "expert_used_count": shape.n_used,
        "expert_feed_forward_length": shape.n_ff,
        "vocab_size": shape.n_vocab,
    }
    pairs: dict[str, str | bool | int | float] = {
        "general.architecture": arch,
        "general.name": "hottune demo",
        "general.type": "model",
        "general.license": "mit",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "hottune.demo": True,
        "hottune.demo.context_trained": _TRAINED,
    }
    pairs |= {f"{arch}.{key}": value for key, value in of_model.items()}
    pairs |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    by_id = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = [special.get(number, text) for text, number in by_id]
    if [number for _, number in by_id] != list(range(shape.n_vocab)):
        raise SystemExit(f"the tokenizer has {len(by_id)} tokens, the model {shape.n_vocab}")
    types = [_NORMAL] * len(tokens)
    for number, text in special.items():
        types[number] = _UNUSED if "unused" in text else _CONTROL
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in tokenizer["model"]["merges"]]
    return [
        *(key_value(key, value) for key, value in pairs.items()),
        _array("tokenizer.ggml.tokens", _STRING, [_text(token) for token in tokens]),
        _array("tokenizer.ggml.token_type", _INT, [struct.pack("<i", kind) for kind in types]),
        _array("tokenizer.ggml.merges", _STRING, [_text(merge) for merge in merges]),
    ]


def _array(key: str, kind: int, items: list[bytes]) -> bytes:
    return _text(key) + struct.pack("<IIQ", _ARRAY, kind, len(items)) + b"".join(items)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


if __name__ == "__main__":
    export(*(Path(argument) for argument in sys.argv[1:4]))
