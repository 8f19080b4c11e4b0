"""From "which llama.cpp do you want" to an EngineBuild: one path for every source of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hottune.engine import device, device_tests, executable, llama, prebuilt, sources
from hottune.engine.device import DevicePlan
from hottune.engine.facts import Backend, EngineBuild
from hottune.engine.lock import only_one
from hottune.engine.pin import Pin, load_pin
from hottune.engine.sources import LlamaSource
from hottune.engine.space import full_disk_as_error, require_space
from hottune.engine.toolchain import Compiler, choose_backend, default_jobs, find_compiler
from hottune.errors import ApiMismatchError, BackendUnavailableError, BadSettingError, NoCompilerError
from hottune.progress import NoProgress, Progress

#: What source and build take together, with room to spare (a CPU build: 0.3 GiB; CUDA: about 1.5).
BUILD_BYTES = 2 * 1024**3
_RECORD = "engine.json"


class BuildOptions(BaseModel):
    """Which llama.cpp to build or use. At most one of `source`, `git`, `llama_bin` and `sdist`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend | None = Field(default=None, description="GPU back-end; None = by what is found")
    source: Path | None = Field(default=None, description="a llama.cpp checkout to build")
    git: str | None = Field(default=None, description="URL[@ref] to clone and build")
    llama_bin: Path | None = Field(default=None, description="folder of an already built llama.cpp")
    headers: Path | None = Field(default=None, description="the source `llama_bin` was built from")
    sdist: Path | None = Field(default=None, description="the pinned source archive, already downloaded")
    jobs: int | None = Field(default=None, ge=1, description="compilers at once; None = by cores and memory")
    cmake_options: tuple[str, ...] = Field(default=(), description="more CMake options, NAME=VALUE")


@dataclass(frozen=True)
class _Plan:
    """Everything that is settled before anything is compiled."""

    source: LlamaSource
    compiler: Compiler
    backend: Backend
    options: tuple[str, ...]  # of llama.cpp's CMake; none for one that is already built
    folder: Path  # build folder in the cache
    key: str
    found: prebuilt.Prebuilt | None  # an already built llama.cpp
    device: DevicePlan


def find_engine(options: BuildOptions, *, cache_dir: Path) -> EngineBuild | None:
    """Return the finished build for these options, or None. Uses no network and compiles nothing.

    Raises:
        SourceInvalidError, ApiMismatchError, BadSettingError: the options lead nowhere.
    """
    pin = load_pin()
    try:
        compiler = find_compiler()
    except NoCompilerError:
        return None  # part of the key: without one, nobody can tell which build is meant
    source = _source_in_cache(options, pin, cache_dir)
    if source is None:
        return None
    return _finished(_plan(options, source, compiler, pin, cache_dir)[0], pin)


def build_engine(options: BuildOptions, *, cache_dir: Path, progress: Progress | None = None) -> EngineBuild:
    """Return the build for these options, doing only what is not done yet.

    An interrupted build goes on where it stopped. Two processes that want the same build wait for each other.

    Args:
        options: which llama.cpp.
        cache_dir: hottune's cache folder; sources and builds stay in it.
        progress: shows download, CMake and Ninja.

    Raises:
        HottuneError: one of the errors 20-27 (hottune/errors.py), BackendUnavailableError, BadSettingError.
    """
    progress = progress or NoProgress()
    pin = load_pin()
    compiler = find_compiler()
    source = _provide_source(options, pin, cache_dir, progress)
    plan, remark = _plan(options, source, compiler, pin, cache_dir)
    if finished := _finished(plan, pin):
        return finished
    if remark:
        progress.say(remark)
    jobs = options.jobs or default_jobs()
    with (
        only_one(plan.folder.with_suffix(".lock"), progress, purpose="building llama.cpp"),
        full_disk_as_error(cache_dir, "the build"),
    ):
        plan.folder.mkdir(parents=True, exist_ok=True)
        if plan.found is not None:
            prebuilt.link_folder(plan.found, plan.device.lib_dir)
        elif llama.finished_build(plan.folder, source) is None:
            sources.check_complete(source.folder)
            require_space(cache_dir, BUILD_BYTES, "building llama.cpp")
            llama.compile_llama(plan.folder, source, compiler, plan.options, jobs=jobs, progress=progress)
        if device.find_device(plan.device) is None:
            device.compile_device(plan.device, jobs=jobs, progress=progress)
        build = _finished(plan, pin)
        assert build is not None  # both parts are there now
        _require_device_loads(build, plan, pin)
        (plan.folder / _RECORD).write_text(build.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return build


def run_device_tests(
    options: BuildOptions, *, cache_dir: Path, progress: Progress, sanitize: str = ""
) -> str:
    """Build what is missing, then compile and run the device's own C++ tests; return ctest's output.

    Raises:
        BuildFailedError: a test fails or does not compile. And all that `build_engine` raises.
    """
    with _planned(options, cache_dir, progress) as plan:
        jobs = options.jobs or default_jobs()
        return device_tests.run_tests(plan.device, jobs=jobs, progress=progress, sanitize=sanitize)


def run_device_matrix(
    options: BuildOptions,
    *,
    cache_dir: Path,
    progress: Progress,
    on_gpu: bool,
    on_line: Callable[[str], None],
) -> None:
    """Build what is missing, then try the device on a model of every architecture; `on_line` gets the table.

    Raises:
        BuildFailedError: a row fails, or the tests do not compile. And all that `build_engine` raises.
    """
    with _planned(options, cache_dir, progress) as plan:
        jobs = options.jobs or default_jobs()
        device_tests.run_matrix(plan.device, jobs=jobs, progress=progress, on_gpu=on_gpu, on_line=on_line)


@contextmanager
def _planned(options: BuildOptions, cache_dir: Path, progress: Progress) -> Iterator[_Plan]:
    """The finished build's plan, while no other process builds there."""
    build_engine(options, cache_dir=cache_dir, progress=progress)
    pin = load_pin()
    source = _provide_source(options, pin, cache_dir, progress)
    plan, _ = _plan(options, source, find_compiler(), pin, cache_dir)
    with only_one(plan.folder.with_suffix(".lock"), progress, purpose="building llama.cpp"):
        yield plan


def source_dir(options: BuildOptions, *, cache_dir: Path, progress: Progress | None = None) -> Path:
    """Return the folder of llama.cpp's source, fetched and unpacked when it is not there yet.

    For `llama_bin` it is the source of the headers. `models/ggml-vocab-*.gguf` lie in it.
    """
    return _provide_source(options, load_pin(), cache_dir, progress or NoProgress()).folder


def list_builds(cache_dir: Path) -> list[EngineBuild]:
    """Return the finished builds in the cache whose files are still there, newest first."""
    records = sorted(
        (cache_dir / "builds").glob(f"*/{_RECORD}"), key=lambda p: p.stat().st_mtime, reverse=True
    )
    builds = []
    for record in records:
        try:
            build = EngineBuild.model_validate_json(record.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            continue  # written by another version of hottune
        if build.llama_server.is_file() and build.device_library.is_file():
            builds.append(build)
    return builds


def _check_exclusive(options: BuildOptions) -> None:
    ways = {
        "--source": options.source,
        "--git": options.git,
        "--llama-bin": options.llama_bin,
        "--sdist": options.sdist,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1 and given != ["--llama-bin", "--sdist"]:
        raise BadSettingError(f"{' and '.join(given)} exclude each other.", next_step="Give one of them.")
    if options.headers is not None and options.llama_bin is None:
        raise BadSettingError(
            "--headers belongs to --llama-bin.", next_step="To build a checkout, use --source."
        )
    if options.llama_bin is not None and options.cmake_options:
        raise BadSettingError(
            "--cmake-option has no effect with --llama-bin.", next_step="That llama.cpp is already built."
        )


def _source_in_cache(options: BuildOptions, pin: Pin, cache_dir: Path) -> LlamaSource | None:
    _check_exclusive(options)
    folder = options.headers if options.llama_bin else options.source
    if folder is not None:
        source: LlamaSource | None = sources.checkout(folder)
    elif options.git is not None:
        source = sources.cloned(options.git, cache_dir)
    else:
        source = sources.pinned(pin, cache_dir)
    if source is not None:
        sources.check_api(source.folder, pin)
    return source


def _provide_source(options: BuildOptions, pin: Pin, cache_dir: Path, progress: Progress) -> LlamaSource:
    source = _source_in_cache(options, pin, cache_dir)
    if source is not None:
        return source
    if options.llama_bin is not None:
        _require_pinned_build(prebuilt.find_prebuilt(options.llama_bin), pin)  # before a useless download
    if options.git is not None:
        source = sources.provide_cloned(options.git, cache_dir, progress)
    else:
        source = sources.provide_pinned(pin, cache_dir, options.sdist, progress)
    sources.check_api(source.folder, pin)
    return source


def _plan(
    options: BuildOptions, source: LlamaSource, compiler: Compiler, pin: Pin, cache_dir: Path
) -> tuple[_Plan, str]:
    """Settle back-end, CMake options and build folder; also return a remark for the user ("" for none)."""
    if options.llama_bin is not None:
        return _plan_prebuilt(options, options.llama_bin, source, compiler, pin, cache_dir), ""
    backend, remark = choose_backend(options.backend)
    cmake = llama.cmake_options(backend, compiler, source, options.cmake_options)
    parts = [source.place, *llama.key_parts(backend, compiler, cmake)]
    name = pin.build if source.place == pin.sha256 else "other"
    folder = cache_dir / "builds" / f"{name}-{backend}-{_hash(parts)}"
    key = _hash([*parts, source.identity])
    lib_dir = llama.bin_dir(folder)
    hot = device.plan_device(folder, key, llama_source=source.folder, lib_dir=lib_dir, compiler=compiler)
    return _Plan(source, compiler, backend, cmake, folder, key, None, hot), remark


def _plan_prebuilt(
    options: BuildOptions, llama_bin: Path, source: LlamaSource, compiler: Compiler, pin: Pin, cache_dir: Path
) -> _Plan:
    found = prebuilt.find_prebuilt(llama_bin)
    if options.headers is None:
        _require_pinned_build(found, pin)
    if options.backend not in (None, Backend.CPU, found.backend):
        raise BackendUnavailableError(
            f"The llama.cpp in {llama_bin} is built for {found.backend}, not for {options.backend}.",
            next_step="Leave --backend away, or use another build.",
        )
    facts = found.llama_server.stat()
    server = [str(found.llama_server), facts.st_size, facts.st_mtime_ns]
    key = _hash([*server, source.identity, compiler.version])
    folder = cache_dir / "builds" / f"prebuilt-{found.backend}-{key}"
    lib_dir = folder / "lib"
    hot = device.plan_device(folder, key, llama_source=source.folder, lib_dir=lib_dir, compiler=compiler)
    return _Plan(source, compiler, found.backend, (), folder, key, found, hot)


def _require_pinned_build(found: prebuilt.Prebuilt, pin: Pin) -> None:
    # ggml's back-end header is not installed with ggml, and a device needs that of the exact build.
    if found.build_number != pin.build_number:
        label = executable.build_label((found.build_number, found.commit))
        which = "of an unknown build" if label == "unknown" else f"llama.cpp {label}"
        raise ApiMismatchError(
            f"{found.llama_server} is {which}; hottune only has the headers of {pin.build}.",
            "A device must be compiled against the very source of the llama.cpp that loads it.",
            "Add --headers with the llama.cpp source folder it was built from.",
        )


def _finished(plan: _Plan, pin: Pin) -> EngineBuild | None:
    if plan.found:
        label: str | None = executable.build_label((plan.found.build_number, plan.found.commit))
    else:
        label = llama.finished_build(plan.folder, plan.source)
    library = device.find_device(plan.device)
    if label is None or library is None:
        return None
    bin_dir = llama.bin_dir(plan.folder)
    server = plan.found.llama_server if plan.found else bin_dir / "llama-server"
    fit_params = plan.found.llama_fit_params if plan.found else bin_dir / "llama-fit-params"
    return EngineBuild(
        llama_server=server,
        llama_fit_params=fit_params,
        device_library=library,
        backend=plan.backend,
        llama_build=label,
        source=str(server.parent) if plan.found else plan.source.name,
        patched=plan.source.patched,
        api_version=pin.api_version,
        compiler=plan.compiler.version,
        options=plan.options,
        key=plan.key,
    )


def _require_device_loads(build: EngineBuild, plan: _Plan, pin: Pin) -> None:
    """Let llama-server load the device once; only a llama.cpp that we did not build can fail at it."""
    if plan.found is None or executable.check_device(build.llama_server, build.device_library).loads:
        return
    device.discard_device(plan.device)
    raise ApiMismatchError(
        f"{build.llama_server} does not load a device compiled against {plan.source.folder}.",
        "Probably that is not the source this llama.cpp was built from.",
        f"Give the matching source with --headers, or leave --llama-bin away to build {pin.build}.",
    )


def _hash(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
