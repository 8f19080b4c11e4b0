"""What this machine can compile: compilers, CMake, Ninja, GPU tool chains, the CPU's instruction sets."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from hottune.engine.facts import Backend
from hottune.errors import BackendUnavailableError, NoCompilerError

_CXX_NAMES = ("c++", "g++", "clang++")
_C_NAMES = ("cc", "gcc", "clang")

#: ggml's CMake option -> (CPU flags of Linux that it stands for, compiler flags that it turns on).
#: From ggml/src/ggml-cpu/CMakeLists.txt; GGML_AVX512 means the five subsets that every server CPU has.
X86_SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "GGML_SSE42": (("sse4_2",), ("-msse4.2",)),
    "GGML_AVX": (("avx",), ("-mavx",)),
    "GGML_F16C": (("f16c",), ("-mf16c",)),
    "GGML_FMA": (("fma",), ("-mfma",)),
    "GGML_BMI2": (("bmi2",), ("-mbmi2",)),
    "GGML_AVX2": (("avx2",), ("-mavx2",)),
    "GGML_AVX_VNNI": (("avx_vnni",), ("-mavxvnni",)),
    "GGML_AVX512": (
        ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
        ("-mavx512f", "-mavx512cd", "-mavx512vl", "-mavx512dq", "-mavx512bw"),
    ),
    "GGML_AVX512_VBMI": (("avx512vbmi",), ("-mavx512vbmi",)),
    "GGML_AVX512_VNNI": (("avx512_vnni",), ("-mavx512vnni",)),
    "GGML_AVX512_BF16": (("avx512_bf16",), ("-mavx512bf16",)),
    "GGML_AMX_TILE": (("amx_tile",), ("-mamx-tile",)),
    "GGML_AMX_INT8": (("amx_int8",), ("-mamx-int8",)),
    "GGML_AMX_BF16": (("amx_bf16",), ("-mamx-bf16",)),
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
    version = _first_line([*shlex.split(cxx), "--version"], environ)
    if version is None:
        raise NoCompilerError(f"The C++ compiler '{cxx}' does not run.", next_step=_install_hint())
    return Compiler(cxx=cxx, cc=cc, version=version)


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


def tool_version(tool: Path) -> str:
    """Return the first line of `<tool> --version`, or "does not run"."""
    return _first_line([str(tool), "--version"], os.environ) or "does not run"


def find_gpu_compiler(backend: Backend) -> Path | None:
    """Return nvcc for CUDA, hipcc for HIP, glslc for Vulkan; None when missing (or not needed)."""
    places: dict[Backend, tuple[str, list[str]]] = {
        Backend.CUDA: (
            "nvcc",
            [os.environ.get("CUDACXX", ""), *_under("CUDA_HOME", "CUDA_PATH", "/usr/local/cuda", tool="bin/nvcc")],
        ),
        Backend.HIP: ("hipcc", _under("ROCM_PATH", "/opt/rocm", tool="bin/hipcc")),
        Backend.VULKAN: ("glslc", _under("VULKAN_SDK", tool="bin/glslc")),
    }
    if backend not in places:
        return None
    name, others = places[backend]
    found = shutil.which(name) or next((hit for other in others if other and (hit := shutil.which(other))), None)
    return Path(found) if found else None


def _under(*roots: str, tool: str) -> list[str]:
    folders = [root if root.startswith("/") else os.environ.get(root, "") for root in roots]
    return [f"{folder}/{tool}" for folder in folders if folder]


def gpu_present(backend: Backend) -> bool:
    """Tell whether the machine has a GPU that the back-end could drive, from what the system shows."""
    if backend is Backend.CUDA:
        return any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))
    if backend is Backend.HIP:
        return Path("/dev/kfd").exists()
    if backend is Backend.VULKAN:
        return any(Path("/dev/dri").glob("renderD*")) if Path("/dev/dri").is_dir() else False
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
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission: all the same here
        return ()
    try:
        found = set()
        for index in range(pynvml.nvmlDeviceGetCount()):
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(index))
            found.add(f"{major}.{minor}")
        return tuple(sorted(found))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags of the first processor in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def instruction_options(flags: frozenset[str]) -> dict[str, bool]:
    """Map x86 CPU flags to ggml's CMake options, every one of them spelled out ON or OFF.

    Without this a build for GGML_BACKEND_DL stops at the compiler's baseline, and the all-CPU baseline that
    everything is compared with would be slower than it has to be.
    """
    options = {name: all(flag in flags for flag in needed) for name, (needed, _) in X86_SETS.items()}
    for name in _NEEDS_AVX512:
        options[name] = options[name] and options["GGML_AVX512"]
    return options


@functools.cache
def host_options(compiler: Compiler) -> tuple[str, ...]:
    """Return the `NAME=VALUE` CMake options that make ggml use all of this CPU that the compiler knows.

    On processors other than x86, GGML_NATIVE finds them out itself (there it works with GGML_BACKEND_DL).
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("GGML_NATIVE=ON",)
    cpuinfo = Path("/proc/cpuinfo")
    wanted = instruction_options(cpu_flags(cpuinfo.read_text() if cpuinfo.exists() else _mac_flags()))
    names = [name for name, on in wanted.items() if on]
    if not _compiles(compiler, names):
        names = [name for name in names if _compiles(compiler, [name])]
    return ("GGML_NATIVE=OFF", *(f"{name}={'ON' if name in names else 'OFF'}" for name in wanted))


def _mac_flags() -> str:
    text = _first_line(["sysctl", "-n", "machdep.cpu.features"], os.environ) or ""
    more = _first_line(["sysctl", "-n", "machdep.cpu.leaf7_features"], os.environ) or ""
    flags = f"{text} {more}".lower().replace("sse4.2", "sse4_2").replace("avx1.0", "avx")
    return f"flags: {flags}"


def _compiles(compiler: Compiler, names: list[str]) -> bool:
    flags = [flag for name in names for flag in X86_SETS[name][1]]
    argv = [*shlex.split(compiler.cxx), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def default_jobs() -> int:
    """Return how many compilers to run at once: the usable cores, but one for each 1.5 GiB of memory at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().total / (1.5 * 1024**3))))


def _first_line(argv: list[str], environ: Mapping[str, str]) -> str | None:
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
        return None
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
