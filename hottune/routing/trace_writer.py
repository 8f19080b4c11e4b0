"""Writes routing traces as the device does, byte for byte (docs/trace-format.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from hottune.routing.trace import MAGIC, VERSION, id_bits

_TOKENS_AT_ONCE = 4096  # of `write_decode`: bounds its temporary arrays


def refuse_foreign(path: Path) -> None:
    """Let a trace be overwritten and nothing else: a mistyped path must not cost a model.

    Raises:
        FileExistsError: what lies there is no routing trace (an empty file may become one).
        OSError: it cannot be looked at.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise FileExistsError(f"{path} is no regular file")
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
    if head and head != MAGIC:
        raise FileExistsError(f"{path} is there and is no routing trace: not overwritten")


class TraceWriter:
    """A trace that is being written; use it as a context.

    Args:
        path: file to write; overwritten only if it is a trace.
        weights: whether the choices carry router weights.

    Raises:
        OSError: see `refuse_foreign`, or it cannot be written.
    """

    def __init__(self, path: Path, *, weights: bool = False) -> None:
        refuse_foreign(path)
        self._file = path.open("wb")
        self._weights = weights
        self._layers: dict[int, tuple[str, int]] = {}  # those that are described
        self._last: tuple[int, int, int] | None = None
        self.n_tokens = 0
        self._file.write(MAGIC + VERSION.to_bytes(2, "little") + int(weights).to_bytes(2, "little"))

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.write(b"E" + _number(self.n_tokens))
        self._file.close()

    def block(
        self,
        layer: int,
        name: str,
        n_expert: int,
        experts: npt.NDArray[np.integer],
        weights: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Write the choices of one layer for tokens that were computed together.

        Args:
            layer: counted from 0; layer 0 comes first and advances the tokens.
            name: of its first expert weight; the same in every block.
            n_expert: experts that it has; likewise.
            experts: array [n_tokens, n_used].
            weights: router weights like `experts`; None writes NaN. Only in a trace with weights.

        Raises:
            ValueError: no record can hold this, or the layer was another one before.
        """
        rows, used = experts.shape
        if not rows or not used or used > n_expert or not 0 <= experts.min() <= experts.max() < n_expert:
            raise ValueError(f"a block of {rows} tokens with {used} of {n_expert} experts each")
        if self._layers.get(layer, (name, n_expert)) != (name, n_expert):
            raise ValueError(f"layer {layer} is another one now")
        if layer and not self.n_tokens:
            raise ValueError("a trace begins with layer 0")
        out = bytearray()
        if layer not in self._layers:
            self._layers[layer] = name, n_expert
            raw = name.encode()
            out += b"L" + _number(layer) + _number(n_expert) + _number(len(raw)) + raw
        like = self._last is not None and layer > 0 and self._last == (layer - 1, rows, used)
        out += b"N" if like else b"B" + _number(layer) + _number(rows) + _number(used)
        self._last = layer, rows, used
        out += packed(experts.reshape(1, -1), n_expert).tobytes()
        if self._weights:
            halves = np.full(experts.shape, np.nan) if weights is None else weights
            out += halves.astype("<f2").tobytes()
        self._file.write(out)
        self.n_tokens += 0 if layer else rows

    def decode(
        self,
        names: Sequence[str],
        n_expert: int,
        experts: npt.NDArray[np.integer],
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        """Write tokens that were computed one by one; many at once are fast.

        Args:
            names: of each layer's first expert weight.
            n_expert: experts of every layer.
            experts: array [n_tokens, n_layers, n_used], n_used below 128.
            on_tokens: told now and then how many tokens are written.

        Raises:
            ValueError: as `block`; also for a trace with weights.
        """
        n_tokens, n_layers, used = experts.shape
        if self._weights or used > 127:
            raise ValueError("only choices without weights, of at most 127 experts")
        if not n_tokens:
            return
        for layer, name in enumerate(names):  # the first token describes the layers
            self.block(layer, name, n_expert, experts[:1, layer])
        if experts.max() >= n_expert:
            raise ValueError(f"expert {experts.max()} of {n_expert}")
        for begin in range(1, n_tokens, _TOKENS_AT_ONCE):
            some = experts[begin : begin + _TOKENS_AT_ONCE]
            ids = packed(some.reshape(-1, used), n_expert)
            ids = ids.reshape(len(some), n_layers, ids.shape[1])
            first = np.broadcast_to(np.frombuffer(b"B" + bytes((0, 1, used)), np.uint8), (len(some), 4))
            tags = np.full((len(some), n_layers - 1, 1), ord("N"), dtype=np.uint8)
            rest = np.concatenate([tags, ids[:, 1:]], axis=2).reshape(len(some), -1)
            self._file.write(np.concatenate([first, ids[:, 0], rest], axis=1).tobytes())
            self.n_tokens += len(some)
            if on_tokens:
                on_tokens(self.n_tokens)
        self._last = n_layers - 1, 1, used


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes((*encoded, value))


def packed(ids: npt.NDArray[np.integer], n_expert: int) -> npt.NDArray[np.uint8]:
    """Pack the ids of blocks, one block a row: [n_blocks, n_ids] to [n_blocks, n_bytes]."""
    width = id_bits(n_expert)
    bits = ids.astype(np.uint16)[:, :, None] >> np.arange(width, dtype=np.uint16) & 1
    return np.packbits(bits.astype(np.uint8).reshape(len(ids), -1), axis=1, bitorder="little")
