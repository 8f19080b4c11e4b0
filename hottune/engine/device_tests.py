"""The device's own C++ tests: its parts, the plug-in, models of every architecture; also with sanitizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hottune.engine.device import DevicePlan, cmake_command, configure
from hottune.engine.llama import run_ninja
from hottune.engine.pin import vendor_dir
from hottune.engine.steps import require_success, run_step
from hottune.engine.toolchain import find_tool, host_options
from hottune.errors import BuildFailedError
from hottune.progress import Progress


def run_tests(plan: DevicePlan, *, jobs: int, progress: Progress, sanitize: str = "") -> str:
    """Compile and run the tests that ctest knows; return what it printed.

    Args:
        plan: the device and the llama.cpp beside it.
        jobs: compilers, and then tests, at once.
        progress: one task for compiling, one for running; for sanitizers one more.
        sanitize: the compiler's sanitizers for device, tests and ggml, like `thread`; "" for none. Tests that
            need libllama are then left out, for that is not compiled with them.

    Raises:
        BuildFailedError: they do not compile, or one fails.
    """
    lib_dir = plan.lib_dir
    if sanitize:
        lib_dir = _build_sanitized_ggml(plan, sanitize, jobs=jobs, progress=progress)
    build = _build_tests(plan, jobs=jobs, progress=progress, lib_dir=lib_dir, sanitize=sanitize)
    log = build.with_suffix(".log")
    progress.start("Running the device's tests")
    printed: list[str] = []
    argv: list[object] = [find_tool("ctest"), "--test-dir", build, "--parallel", jobs]
    argv += ["--output-on-failure", "--no-tests=error"]
    code = run_step(argv, log=log, on_line=printed.append)
    if code != 0:
        for line in printed:
            progress.say(line)
    require_success(code, step="Running the device's tests", log=log)
    progress.finish(next((line for line in printed if "tests passed" in line), ""))
    return "\n".join(printed)


def run_matrix(
    plan: DevicePlan, *, jobs: int, progress: Progress, on_gpu: bool, on_line: Callable[[str], None]
) -> None:
    """Run the whole matrix: every architecture in every quantised type, with the device and without.

    Args:
        plan: the device and the llama.cpp beside it.
        jobs: compilers at once.
        progress: one task for compiling.
        on_gpu: the cache lies on the real GPU; otherwise on the CPU and on virtual GPUs.
        on_line: called with every line of the table; the last one is `N passed, M failed`.

    Raises:
        BuildFailedError: the tests do not compile, or a row fails, or there is no libllama to test with.
    """
    build = _build_tests(plan, jobs=jobs, progress=progress, lib_dir=plan.lib_dir)
    step = "The matrix of models"
    if not (build / "test-models").is_file():
        raise BuildFailedError(
            f"{step} was not compiled.",
            f"{plan.lib_dir} lacks libllama or libllama-common, or {plan.llama_source} its tests.",
            "Let hottune build llama.cpp: leave --llama-bin away.",
        )
    library = next(path for path in build.glob("libggml-hot.*") if path.suffix in (".so", ".dylib"))
    argv: list[object] = [build / "test-models", library, plan.lib_dir]
    argv += [build / "make-model", build / "models", "--full", *(["--gpu"] if on_gpu else [])]
    log = build.with_name(f"{build.name}-matrix.log")
    log.unlink(missing_ok=True)
    require_success(run_step(argv, log=log, on_line=on_line), step=step, log=log)


def _build_tests(
    plan: DevicePlan, *, jobs: int, progress: Progress, lib_dir: Path, sanitize: str = ""
) -> Path:
    build = plan.folder.with_name("-".join(["device-tests", plan.key, *sanitize.split(",")]).rstrip("-"))
    log = build.with_suffix(".log")
    log.unlink(missing_ok=True)
    step = "Building the device's tests"
    progress.start(step, None, "steps")
    configure(build, plan, log=log, lib_dir=lib_dir, tests=True, sanitize=sanitize)
    run_ninja(find_tool("ninja"), build, (), jobs=jobs, log=log, step=step, progress=progress)
    progress.finish()
    return build


def _build_sanitized_ggml(plan: DevicePlan, sanitize: str, *, jobs: int, progress: Progress) -> Path:
    """Compile ggml-base, ggml and ggml-cpu with sanitizers and return the folder of the libraries.

    It lies beside the llama.cpp build, whose name stands for source and compiler, and so outlives changes of
    the device; whatever else may have changed, CMake and Ninja see themselves.
    """
    build = plan.folder.with_name("-".join(["ggml", *sanitize.split(",")]))
    log = build.with_suffix(".log")
    log.unlink(missing_ok=True)
    step = "Building ggml with sanitizers"
    progress.start(step, None, "steps")
    wrapper = vendor_dir() / "ggml-hot" / "tests" / "sanitized-ggml"
    argv = cmake_command(wrapper, build)
    argv += [f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}", f"-DGGML_HOT_LLAMA_SOURCE={plan.llama_source}"]
    argv += [f"-DGGML_HOT_SANITIZE={sanitize}", *(f"-D{option}" for option in host_options(plan.compiler))]
    require_success(run_step(argv, log=log, env=plan.compiler.environment()), step=step, log=log)
    done = run_ninja(find_tool("ninja"), build, (), jobs=jobs, log=log, step=step, progress=progress)
    progress.finish(f"{done} steps" if done else "")
    return build / "bin"
