"""The small trained model that is inflated: its numbers, its Q4_0 weights in groups of 32, its tokenizer."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from hottune.errors import BadSettingError, ModelCorruptError
from hottune.models.codecs import GROUP
from hottune.models.gguf_header import ArraySummary, TensorInfo, read_header_file

ARCHITECTURE = "qwen3moe"
UNUSED_TOKEN = "<|unused|>"
UNUSED_TYPE = 5  # tokenizer.ggml.token_type of a token that text never has

_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_LAYER = re.compile(r"blk\.\d+\.")
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Groups:
    """A Q4_0 matrix: scales, rows x groups (float16), and whole numbers from -8 to 7, rows x groups x 32."""

    d: NDArray[np.float16]
    q: NDArray[np.int8]


class BaseModel:
    """A small qwen3moe model in memory.

    Raises:
        BadSettingError: the model is of another architecture or not all Q4_0, or larger than 256 MiB.
        ModelCorruptError: no GGUF, or a tensor or key is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header_file(path)
        if self.header.architecture != ARCHITECTURE or path.stat().st_size > _MAX_BYTES:
            raise _cannot(path, f"it is {self.header.architecture}, or larger than 256 MiB")
        self._tensors = {tensor.name: tensor for tensor in self.header.tensors}
        for tensor in self.header.tensors:
            float_like = tensor.type is GGMLQuantizationType.F32
            if not float_like and tensor.type is not GGMLQuantizationType.Q4_0:
                raise _cannot(path, f"its {tensor.name} is {tensor.type.name}")
        self.n_layers = self.number("block_count")
        self.n_embd = self.number("embedding_length")
        self.n_head = self.number("attention.head_count")
        self.n_head_kv = self.number("attention.head_count_kv")
        self.head_dim = self.number("attention.key_length")
        self.n_experts = self.number("expert_count")
        self.n_used = self.number("expert_used_count")
        self.n_ff = self.number("expert_feed_forward_length")
        self.context = self.number("context_length")
        self.epsilon = float(self._value("attention.layer_norm_rms_epsilon"))
        self.n_vocab = self._tensor("token_embd.weight").shape[1]
        if self.n_embd % GROUP or self.n_ff % GROUP or self.head_dim % GROUP:
            raise _cannot(path, "its width, expert width or head size is no multiple of 32")

    @cached_property
    def raw(self) -> bytes:
        """The whole file."""
        return self.path.read_bytes()

    @cached_property
    def sha256(self) -> str:
        """Hash of the whole file."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def has_head(self) -> bool:
        """Whether there is an output matrix of its own; otherwise the embedding serves as one."""
        return "output.weight" in self._tensors

    def number(self, key: str) -> int:
        """Return a whole number of the architecture's metadata."""
        return int(self._value(key))

    def floats(self, name: str) -> NDArray[np.float32]:
        """Return an F32 tensor, rows first."""
        tensor = self._tensor(name)
        if tensor.type is not GGMLQuantizationType.F32:
            raise _cannot(self.path, f"its {name} is {tensor.type.name}, not F32")
        return np.frombuffer(self._bytes(tensor), dtype="<f4").reshape(tensor.shape[::-1])

    def groups(self, name: str) -> Groups:
        """Return a Q4_0 tensor; of stacked experts all rows, one expert after the other."""
        tensor = self._tensor(name)
        if tensor.type is not GGMLQuantizationType.Q4_0:
            raise _cannot(self.path, f"its {name} is {tensor.type.name}, not Q4_0")
        blocks = np.frombuffer(self._bytes(tensor), dtype=np.uint8).reshape(-1, 18)
        d = np.ascontiguousarray(blocks[:, :2]).view("<f2")
        q = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.int8) - np.int8(8)
        per_row = tensor.shape[0] // GROUP
        return Groups(d.reshape(-1, per_row), q.reshape(-1, per_row, GROUP))

    def tokenizer(self, n_tokens: int) -> tuple[bytes, int]:
        """Return the tokenizer's metadata with tokens added at its end that text never has, and its keys."""
        keys = [key for key in self.header.spans if key.startswith("tokenizer.")]
        extra = n_tokens - self.n_vocab
        parts = []
        for key in keys:
            raw = self.raw[slice(*self.header.spans[key])]
            parts.append(self._lengthened(key, raw, extra) if extra > 0 else raw)
        return b"".join(parts), len(keys)

    @cached_property
    def unused_token(self) -> int:
        """Number of the token whose logit is never near being drawn.

        Raises:
            BadSettingError: the model has none, so that its vocabulary cannot be lengthened.
        """
        wanted = UNUSED_TOKEN.encode()
        at = self._payload(_TOKENS) if isinstance(self.header.metadata.get(_TOKENS), ArraySummary) else 0
        for number in range(self.n_vocab if at else 0):
            (n_bytes,) = struct.unpack_from("<Q", self.raw, at)
            if self.raw[at + 8 : at + 8 + n_bytes] == wanted:
                return number
            at += 8 + n_bytes
        raise _cannot(self.path, f"it has no token {UNUSED_TOKEN} whose output row added tokens could copy")

    def _lengthened(self, key: str, raw: bytes, extra: int) -> bytes:
        """Add `extra` elements to the arrays with one element a token; other pairs stay."""
        value = self.header.metadata[key]
        length = 0
        if isinstance(value, (ArraySummary, tuple)):
            length = value.length if isinstance(value, ArraySummary) else len(value)
        if length != self.n_vocab:
            return raw
        begin = self._payload(key) - self.header.spans[key][0]
        head = raw[: begin - 8] + struct.pack("<Q", length + extra)
        if key == _TOKENS:
            names = [f"<|pad_{number}|>".encode() for number in range(extra)]
            return head + raw[begin:] + b"".join(struct.pack("<Q", len(name)) + name for name in names)
        if key == _TYPES:
            return head + raw[begin:] + struct.pack("<i", UNUSED_TYPE) * extra
        if key == "tokenizer.ggml.scores":
            return head + raw[begin:] + struct.pack("<f", 0.0) * extra
        return raw

    def _payload(self, key: str) -> int:
        """Byte of the file where an array's elements begin: after key, two type numbers and the count."""
        return self.header.spans[key][0] + 8 + len(key.encode()) + 4 + 4 + 8

    def _value(self, key: str) -> Any:
        value = self.header.of_architecture(key)
        if not isinstance(value, (int, float)):
            raise ModelCorruptError(
                f"{self.path.name} does not say {ARCHITECTURE}.{key}.", "", "Make it again."
            )
        return value

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise ModelCorruptError(f"{self.path.name} has no tensor {name}.", "", "Make it again.")
        return self._tensors[name]

    def _bytes(self, tensor: TensorInfo) -> memoryview:
        begin = self.header.data_offset + tensor.offset
        return memoryview(self.raw)[begin : begin + tensor.n_bytes]


def layerless(name: str) -> str:
    """Return a tensor's name without its layer: `attn_q.weight` from `blk.3.attn_q.weight`."""
    return _LAYER.sub("", name)


def _cannot(path: Path, why: str) -> BadSettingError:
    return BadSettingError(
        f"{path.name} cannot be inflated: {why}.",
        "Only a small qwen3moe model whose matrices are all Q4_0 and whose norms and routers are F32 can.",
        "Give `demo`, or a model made like it.",
    )
