"""A real tokenizer taken from a GGUF that holds only a vocabulary, to put into a synthetic model."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hottune.errors import ModelCorruptError
from hottune.models.gguf_header import ArraySummary, read_header_file

_NORMAL = 1  # tokenizer.ggml.token_type of ordinary text, as against control, byte and unused tokens


@dataclass(frozen=True)
class Vocabulary:
    """What a synthetic model needs of a tokenizer.

    Attributes:
        metadata: the tokenizer's key-value pairs, byte for byte as a GGUF holds them.
        n_keys: how many pairs that is.
        n_tokens: size of the vocabulary.
        speakable: for each token, whether it is plain printable ASCII text.
    """

    metadata: bytes
    n_keys: int
    n_tokens: int
    speakable: NDArray[np.bool_]


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the tokenizer of a GGUF file.

    Raises:
        ModelCorruptError: the file is no GGUF, or has no tokenizer.
    """
    header = read_header_file(path)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, ArraySummary):
        raise ModelCorruptError(f"{path.name} has no tokenizer.", "", "Name a GGUF with a vocabulary.")
    keys = [key for key in header.spans if key.startswith("tokenizer.")]
    with path.open("rb") as file:
        raw = file.read(header.data_offset)
    pieces = _strings(raw, _payload(header.spans["tokenizer.ggml.tokens"], "tokenizer.ggml.tokens"), tokens)
    speakable = np.fromiter((_is_plain(piece) for piece in pieces), dtype=np.bool_, count=tokens.length)
    types_key = "tokenizer.ggml.token_type"
    if types_key in header.spans:
        start = _payload(header.spans[types_key], types_key)
        types = np.frombuffer(raw, dtype="<i4", count=tokens.length, offset=start)
        speakable &= types == _NORMAL
    metadata = b"".join(raw[slice(*header.spans[key])] for key in keys)
    return Vocabulary(metadata, len(keys), tokens.length, speakable)


def _payload(span: tuple[int, int], key: str) -> int:
    """Return where an array's elements begin: after key length, key, two type numbers and the count."""
    return span[0] + 8 + len(key.encode()) + 4 + 4 + 8


def _strings(raw: bytes, at: int, array: ArraySummary) -> list[str]:
    found = []
    for _ in range(array.length):
        (n_bytes,) = struct.unpack_from("<Q", raw, at)
        found.append(raw[at + 8 : at + 8 + n_bytes].decode("utf-8", errors="replace"))
        at += 8 + n_bytes
    return found


def _is_plain(piece: str) -> bool:
    # how byte-level BPE and SentencePiece write a space
    text = piece.replace("Ġ", " ").replace("▁", " ")
    return text.isascii() and text.isprintable() and bool(text.strip())
