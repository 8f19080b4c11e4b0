"""Configure and compile llama.cpp itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hottune.engine.executable import build_label, server_version
from hottune.engine.facts import Backend
from hottune.engine.sources import LlamaSource
from hottune.engine.steps import NINJA_STATUS, parse_ninja, require_success, run_step
from hottune.engine.toolchain import (
    Compiler,
    cuda_capabilities,
    find_gpu_compiler,
    find_tool,
    gpu_present,
    host_options,
)
from hottune.errors import BadSettingError, BuildFailedError
from hottune.progress import Progress

TARGETS = ("llama-server", "llama-fit-params", "llama-bench")
#: llama-server within the build folder.
SERVER = "bin/llama-server"

#: Without GGML_BACKEND_DL, llama-server silently ignores a device loaded by GGML_BACKEND_PATH.
_BASE = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=ON",
    "GGML_BACKEND_DL=ON",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_CURL=OFF",
    "LLAMA_OPENSSL=OFF",
)
_MUST_STAY_ON = ("GGML_BACKEND_DL", "BUILD_SHARED_LIBS")
_OPTION = re.compile(r"(?:-D)?([A-Za-z_]\w*)(?::[A-Za-z]+)?=(.*)")
_STAMP = "llama.json"


def cmake_options(
    backend: Backend, compiler: Compiler, source: LlamaSource, extra: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Return every `NAME=VALUE` llama.cpp is configured with; the user's own come last and win.

    Raises:
        BadSettingError: an option of the user's is not NAME=VALUE, or would make the device be ignored.
    """
    merged: dict[str, str] = {}
    for text in (*_BASE, *host_options(compiler), *_backend_options(backend), *_build_info(source)):
        name, _, value = text.partition("=")
        merged[name] = value
    for text in extra:
        match = _OPTION.fullmatch(text.strip())
        if match is None:
            raise BadSettingError(
                f"'{text}' is not a CMake option.", next_step="Write it like GGML_CUDA_FA=OFF."
            )
        if match[1] in _MUST_STAY_ON and match[2].upper() not in ("ON", "1", "TRUE", "YES"):
            raise BadSettingError(
                f"{match[1]} must stay ON.",
                "In a llama.cpp built otherwise, llama-server silently ignores the hot-expert device.",
                "Leave that --cmake-option away.",
            )
        merged[match[1]] = match[2]
    return tuple(f"{name}={value}" for name, value in merged.items())


def _backend_options(backend: Backend) -> tuple[str, ...]:
    if backend is Backend.CUDA:
        # Without a GPU to look at, "native" fails; ggml's own list takes longer to compile.
        native = ("CMAKE_CUDA_ARCHITECTURES=native",) if gpu_present(backend) else ()
        return ("GGML_CUDA=ON", *native, f"CMAKE_CUDA_COMPILER={find_gpu_compiler(backend)}")
    names = {Backend.HIP: "GGML_HIP", Backend.VULKAN: "GGML_VULKAN", Backend.METAL: "GGML_METAL"}
    if backend in names:
        return (f"{names[backend]}=ON",)
    return ("GGML_METAL=OFF",)


def _build_info(source: LlamaSource) -> tuple[str, ...]:
    # llama.cpp's CMake asks git for its build number; in an unpacked archive or a shallow clone that would be
    # the number of whatever repository lies around it.
    if source.build_number is None:
        return ()
    return (f"LLAMA_BUILD_NUMBER={source.build_number}", f"LLAMA_BUILD_COMMIT={source.commit}")


def key_parts(backend: Backend, compiler: Compiler, options: tuple[str, ...]) -> list[object]:
    """Return what, beside the source, makes two builds differ."""
    gpus = cuda_capabilities() if backend is Backend.CUDA else ()  # what "native" means here
    return [list(options), compiler.version, list(gpus)]


def finished_build(folder: Path, source: LlamaSource, server: str = SERVER) -> str | None:
    """Return the label (`b11434`) of the finished build in `folder` of exactly this state of the source."""
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        same = stamp["identity"] == source.identity and (folder / "build" / server).is_file()
        return str(stamp["label"]) if same else None
    except (OSError, ValueError, KeyError):
        return None


def bin_dir(folder: Path) -> Path:
    """Return where a build's executables and libraries are."""
    return folder / "build" / "bin"


def compile_llama(
    folder: Path,
    source: LlamaSource,
    compiler: Compiler,
    options: tuple[str, ...],
    *,
    jobs: int,
    progress: Progress,
    name: str = "llama.cpp",
    targets: tuple[str, ...] = TARGETS,
    server: str = SERVER,
) -> None:
    """Configure and compile llama.cpp in `folder`; an interrupted build goes on where it stopped.

    Args:
        folder: build folder of this key; gets `build/`, `build.log` and, at the very end, the stamp.
        source: what to compile.
        compiler: which compilers CMake is to take.
        options: `NAME=VALUE` options.
        jobs: compilers at once.
        progress: one task for CMake, one for Ninja's steps.
        name: of what is compiled, for people.
        targets: what to build of it.
        server: the program that must be there at the end, within the build folder.

    Raises:
        BuildFailedError: CMake or a compiler failed; the message shows the last errors.
        NoSpaceError: the disk filled up.
    """
    log = folder / "build.log"
    build = folder / "build"
    log.unlink(missing_ok=True)
    (folder / _STAMP).unlink(missing_ok=True)
    progress.start(f"Configuring {name}")
    argv, env = configure_argv(source.folder, build, options), compiler.environment()
    code = run_step(argv, log=log, env=env, on_line=lambda line: progress.update(0, note=line))
    require_success(code, step=f"Configuring {name}", log=log)
    progress.finish()
    step = f"Building {name}"
    progress.start(step, None, "steps")
    done = run_ninja(find_tool("ninja"), build, targets, jobs=jobs, log=log, step=step, progress=progress)
    if not (build / server).is_file():
        raise BuildFailedError(
            f"{step} ended well, but there is no {server} in {build}.",
            "The targets do not make it, or it lies elsewhere.",
            f"The whole log is {log}.",
        )
    stamp = {
        "identity": source.identity,
        "label": build_label(server_version(build / server)),
        "source": source.name,
        "options": options,
        "compiler": compiler.version,
    }
    (folder / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    progress.finish(f"{done} steps, log {log}")


def configure_argv(source: Path, build: Path, options: tuple[str, ...]) -> list[object]:
    """Return the command that configures a build folder."""
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"]
    return [find_tool("cmake"), "-S", source, "-B", build, *generator, *(f"-D{one}" for one in options)]


def run_ninja(
    ninja: Path, build: Path, targets: tuple[str, ...], *, jobs: int, log: Path, step: str, progress: Progress
) -> int:
    """Build targets and report every finished step; return how many there were.

    Raises:
        BuildFailedError: a compiler failed.
        NoSpaceError: the disk filled up.
    """
    count = 0

    def on_line(line: str) -> None:
        nonlocal count
        if parsed := parse_ninja(line):
            count, total, what = parsed
            progress.update(count, total, note=what.rpartition("/")[2].removesuffix(".o"))

    argv: list[object] = [ninja, "-C", build, "-j", str(jobs), *targets]
    code = run_step(argv, log=log, env={"NINJA_STATUS": NINJA_STATUS}, on_line=on_line)
    require_success(code, step=step, log=log)
    return count
