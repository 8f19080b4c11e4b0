"""The header of a GGUF file: metadata and tensor list, read as a stream, without the weights.

Written from the format's specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md),
versions 2 and 3, little endian. Only reads forward, so any byte source will do: a file, or ranges fetched
over HTTP. Large arrays (a vocabulary of 150,000 strings) are stepped over, not kept.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hottune.errors import ModelCorruptError
from hottune.models.gguf_layout import contradiction
from hottune.units import format_bytes

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32

# Far above what real models have (a few thousand tensors, about a hundred keys) and far below what would make
# us read or allocate without end. A larger number means that these bytes are not a header.
_MAX_TENSORS = 1 << 20
_MAX_KEYS = 1 << 16
_MAX_NAME_BYTES = (1 << 16) - 1
_MAX_STRING_BYTES = 64 << 20
_MAX_ARRAY = 1 << 24
_MAX_HEADER_BYTES = 256 << 20  # the largest real ones, with a vocabulary of 262,144 and its merges, have 16
_MAX_ALIGNMENT = 1 << 20
_MAX_NESTING = 4
_MAX_DIMENSIONS = 4
_KEPT_ARRAY = 4096  # numbers; per-layer lists have at most a few hundred
_CHUNK = 256 * 1024

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32 = _SCALARS[4]
_U64 = _SCALARS[10]


class ArraySummary(NamedTuple):
    """An array that was stepped over: GGUF's element type number and how many elements."""

    element_type: int
    length: int


Scalar = bool | int | float | str
MetaValue = Scalar | tuple[Scalar, ...] | ArraySummary


class TensorInfo(NamedTuple):
    """One tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]  # ggml's order: the contiguous dimension first
    type: GGMLQuantizationType
    offset: int  # bytes from the start of the data section
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the weights.

    Attributes:
        version: of the format, 2 or 3.
        metadata: values by key; long or non-numeric arrays are an `ArraySummary`.
        spans: absolute byte range of each whole key-value pair, for copying it verbatim.
        tensors: in file order.
        data_offset: absolute byte where the weights begin.
        end: absolute byte where the last tensor ends, so the smallest possible file size.
    """

    version: int
    metadata: dict[str, MetaValue]
    spans: dict[str, tuple[int, int]]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    end: int

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" when the header has none."""
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def of_architecture(self, key: str) -> MetaValue | None:
        """Return the value of `<architecture>.<key>`, for example `expert_count`."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read_header(
    stream: BinaryIO, size: int | None, *, name: str = "the file", where: str = "on disk"
) -> GgufHeader:
    """Parse the header that starts at the stream's position (taken as byte 0 of the file).

    Args:
        stream: is only read forward, a little past the header's end.
        size: of the whole file in bytes, if known; then a file too short for its tensors is detected.
        name: of the file, for error messages.
        where: it lies, for the same.

    Raises:
        ModelCorruptError: not a GGUF, damaged, contradicting itself, of an unknown version, or truncated.
    """
    cursor = _Cursor(stream, size, name)
    version = _read_preamble(cursor)
    n_tensors, n_keys = cursor.unpack(_U64), cursor.unpack(_U64)
    if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
        cursor.damaged(f"it claims {n_tensors} tensors and {n_keys} metadata keys")
    metadata: dict[str, MetaValue] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(n_keys):
        begin = cursor.position
        key = cursor.name()
        if key in metadata:
            cursor.damaged(f"it has the metadata key {key!r} twice")
        metadata[key] = _read_value(cursor, cursor.unpack(_U32))
        spans[key] = (begin, cursor.position)
    tensors = tuple(_read_tensor(cursor) for _ in range(n_tensors))

    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.damaged(f"its alignment is {alignment!r}, not a power of two up to {_MAX_ALIGNMENT}")
    if wrong := contradiction(tensors, alignment):
        cursor.damaged(wrong)
    data_offset = -(-cursor.position // alignment) * alignment
    end = max((data_offset + tensor.offset + tensor.n_bytes for tensor in tensors), default=cursor.position)
    if size is not None and size < end:
        raise _truncated(name, f"{format_bytes(size)} {where}, its header promises {format_bytes(end)}")
    return GgufHeader(version, metadata, spans, tensors, data_offset, end)


def read_header_file(path: Path) -> GgufHeader:
    """Parse the header of a local file; see `read_header`."""
    with path.open("rb") as stream:
        return read_header(stream, path.stat().st_size, name=path.name)


def _truncated(name: str, detail: str) -> ModelCorruptError:
    return ModelCorruptError(
        f"{name} is truncated: {detail}.", "The download or copy was probably cut off.", "Download it again."
    )


def _read_preamble(cursor: _Cursor) -> int:
    if cursor.size == 0:
        raise _truncated(cursor.label, "it is empty")
    magic = cursor.take(4)
    if magic != MAGIC:
        raise ModelCorruptError(
            f"{cursor.label} is not a GGUF file: it starts with {magic!r}, not {MAGIC!r}.",
            "Perhaps it is another format, or an error page saved under the model's name.",
            "Give a .gguf file, or download it again.",
        )
    version: int = cursor.unpack(_U32)
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        why, fix = "It is a big-endian file.", "Use the little-endian file of this model."
    elif version == 1:
        why, fix = "That format is from 2023 and llama.cpp dropped it.", "Download a newer conversion."
    else:
        why, fix = "The file is damaged, or newer than this hottune.", "Download it again, or update hottune."
    raise ModelCorruptError(f"{cursor.label} has GGUF version {version}; known are 2 and 3.", why, fix)


def _read_value(cursor: _Cursor, kind: int, depth: int = 0) -> MetaValue:
    if (scalar := _SCALARS.get(kind)) is not None:
        value: Scalar = cursor.unpack(scalar)
        return value
    if kind == _STRING:
        return cursor.string(_MAX_STRING_BYTES).decode("utf-8", errors="replace")
    if kind != _ARRAY or depth >= _MAX_NESTING:
        cursor.damaged(f"it has a metadata value of unknown type {kind}")
    element, length = cursor.unpack(_U32), cursor.unpack(_U64)
    if length > _MAX_ARRAY:
        cursor.damaged(f"it claims an array of {length} elements")
    if (scalar := _SCALARS.get(element)) is not None:
        if length <= _KEPT_ARRAY:
            raw = cursor.take(length * scalar.size)
            return tuple(item for (item,) in scalar.iter_unpack(raw))
        cursor.skip(length * scalar.size)
    elif element == _STRING:
        cursor.skip_strings(length)
    else:
        for _ in range(length):
            _read_value(cursor, element, depth + 1)
    return ArraySummary(element, length)


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.name()
    n_dims = cursor.unpack(_U32)
    if n_dims > _MAX_DIMENSIONS:
        cursor.damaged(f"tensor {name!r} claims {n_dims} dimensions")
    shape = tuple(cursor.unpack(_U64) for _ in range(n_dims))
    number, offset = cursor.unpack(_U32), cursor.unpack(_U64)
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ModelCorruptError(
            f"{cursor.label}: tensor {name!r} has the unknown type {number}.",
            "The file is damaged, or its quantization is newer (or long gone) than this hottune knows.",
            "Take another quantization of the model, or update hottune.",
        ) from None
    row = shape[0] if shape else 1
    if row % block:
        cursor.damaged(f"tensor {name!r} has rows of {row}, no multiple of {kind.name}'s block of {block}")
    return TensorInfo(name, shape, kind, offset, math.prod(shape) // block * block_bytes)


class _Cursor:
    """Reads forward through a stream with its own buffer, and knows where it is."""

    def __init__(self, stream: BinaryIO, size: int | None, label: str) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0  # in the buffer
        self._base = 0  # absolute position of the buffer's first byte
        self.size = size
        self.label = label

    @property
    def position(self) -> int:
        """Absolute byte that is read next."""
        return self._base + self._at

    def damaged(self, detail: str) -> NoReturn:
        """Raise the error for a header that makes no sense."""
        raise ModelCorruptError(
            f"{self.label} is damaged: {detail} (at byte {self.position}).",
            "These bytes cannot be a GGUF header.",
            "Download it again.",
        )

    def unpack(self, what: struct.Struct) -> int:  # or float or bool: what the struct holds
        """Read one number."""
        self._fill(what.size)
        (value,) = what.unpack_from(self._buffer, self._at)
        self._at += what.size
        return value  # type: ignore[no-any-return]

    def take(self, n_bytes: int) -> bytes:
        """Read exactly `n_bytes`."""
        self._fill(n_bytes)
        raw = self._buffer[self._at : self._at + n_bytes]
        self._at += n_bytes
        return raw

    def string(self, limit: int) -> bytes:
        """Read a length and that many bytes."""
        n_bytes = self.unpack(_U64)
        if n_bytes > limit:
            self.damaged(f"it claims a text of {n_bytes} bytes")
        self._require(n_bytes)
        return self.take(n_bytes)

    def name(self) -> str:
        """Read the name of a key or a tensor."""
        raw = self.string(_MAX_NAME_BYTES)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.damaged(f"it has the name {raw[:40]!r}, which is not text")

    def skip(self, n_bytes: int) -> None:
        """Step over `n_bytes`, of any number, in constant memory."""
        self._require(n_bytes)
        while n_bytes:
            self._fill(1)
            step = min(n_bytes, len(self._buffer) - self._at)
            self._at += step
            n_bytes -= step

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings; the loop is kept tight, for a vocabulary has up to a million."""
        unpack, buffer, at = _U64.unpack_from, self._buffer, self._at
        last = len(buffer) - 8
        for _ in range(count):
            if at > last:
                self._at = at
                self._fill(8)
                buffer, at = self._buffer, self._at
                last = len(buffer) - 8
            (n_bytes,) = unpack(buffer, at)
            at += 8 + n_bytes
            if at > last:
                if n_bytes > _MAX_STRING_BYTES:
                    self._at = at - n_bytes
                    self.damaged(f"it claims a text of {n_bytes} bytes")
                self._at = at - n_bytes
                self.skip(n_bytes)
                buffer, at = self._buffer, self._at
                last = len(buffer) - 8
        self._at = at

    def _require(self, n_bytes: int) -> None:
        """Refuse what cannot be there, before anything is read or fetched for it."""
        end = self.position + n_bytes
        if self.size is not None and end > self.size:
            raise _truncated(self.label, f"its header goes on to byte {end} or beyond, it has {self.size}")
        if end > _MAX_HEADER_BYTES:
            self.damaged(f"its header is longer than {format_bytes(_MAX_HEADER_BYTES)}")

    def _fill(self, n_bytes: int) -> None:
        """Make sure that the next `n_bytes` are in the buffer."""
        have = len(self._buffer) - self._at
        if have >= n_bytes:
            return
        self._require(n_bytes)
        parts = [self._buffer[self._at :]]
        self._base += self._at
        self._at = 0
        while have < n_bytes:
            part = self._stream.read(max(_CHUNK, n_bytes - have))
            if not part:
                self._buffer = b"".join(parts)
                raise _truncated(self.label, f"it ends at byte {self._base + have}, inside its header")
            parts.append(part)
            have += len(part)
        self._buffer = b"".join(parts)
