"""Routing traces: which experts were chosen, token by token (docs/trace-format.md).

Reading has two passes. A plain loop steps from record to record and notes where the choices of each block
lie; numpy then takes the choices out of the file, many at once, so ten million of them take a few seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

MAGIC = b"HOTTRACE"
VERSION = 2  # what is written; version 1 is read, too

_HEADER_BYTES = 12
_HAS_WEIGHTS = 1
_LAYER, _BLOCK, _NEXT, _LONE, _END = b"LBNAE"
_MOST_LAYERS = 1 << 16
_MOST_EXPERTS = 1 << 16
_MOST_TOKENS = 1 << 20  # of one block
_MOST_NAME_BYTES = 4096
_NUMBER_BYTES = 10  # the longest number: 64 bits, seven a byte

_BLOCK_FIELDS = 6  # what the first pass notes of a block: see _Scan.blocks
_ROWS, _USED = 2, 3  # two of them
_TABLE = [1, 5, 2, 3]  # of them, as in Trace.blocks
_BLOCKS_AT_ONCE = 1 << 16  # in the second pass


class TraceFormatError(ValueError):
    """The file is no routing trace, of another version, or damaged."""


class Layer(NamedTuple):
    """What a trace says about a layer."""

    name: str  # of its first expert weight, for example "blk.0.ffn_up_exps.weight"
    n_expert: int


@dataclass(frozen=True, eq=False)
class Choices:
    """All choices, in the file's order: arrays of one length.

    Attributes:
        token: index of the token, from 0.
        layer: as numbered in `Trace.layers`.
        place: 0 for the token's first expert in this layer, in the router's order.
        expert: the expert chosen.
        weight: its router weight; NaN where there is none.
    """

    token: npt.NDArray[np.int64]
    layer: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]
    expert: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.token)


@dataclass(frozen=True, eq=False)
class Trace:
    """A routing trace.

    Attributes:
        version: of the format.
        has_weights: whether choices carry the router's weights.
        layers: by layer, counted in the order in which the device met them; some may be missing.
        n_tokens: tokens in the trace, counted by layer 0.
        truncated: the trace was not ended properly (its server was killed, or still runs); the last token may
            lack some layers then.
        choices: all of them.
        blocks: the choices of one layer for tokens that were computed together, in the file's order: array
            [n_blocks, 4] of layer, first token, tokens, experts a token. Layer 0 begins a batch.
        lone_blocks: what the cache saw of prompts too long for it, their last layer; of no token and so
            not among the choices. Array [n, 4] of number of the block before which it was computed, layer,
            tokens, experts a token.
        lone_experts: their experts, one block after the other.
    """

    version: int
    has_weights: bool
    layers: Mapping[int, Layer]
    n_tokens: int
    truncated: bool
    choices: Choices
    blocks: npt.NDArray[np.int64]
    lone_blocks: npt.NDArray[np.int64]
    lone_experts: npt.NDArray[np.int32]

    def to_frame(self) -> pd.DataFrame:
        """Return the choices as a table with the columns token, layer, place, expert and weight."""
        return pd.DataFrame(
            {column.name: getattr(self.choices, column.name) for column in fields(Choices)}, copy=False
        )


def read_trace(path: Path) -> Trace:
    """Read a trace that the device wrote, or the whole records of one that is not finished.

    Raises:
        TraceFormatError: no trace, of another version, or damaged; the message says where.
        OSError: the file cannot be read.
    """
    return parse_trace(path.read_bytes(), name=path.name)


def parse_trace(data: bytes, *, name: str = "the trace") -> Trace:
    """Read a trace from memory; `name` is for error messages. See `read_trace`."""
    version, has_weights = _read_header(data, name)
    scan = _Scan(data, version, has_weights, name)
    scan.run()
    blocks, lone = (
        np.asarray(found, np.int64).reshape(-1, _BLOCK_FIELDS) for found in (scan.blocks, scan.lone)
    )
    return Trace(
        version=version,
        has_weights=has_weights,
        layers=MappingProxyType(scan.layers),
        n_tokens=scan.n_tokens,
        truncated=scan.truncated,
        choices=_extract(data, scan, blocks, has_weights),
        blocks=blocks[:, _TABLE],
        lone_blocks=lone[:, [5, 1, 2, 3]],
        lone_experts=_extract(data, scan, lone, has_weights).expert,
    )


def id_bits(n_expert: int, version: int = VERSION) -> int:
    """Return how many bits an expert's number takes in a trace of a version."""
    if version == 1:
        return 8 if n_expert <= 256 else 16
    return (n_expert - 1).bit_length()


def _read_header(data: bytes, name: str) -> tuple[int, bool]:
    """Return the version, and whether the trace has weights."""
    if data[: len(MAGIC)] != MAGIC:
        raise TraceFormatError(
            f"{name} is not a routing trace: it starts with {data[: len(MAGIC)]!r}, not {MAGIC!r}"
        )
    if len(data) < _HEADER_BYTES:
        raise TraceFormatError(
            f"{name} is cut off inside its header: it has {len(data)} of {_HEADER_BYTES} bytes"
        )
    version, flags = (int.from_bytes(data[at : at + 2], "little") for at in (8, 10))
    if not 1 <= version <= VERSION:
        raise TraceFormatError(f"{name} is a routing trace of version {version}; known are 1 to {VERSION}")
    if flags & ~_HAS_WEIGHTS:
        raise TraceFormatError(f"{name} is damaged: its header has the unknown flags {flags:#06x}")
    return version, flags == _HAS_WEIGHTS


class _CutOffError(Exception):
    """The data ends inside a record."""


class _Scan:
    """The first pass: from record to record.

    Attributes:
        blocks: of each block, one after the other: byte where its ids begin, layer, rows, experts a row,
            bits of an id, token of its first row.
        lone: the same of each lone block, but last the number of the block before which it was computed.
    """

    def __init__(self, data: bytes, version: int, has_weights: bool, name: str) -> None:
        self.blocks, self.lone = array("q"), array("q")
        self.layers: dict[int, Layer] = {}
        self.n_tokens = 0
        self.truncated = False
        self._data = data
        self._version = version
        self._bits: dict[int, int] = {}  # of an id, by layer
        self._weight_bytes = 2 if has_weights else 0
        self.name = name
        self._record = self._at = _HEADER_BYTES  # where the record begins, and what is read next
        self._last: tuple[int, int, int] | None = None  # layer, tokens, used of the block before
        self._batch = 0  # tokens that layer 0 started last
        self._batch_begins = 0  # the number of its first block
        self._met: set[int] = set()  # layers that had a block

    def run(self) -> None:
        try:
            while self._at < len(self._data):
                self._record = self._at
                tag = self._data[self._at]
                self._at += 1
                if tag == _NEXT:
                    self._read_next()
                elif tag == _BLOCK:
                    self._read_block()
                elif tag == _LAYER:
                    self._read_layer()
                elif tag == _LONE and self._version > 1:
                    self._read_lone()
                elif tag == _END:
                    return self._read_end()
                else:
                    self._damaged(f"{tag:#04x} is no kind of record")
        except _CutOffError:
            pass
        self.truncated = True
        return None

    def _read_block(self) -> None:
        data, at = self._data, self._at
        # nearly always three numbers of one byte
        if at + 3 <= len(data) and data[at] < 128 and data[at + 1] < 128 and data[at + 2] < 128:
            layer, rows, used = data[at : at + 3]
            self._at = at + 3
        else:
            layer, rows, used = self._number(), self._number(), self._number()
        self._note_block(layer, rows, used)

    def _read_next(self) -> None:
        if self._version == 1:
            self._damaged(f"{_NEXT:#04x} is no kind of record of version 1")
        if self._last is None:
            self._damaged("its first block is like none before")
        layer, rows, used = self._last
        self._note_block(layer + 1, rows, used)

    def _read_lone(self) -> None:
        layer, rows, used = self._number(), self._number(), self._number()
        self._check_block(layer, rows, used)
        begin = self._skip_choices(layer, rows * used)
        # of a layer that had no block yet, it was computed before the batch in which it stands
        before = len(self.blocks) // _BLOCK_FIELDS if layer in self._met else self._batch_begins
        self.lone.extend((begin, layer, rows, used, self._bits[layer], before))

    def _check_block(self, layer: int, rows: int, used: int) -> None:
        facts = self.layers.get(layer)
        if facts is None:
            self._damaged(f"layer {layer} has a block and no description")
        if not 1 <= rows <= _MOST_TOKENS or not 1 <= used <= facts.n_expert:
            self._damaged(f"a block of {rows} tokens with {used} of {facts.n_expert} experts each")
        if layer != 0 and self._batch == 0:
            self._damaged("it does not begin with layer 0")

    def _skip_choices(self, layer: int, n: int) -> int:
        return self._skip((n * self._bits[layer] + 7 >> 3) + n * self._weight_bytes)

    def _note_block(self, layer: int, rows: int, used: int) -> None:
        self._check_block(layer, rows, used)
        bits = self._bits[layer]
        begin = self._skip_choices(layer, rows * used)
        self._met.add(layer)
        if layer == 0:
            self._batch = rows
            self._batch_begins = len(self.blocks) // _BLOCK_FIELDS
            self.n_tokens += rows
        # rows that nobody needs are left out at the front
        first = self.n_tokens - (rows if rows <= self._batch else self._batch)
        self._last = layer, rows, used
        self.blocks.extend((begin, layer, rows, used, bits, first))

    def _read_layer(self) -> None:
        layer, n_expert, n_bytes = self._number(), self._number(), self._number()
        if layer >= _MOST_LAYERS or not 1 <= n_expert <= _MOST_EXPERTS or n_bytes > _MOST_NAME_BYTES:
            self._damaged(f"layer {layer} with {n_expert} experts and a name of {n_bytes} bytes")
        if layer in self.layers:
            self._damaged(f"layer {layer} is described twice")
        begin = self._skip(n_bytes)
        name = self._data[begin : begin + n_bytes].decode("utf-8", errors="replace")
        self.layers[layer] = Layer(name, n_expert)
        self._bits[layer] = id_bits(n_expert, self._version)

    def _read_end(self) -> None:
        n_tokens = self._number()
        if n_tokens != self.n_tokens:
            self._damaged(f"it ends after {n_tokens} tokens, but holds {self.n_tokens}")
        if self._at != len(self._data):
            self._damaged("something follows its end")

    def _number(self) -> int:
        value = 0
        for index, byte in enumerate(self._data[self._at : self._at + _NUMBER_BYTES]):
            value |= (byte & 127) << 7 * index
            if byte < 128:
                self._at += index + 1
                return value
        if self._at + _NUMBER_BYTES <= len(self._data):
            self._damaged(f"a number has more than {_NUMBER_BYTES} bytes")
        raise _CutOffError

    def _skip(self, n_bytes: int) -> int:
        """Step over `n_bytes` and return where they begin."""
        begin = self._at
        if begin + n_bytes > len(self._data):
            raise _CutOffError
        self._at = begin + n_bytes
        return begin

    def _damaged(self, what: str) -> NoReturn:
        raise TraceFormatError(f"{self.name} is damaged: {what} (record at byte {self._record})")


def _extract(data: bytes, scan: _Scan, blocks: npt.NDArray[np.int64], has_weights: bool) -> Choices:
    """The second pass: all choices of these blocks."""
    raw = np.frombuffer(data + bytes(2), dtype=np.uint8)  # an id is cut out of three bytes
    n_expert = np.zeros(max(scan.layers, default=0) + 1, dtype=np.int64)
    for index, layer in scan.layers.items():
        n_expert[index] = layer.n_expert
    ends = np.cumsum(blocks[:, _ROWS] * blocks[:, _USED])
    choices = _empty(int(ends[-1]) if len(ends) else 0)
    done = 0
    for start in range(
        0, len(blocks), _BLOCKS_AT_ONCE
    ):  # or the temporary arrays would need more than the result
        some = blocks[start : start + _BLOCKS_AT_ONCE]
        end = int(ends[start + len(some) - 1])
        _fill(_part(choices, done, end), raw, some, has_weights)
        done = end
    if (choices.expert >= n_expert[choices.layer]).any():
        worst = int(np.argmax(choices.expert - n_expert[choices.layer]))
        index, expert = choices.layer[worst], choices.expert[worst]
        raise TraceFormatError(
            f"{scan.name} is damaged: expert {expert} of {n_expert[index]} in layer {index} (choice {worst})"
        )
    return choices


def _empty(n: int) -> Choices:
    i64, i32, f32 = np.int64, np.int32, np.float32
    return Choices(np.empty(n, i64), np.empty(n, i32), np.empty(n, i32), np.empty(n, i32), np.empty(n, f32))


def _part(choices: Choices, begin: int, end: int) -> Choices:
    """Return the choices from `begin` to `end` as views."""
    part = slice(begin, end)
    return Choices(
        choices.token[part],
        choices.layer[part],
        choices.place[part],
        choices.expert[part],
        choices.weight[part],
    )


def _fill(
    choices: Choices, raw: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int64], has_weights: bool
) -> None:
    begin, layer, rows, used, bits, first = blocks.T
    n = rows * used

    def each(of_block: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.repeat(of_block, n)

    within = np.arange(n.sum()) - each(np.cumsum(n) - n)  # which choice of its block
    row, choices.place[:] = np.divmod(within, each(used))
    choices.token[:] = each(first) + row
    choices.layer[:] = each(layer)
    width = each(bits).astype(np.int32)
    bit = within * width
    at = each(begin) + (bit >> 3)
    window = raw[at] | raw[at + 1].astype(np.int32) << 8 | raw[at + 2].astype(np.int32) << 16
    choices.expert[:] = window >> (bit & 7).astype(np.int32) & (1 << width) - 1
    if has_weights:
        at = each(begin + (n * bits + 7 >> 3)) + within * 2
        weight_bits = raw[at] + (raw[at + 1].astype(np.uint16) << 8)
        choices.weight[:] = weight_bits.view(np.float16)
    else:
        choices.weight[:] = np.nan
