"""Write a GGUF as a stream: the header first, then each tensor's bytes as they are made."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import psutil
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from hottune.engine.space import full_disk_as_error, require_space
from hottune.errors import BadSettingError
from hottune.models.gguf_header import DEFAULT_ALIGNMENT, MAGIC
from hottune.progress import NoProgress, Progress
from hottune.units import format_bytes

_SPARE_BYTES = 64 << 20  # left free on the disk


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: shape in ggml's order, and a function that makes its bytes piece by piece."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    make: Callable[[], Iterable[NDArray[Any]]]

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights."""
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * block_bytes


def key_value(key: str, value: str | bool | int | float) -> bytes:
    """Return a metadata pair as GGUF stores it; integers as u32, numbers with a point as f32."""
    name = _text(key)
    if isinstance(value, str):
        return name + struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return name + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return name + struct.pack("<II", 4, value)
    return name + struct.pack("<If", 6, value)


def write_gguf(
    path: Path,
    metadata: bytes,
    n_keys: int,
    tensors: list[PlannedTensor],
    progress: Progress | None = None,
) -> None:
    """Write the file under a temporary name beside `path`, then rename it: `path` is never half a model.

    Raises:
        BadSettingError: the path is a folder, a device or a pipe, which a rename would replace.
        NoSpaceError: the disk has too little room; found before anything is written.
    """
    if path.exists() and not path.is_file():
        raise BadSettingError(f"{path} is no file: no model can be written there.", next_step="Name a file.")
    progress = progress or NoProgress()
    header = _header(metadata, n_keys, tensors)
    total = len(header) + sum(_padded(tensor.n_bytes) for tensor in tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, total + _SPARE_BYTES, path.name)
    _remove_abandoned(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    progress.start(f"Writing {path.name}", total, "bytes")
    try:
        with (
            full_disk_as_error(path.parent, f"writing {path.name}"),
            unfinished.open("wb", buffering=0) as file,
        ):
            done = _write_all(file, memoryview(header))
            for tensor in tensors:
                written = 0
                for piece in tensor.make():
                    written += _write_all(file, piece.reshape(-1).view("u1").data)
                    progress.update(done + written, total)
                if written != tensor.n_bytes:
                    raise AssertionError(f"{tensor.name}: {written} bytes instead of {tensor.n_bytes}")
                done += written + file.write(bytes(_padded(written) - written))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    progress.finish(format_bytes(total))


def _remove_abandoned(path: Path) -> None:
    """Delete what a killed process left of an earlier attempt: it may be many GiB."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        pid = part.suffixes[-2].removeprefix(".")
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            part.unlink(missing_ok=True)


def _write_all(file: RawIOBase, raw: memoryview) -> int:
    """Write all bytes; an unbuffered write may take fewer than offered (2 GiB at most on Linux)."""
    done = 0
    while done < len(raw):
        done += file.write(raw[done:]) or 0
    return done


def _header(metadata: bytes, n_keys: int, tensors: list[PlannedTensor]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), n_keys), metadata]
    offset = 0
    for tensor in tensors:
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts += [_text(tensor.name), dimensions, struct.pack("<IQ", tensor.type, offset)]
        offset += _padded(tensor.n_bytes)
    raw = b"".join(parts)
    return raw + bytes(_padded(len(raw)) - len(raw))


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
