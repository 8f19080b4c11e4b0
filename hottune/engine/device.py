"""Compile our hot-expert device beside a llama.cpp."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hottune.engine.llama import run_ninja
from hottune.engine.pin import vendor_dir
from hottune.engine.steps import require_success, run_step
from hottune.engine.toolchain import Compiler, find_tool
from hottune.errors import BuildFailedError
from hottune.progress import Progress

_DONE = "done"


@dataclass(frozen=True)
class DevicePlan:
    """What one device library is compiled from, and where."""

    folder: Path  # build folder, named after the key
    key: str  # changes with our sources, the llama.cpp and the compiler
    llama_source: Path  # folder with ggml/include and ggml/src
    lib_dir: Path  # folder with libggml-base and libggml
    compiler: Compiler


def plan_device(
    parent: Path, llama_key: str, *, llama_source: Path, lib_dir: Path, compiler: Compiler
) -> DevicePlan:
    """Read our sources once and settle the device's key; its build folder lies in `parent`."""
    state = hashlib.sha256(f"{llama_key}\0{lib_dir}\0{compiler.version}\0".encode())
    root = vendor_dir() / "ggml-hot"
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.relative_to(root).parts[0] == "replay":
            continue  # a library of its own, see replay_library.py
        state.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    key = state.hexdigest()[:12]
    return DevicePlan(parent / f"device-{key}", key, llama_source, lib_dir, compiler)


def find_device(plan: DevicePlan) -> Path | None:
    """Return the finished library for exactly these plan, when there is one."""
    return _library(plan.folder)


def compile_device(plan: DevicePlan, *, jobs: int, progress: Progress) -> Path:
    """Compile the device (seconds) and return the shared library.

    Raises:
        BuildFailedError: CMake or the compiler failed.
    """
    build = plan.folder
    log = build.with_suffix(".log")
    progress.start("Building the hot-expert device", None, "steps")
    configure(build, plan, log=log)
    step = "Building the hot-expert device"
    run_ninja(find_tool("ninja"), build, ("ggml-hot",), jobs=jobs, log=log, step=step, progress=progress)
    (build / _DONE).touch()
    library = _library(build)
    if library is None:
        raise BuildFailedError(f"{step} left no libggml-hot in {build}.", next_step=f"See {log}.")
    progress.finish()
    return library


def discard_device(plan: DevicePlan) -> None:
    """Make the library count as not built (it turned out not to load)."""
    (plan.folder / _DONE).unlink(missing_ok=True)


def configure(
    build: Path,
    plan: DevicePlan,
    *,
    log: Path,
    lib_dir: Path | None = None,
    tests: bool = False,
    sanitize: str = "",
) -> None:
    """Let CMake set up a build folder for the device, or for its tests as well.

    Args:
        build: the folder.
        plan: what to compile.
        log: receives what CMake prints.
        lib_dir: ggml's libraries to link with; None = those of the plan.
        tests: whether the tests belong to it.
        sanitize: the compiler's sanitizers for all of it, like `address,undefined`; "" for none.

    Raises:
        BuildFailedError: CMake failed.
    """
    argv = cmake_command(vendor_dir() / "ggml-hot", build)
    argv += [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", "-DCMAKE_BUILD_TYPE=Release"]
    argv += [f"-DGGML_HOT_LLAMA_SOURCE={plan.llama_source}"]
    argv += [f"-DGGML_HOT_LLAMA_LIB={lib_dir or plan.lib_dir}"]
    argv += [f"-DGGML_HOT_TESTS={'ON' if tests else 'OFF'}", f"-DGGML_HOT_SANITIZE={sanitize}"]
    code = run_step(argv, log=log, env=plan.compiler.environment())
    require_success(code, step="Configuring the hot-expert device", log=log)


def cmake_command(source: Path, build: Path) -> list[object]:
    """Return the beginning of a CMake call that configures `build` from `source`.

    Checkouts share the cache folder, and CMake refuses a folder that was configured from another source:
    such a one is configured afresh.
    """
    cache = build / "CMakeCache.txt"
    known = cache.read_text(errors="replace") if cache.is_file() else ""
    home = next((line for line in known.splitlines() if line.startswith("CMAKE_HOME_DIRECTORY:")), "")
    moved = bool(home) and Path(home.partition("=")[2]).resolve() != source.resolve()
    return [find_tool("cmake"), *["--fresh"] * moved, "-S", source, "-B", build, "-G", "Ninja"]


def _library(build: Path) -> Path | None:
    if not (build / _DONE).is_file():  # a linker that was killed may leave half a library
        return None
    libraries = (path for path in sorted(build.glob("libggml-hot.*")) if path.suffix in (".so", ".dylib"))
    return next(libraries, None)
