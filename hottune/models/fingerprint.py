"""A fast identity for model files that are too large to hash whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hottune.models.gguf_header import GgufHeader

BLOCKS = 64
BLOCK_BYTES = 64 * 1024


def fingerprint(parts: Sequence[tuple[Path, GgufHeader]]) -> str:
    """Return the sha256, in hex, over each part's size, header and 64 evenly spaced 64 KiB blocks.

    Two quantizations, conversions or revisions of a model differ in all blocks, so this tells them apart;
    it reads 4 MiB a part. It is no proof against somebody who changes weights between the blocks.
    """
    digest = hashlib.sha256()
    for path, header in parts:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            digest.update(file.read(header.data_offset))
            last = max(0, size - BLOCK_BYTES)
            for offset in sorted({last * block // (BLOCKS - 1) for block in range(BLOCKS)}):
                file.seek(offset)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
