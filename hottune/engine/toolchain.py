"""What this machine can compile: compilers, CMake, Ninja, GPU tool chains, the CPU's instruction sets."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from hottune.engine.facts import Backend
from hottune.errors import BackendUnavailableError, NoCompilerError
from hottune.machine.cpu import instruction_sets
from hottune.machine.probe import probe_gpus

_CXX_NAMES = ("c++", "g++", "clang++")
_C_NAMES = ("cc", "gcc", "clang")

#: ggml's CMake option -> the compiler flags that it turns on (ggml/src/ggml-cpu/CMakeLists.txt).
_X86_FLAGS: dict[str, tuple[str, ...]] = {
    "GGML_SSE42": ("-msse4.2",),
    "GGML_AVX": ("-mavx",),
    "GGML_F16C": ("-mf16c",),
    "GGML_FMA": ("-mfma",),
    "GGML_BMI2": ("-mbmi2",),
    "GGML_AVX2": ("-mavx2",),
    "GGML_AVX_VNNI": ("-mavxvnni",),
    "GGML_AVX512": ("-mavx512f", "-mavx512cd", "-mavx512vl", "-mavx512dq", "-mavx512bw"),
    "GGML_AVX512_VBMI": ("-mavx512vbmi",),
    "GGML_AVX512_VNNI": ("-mavx512vnni",),
    "GGML_AVX512_BF16": ("-mavx512bf16",),
    "GGML_AMX_TILE": ("-mamx-tile",),
    "GGML_AMX_INT8": ("-mamx-int8",),
    "GGML_AMX_BF16": ("-mamx-bf16",),
}
_NEEDS_AVX512 = ("GGML_AVX512_VBMI", "GGML_AVX512_VNNI", "GGML_AVX512_BF16")


@dataclass(frozen=True)
class Compiler:
    """A pair of C and C++ compilers, as the environment variables CC and CXX would name them."""

    cxx: str
    cc: str
    version: str  # first line of `<cxx> --version`

    def environment(self) -> dict[str, str]:
        """Return the variables by which CMake takes exactly this pair."""
        return {"CXX": self.cxx, "CC": self.cc}


def find_compiler(environ: Mapping[str, str] | None = None) -> Compiler:
    """Find the C++ and C compilers: `CXX` and `CC` when set, otherwise the usual names on PATH.

    Raises:
        NoCompilerError: there is none, or the one that CXX or CC names does not run.
    """
    environ = os.environ if environ is None else environ
    path = environ.get("PATH", os.defpath)
    cxx = _chosen("CXX", _CXX_NAMES, environ, path)
    cc = _chosen("CC", _C_NAMES, environ, path)
    said = _lines([*shlex.split(cxx), "--version"], environ)
    if not said:
        raise NoCompilerError(f"The C++ compiler '{cxx}' does not run.", next_step=_install_hint())
    return Compiler(cxx=cxx, cc=cc, version=said[0])


def _chosen(variable: str, names: Iterable[str], environ: Mapping[str, str], path: str) -> str:
    language = "C++" if variable == "CXX" else "C"
    asked = environ.get(variable, "").strip()
    if asked:
        # May carry a launcher and options ("ccache g++ -m64"), which CMake understands too.
        if shutil.which(shlex.split(asked)[0], path=path) is None:
            raise NoCompilerError(
                f"{variable} is set to '{asked}', but there is no such compiler.",
                next_step=f"Set {variable} to a {language} compiler, or unset it.",
            )
        return asked
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise NoCompilerError(
        f"There is no {language} compiler on PATH (looked for {', '.join(names)}).",
        "llama.cpp and the hot-expert device are compiled on this machine.",
        _install_hint(),
    )


def _install_hint() -> str:
    if sys.platform == "darwin":
        return "Install one with: xcode-select --install"
    return "Install one, for example with: sudo apt install g++   or: sudo dnf install gcc-c++"


def find_tool(name: str) -> Path:
    """Return the `cmake`, `ctest` or `ninja` to use: the Python package's, else the one on PATH.

    Raises:
        NoCompilerError: neither is there.
    """
    folders = []
    try:
        if name == "ninja":
            import ninja

            folders.append(ninja.BIN_DIR)
        else:
            import cmake

            folders.append(cmake.CMAKE_BIN_DIR)
    except ImportError:
        pass  # a distribution's package of hottune may leave them to the system
    found = next((hit for folder in folders if (hit := shutil.which(name, path=str(folder)))), None)
    found = found or shutil.which(name)
    if found is None:
        raise NoCompilerError(f"There is no {name}.", next_step="Install it with: pip install cmake ninja")
    return Path(found)


def tool_version(tool: Path, word: str = "version") -> str:
    """Return the line of `<tool> --version` that has `word`, else its first line, or "does not run"."""
    lines = _lines([str(tool), "--version"], os.environ)
    return next((line for line in lines if word in line), lines[0] if lines else "does not run")


def find_gpu_compiler(backend: Backend) -> Path | None:
    """Return nvcc for CUDA, hipcc for HIP, glslc for Vulkan; None when missing (or not needed)."""
    places: dict[Backend, tuple[str, list[str]]] = {
        Backend.CUDA: (
            "nvcc",
            [
                os.environ.get("CUDACXX", ""),
                *_under("CUDA_HOME", "CUDA_PATH", "/usr/local/cuda", tool="bin/nvcc"),
            ],
        ),
        Backend.HIP: ("hipcc", _under("ROCM_PATH", "/opt/rocm", tool="bin/hipcc")),
        Backend.VULKAN: ("glslc", _under("VULKAN_SDK", tool="bin/glslc")),
    }
    if backend not in places:
        return None
    name, others = places[backend]
    found = shutil.which(name) or next(
        (hit for other in others if other and (hit := shutil.which(other))), None
    )
    return Path(found) if found else None


def _under(*roots: str, tool: str) -> list[str]:
    folders = [root if root.startswith("/") else os.environ.get(root, "") for root in roots]
    return [f"{folder}/{tool}" for folder in folders if folder]


def gpu_present(backend: Backend) -> bool:
    """Tell whether the machine has a GPU that the back-end could drive, from what the system shows."""
    if backend is Backend.CUDA:
        return Path("/dev/dxg").exists() or any(Path("/dev").glob("nvidia[0-9]*"))
    if backend is Backend.HIP:
        return Path("/dev/kfd").exists()
    if backend is Backend.VULKAN:
        return any(Path("/dev/dri").glob("renderD*"))
    return backend is Backend.METAL and sys.platform == "darwin"


def choose_backend(asked: Backend | None) -> tuple[Backend, str]:
    """Return the back-end to build, and a line that explains a surprising choice ("" when there is none).

    `asked` wins when its tool chain is here. Otherwise: CUDA, HIP, Metal when both GPU and tool chain are
    found; Vulkan is only built when asked for, since nearly every desktop has a small GPU that can do it.

    Raises:
        NoCompilerError: CUDA or HIP was asked for and its compiler is missing.
        BackendUnavailableError: Vulkan or Metal was asked for and cannot be built here.
    """
    if asked is None:
        return _found_backend()
    if asked in (Backend.CUDA, Backend.HIP, Backend.VULKAN) and find_gpu_compiler(asked) is None:
        name = {Backend.CUDA: "nvcc", Backend.HIP: "hipcc", Backend.VULKAN: "glslc"}[asked]
        error = BackendUnavailableError if asked is Backend.VULKAN else NoCompilerError
        raise error(
            f"--backend {asked} needs {name}, which is not on PATH.",
            next_step=f"Install the {asked} development tools, or use --backend cpu.",
        )
    if asked is Backend.METAL and sys.platform != "darwin":
        raise BackendUnavailableError(
            "Metal exists on macOS only.", next_step="Leave --backend away, or use --backend cpu."
        )
    return asked, ""


def _found_backend() -> tuple[Backend, str]:
    if sys.platform == "darwin":
        return Backend.METAL, ""
    for backend, maker, tool in ((Backend.CUDA, "NVIDIA", "nvcc"), (Backend.HIP, "AMD", "hipcc")):
        if gpu_present(backend):
            if find_gpu_compiler(backend):
                return backend, ""
            return Backend.CPU, (
                f"There is a GPU of {maker}, but no {tool}: building for the CPU alone. "
                f"Install the {backend} development tools and run again to use the GPU."
            )
    return Backend.CPU, ""


def cuda_capabilities() -> tuple[str, ...]:
    """Return the distinct compute capabilities of the NVIDIA GPUs here ("9.0"), or nothing."""
    gpus, _ = probe_gpus()
    return tuple(sorted({gpu.compute_capability for gpu in gpus if gpu.compute_capability}))


def instruction_options(cpu: Mapping[str, bool], knows: Callable[[list[str]], bool]) -> tuple[str, ...]:
    """Return ggml's instruction-set options, every one of them spelled out ON or OFF.

    Without this a build for GGML_BACKEND_DL stops at the compiler's baseline, and the all-CPU experts that
    everything is compared with would be slower than they have to be.

    Args:
        cpu: option -> whether the processor has it (`hottune.machine.cpu.instruction_sets`).
        knows: whether the compiler can compile for all of the named options at once.
    """
    names = [name for name, has in cpu.items() if has and name in _X86_FLAGS]
    if "GGML_AVX512" not in names:
        names = [name for name in names if name not in _NEEDS_AVX512]
    if not knows(names):
        names = [name for name in names if knows([name])]
    return tuple(f"{name}={'ON' if name in names else 'OFF'}" for name in _X86_FLAGS)


@functools.cache
def host_options(compiler: Compiler) -> tuple[str, ...]:
    """Return the `NAME=VALUE` options that make ggml use all of this CPU that the compiler knows.

    On processors other than x86, GGML_NATIVE finds it out itself (only there it works with GGML_BACKEND_DL).
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("GGML_NATIVE=ON",)
    found = instruction_sets()
    options = instruction_options(found, lambda names: _compiles(compiler, names)) if found else ()
    return ("GGML_NATIVE=OFF", *options)


def _compiles(compiler: Compiler, names: list[str]) -> bool:
    flags = [flag for name in names for flag in _X86_FLAGS[name]]
    argv = [*shlex.split(compiler.cxx), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def default_jobs() -> int:
    """Return how many compilers to run at once: one a core, and 1.5 GiB of memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().total / (1.5 * 1024**3))))


def _lines(argv: list[str], environ: Mapping[str, str]) -> list[str]:
    """Return what a command prints, or nothing when it fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
            env=dict(environ),
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    text = done.stdout.strip() or done.stderr.strip()
    return [line.strip() for line in text.splitlines()] if done.returncode == 0 else []
