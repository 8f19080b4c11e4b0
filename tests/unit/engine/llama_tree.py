"""Folders that look like llama.cpp's source, and like a build of it, as far as hottune looks."""

from __future__ import annotations

import struct
from pathlib import Path

HEADER = "ggml/src/ggml-backend-impl.h"


def source_tree(folder: Path, api_version: int = 3) -> Path:
    """Write the few files by which a llama.cpp source is known."""
    files = {
        "CMakeLists.txt": 'project("llama.cpp")\n',
        "tools/server/CMakeLists.txt": "\n",
        HEADER: f"#pragma once\n    #define GGML_BACKEND_API_VERSION {api_version}\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def elf(*needed: str) -> bytes:
    """Return a 64-bit little-endian ELF image that lists `needed` and has nothing else in it."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    header, entry, dynamic_at = 64, 56, 64 + 2 * 56
    tags = [(1, strings.index(name.encode() + b"\0")) for name in needed]
    dynamic_size = 16 * (len(tags) + 2)
    strings_at = dynamic_at + dynamic_size
    base = 0x1000  # the address at which the file is loaded: offsets and addresses differ, as in real files
    tags += [(5, base + strings_at), (0, 0)]
    total = strings_at + len(strings)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, header, 0, 0, header, entry, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, base, base, total, total, 4096)
    dynamic = struct.pack(
        "<IIQQQQQQ", 2, 4, dynamic_at, base + dynamic_at, base + dynamic_at, dynamic_size, dynamic_size, 8
    )
    return head + load + dynamic + b"".join(struct.pack("<qQ", *tag) for tag in tags) + strings


def library(folder: Path, name: str, *needed: str) -> Path:
    """Write a shared library that needs others."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(elf(*needed))
    return path


def server(folder: Path, *needed: str, version: str = "version: 0.6.0-dev (build 11434, commit abc)") -> Path:
    """Write a llama-server that answers --version (a script: its needs are those of a library beside it)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\necho '{version}' >&2\n")
    path.chmod(0o755)
    return path


def built(folder: Path, *, version_suffix: str = "", **server_facts: str) -> Path:
    """Write a GGML_BACKEND_DL build, everything in one folder as in a release archive."""
    server(folder, **server_facts)
    library(folder, f"libggml-base.so{version_suffix}", "libc.so.6")
    library(folder, f"libggml.so{version_suffix}", "libggml-base.so.0", "libc.so.6")
    library(folder, "libggml-cpu.so", "libggml-base.so.0")
    return folder
