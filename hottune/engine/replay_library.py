"""Compile the device's policies into a small library of their own, for the replay of routing traces."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
from pathlib import Path

from hottune.engine.lock import only_one
from hottune.engine.pin import vendor_dir
from hottune.engine.space import full_disk_as_error
from hottune.engine.steps import require_success, run_step
from hottune.engine.toolchain import find_compiler
from hottune.errors import BuildFailedError
from hottune.progress import NoProgress, Progress

_SOURCES = ("src/policy.h", "src/policy.cpp", "replay/replay.cpp")
_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-shared", "-fPIC", "-fvisibility=hidden")


def provide_replay_library(cache_dir: Path, progress: Progress | None = None) -> ctypes.CDLL:
    """Return the loaded library, compiled first (seconds) when the cache folder does not have it.

    Its name carries a hash of the sources, the flags and the compiler, so it is never an outdated one. Two
    processes that want it wait for each other, and it appears as a whole or not at all.

    Raises:
        NoCompilerError: there is no C++ compiler.
        BuildFailedError: the compiler failed, or the system refuses to load what it made.
        NoSpaceError: the disk is full.
    """
    progress = progress or NoProgress()
    root = vendor_dir() / "ggml-hot"
    compiler = find_compiler()
    state = hashlib.sha256("\0".join((compiler.cxx, compiler.version, *_FLAGS)).encode())
    for name in _SOURCES:
        state.update((root / name).read_bytes())
    folder = cache_dir / "replay"
    library = folder / f"libhot-replay-{state.hexdigest()[:12]}.so"
    if not library.is_file():
        with (
            only_one(folder / "lock", progress, purpose="compiling the policies"),
            full_disk_as_error(cache_dir, "the replay library"),
        ):
            if not library.is_file():
                _compile(shlex.split(compiler.cxx), root, library, progress)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildFailedError(
            f"The replay library {library} cannot be loaded: {error}.", next_step="Remove it and try again."
        ) from error


def _compile(cxx: list[str], root: Path, library: Path, progress: Progress) -> None:
    step = "Compiling the policies for replay"
    progress.start(step)
    unfinished, log = library.with_suffix(f".{os.getpid()}"), library.with_suffix(".log")
    log.unlink(missing_ok=True)
    files = [root / name for name in _SOURCES if name.endswith(".cpp")]
    try:
        code = run_step([*cxx, *_FLAGS, "-o", unfinished, *files], log=log)
        require_success(code, step=step, log=log)
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
    progress.finish()
