"""From an engine file to a server that runs: cloned, built, and kept in the cache as llama.cpp's builds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from hottune.engine import llama, sources
from hottune.engine.executable import build_label, require_version
from hottune.engine.facts import Backend, OtherEngine
from hottune.engine.forks.command import Fork
from hottune.engine.forks.file import EngineFile
from hottune.engine.lock import only_one
from hottune.engine.sources import LlamaSource
from hottune.engine.space import full_disk_as_error, require_space
from hottune.engine.toolchain import Compiler, default_jobs, find_compiler, find_gpu_compiler, gpu_present
from hottune.errors import SourceInvalidError
from hottune.progress import Progress

BUILD_BYTES = 2 * 1024**3
_RECORD = "other-engine.json"
#: Where the program may lie below a folder that is handed in.
_PLACES = ("llama-server", "bin/llama-server", "build/bin/llama-server")


def refusal(file: EngineFile, *, backend: Backend, virtual: bool, architecture: str) -> str:
    """Say why a fork cannot be an arm here; '' when it can.

    Args:
        file: of the engine.
        backend: GPU back-end of the arms that it stands beside.
        virtual: whether the GPU is hottune's virtual one.
        architecture: of the model.
    """
    known = file.supports.architectures
    if known and architecture not in known:
        return f"{file.name} serves {', '.join(known)} models, not {architecture}"
    if virtual and not file.supports.plug_in:
        return f"hottune's virtual GPU cannot be loaded into {file.name}: it needs a real GPU"
    if backend not in file.build.backends:
        return f"{file.name} is built for {', '.join(file.build.backends)}, not for {backend}"
    return ""


def refused(file: EngineFile, backend: Backend, why: str) -> Fork:
    """Return a fork that is not built, with the reason."""
    return Fork(file, _facts(file, backend, refused=why))


def find_fork(file: EngineFile, backend: Backend, *, cache_dir: Path, given: Path | None = None) -> Fork:
    """Return the fork as it is: handed in, built, or not yet built. Uses no network and compiles nothing."""
    if given is not None:
        return _prebuilt(file, backend, given)
    source = sources.cloned(_spec(file), cache_dir)
    found = source and _finished(file, backend, source, find_compiler(), cache_dir)
    return found or Fork(file, _facts(file, backend))


def build_fork(
    file: EngineFile, backend: Backend, *, cache_dir: Path, progress: Progress, given: Path | None = None
) -> Fork:
    """Return the fork's build, doing only what is not done yet; an interrupted build goes on.

    Args:
        file: of the engine.
        backend: GPU back-end to build for.
        cache_dir: hottune's cache folder; sources and builds stay in it.
        progress: shows cloning, CMake and Ninja.
        given: a server that is already built, or the folder that it lies in.

    Raises:
        SourceInvalidError: the repository cannot be cloned, or `given` does not lead to a server that runs.
        NoCompilerError, NoSpaceError, BuildFailedError: as for llama.cpp itself.
    """
    if given is not None:
        return _prebuilt(file, backend, given)
    compiler = find_compiler()
    source = sources.provide_cloned(_spec(file), cache_dir, progress)
    if finished := _finished(file, backend, source, compiler, cache_dir):
        return finished
    options = fork_options(file, backend)
    folder = _folder(file, backend, source, compiler, cache_dir)
    with (
        only_one(folder.with_suffix(".lock"), progress, purpose=f"building {file.name}"),
        full_disk_as_error(cache_dir, "the build"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        if llama.finished_build(folder, source, file.build.server) is None:
            require_space(cache_dir, BUILD_BYTES, f"building {file.name}")
            llama.compile_llama(
                folder,
                source,
                compiler,
                options,
                jobs=default_jobs(),
                progress=progress,
                name=file.name,
                targets=file.build.targets,
                server=file.build.server,
            )
        done = _finished(file, backend, source, compiler, cache_dir)
        assert done is not None  # compiled just now
        (folder / _RECORD).write_text(done.facts.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return done


def fork_options(file: EngineFile, backend: Backend) -> tuple[str, ...]:
    """Return every `NAME=VALUE` that a fork is configured with; its engine file's come last and win."""
    merged = {"CMAKE_BUILD_TYPE": "Release"}
    if backend is Backend.CUDA:
        if gpu_present(backend):
            merged["CMAKE_CUDA_ARCHITECTURES"] = "native"
        if compiler := find_gpu_compiler(backend):
            merged["CMAKE_CUDA_COMPILER"] = str(compiler)
    for text in (*file.build.options, *file.build.backends.get(backend, ())):
        name, _, value = text.removeprefix("-D").partition("=")
        merged[name] = value
    return tuple(f"{name}={value}" for name, value in merged.items())


def _spec(file: EngineFile) -> str:
    return f"{file.git}@{file.ref}"


def _key(file: EngineFile, backend: Backend, source: LlamaSource, compiler: Compiler) -> str:
    made = llama.key_parts(backend, compiler, fork_options(file, backend))
    parts = [file.git, source.identity, list(file.build.targets), file.build.server, *made]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _folder(
    file: EngineFile, backend: Backend, source: LlamaSource, compiler: Compiler, cache_dir: Path
) -> Path:
    return cache_dir / "builds" / f"{file.name}-{backend}-{_key(file, backend, source, compiler)}"


def _finished(
    file: EngineFile, backend: Backend, source: LlamaSource, compiler: Compiler, cache_dir: Path
) -> Fork | None:
    folder = _folder(file, backend, source, compiler, cache_dir)
    label = llama.finished_build(folder, source, file.build.server)
    if label is None:
        return None
    facts = _facts(
        file,
        backend,
        commit=source.identity,
        llama_server=folder / "build" / file.build.server,
        label=label,
        options=fork_options(file, backend),
        compiler=compiler.version,
        key=_key(file, backend, source, compiler),
    )
    return Fork(file, facts)


def _prebuilt(file: EngineFile, backend: Backend, given: Path) -> Fork:
    given = given.expanduser().resolve()
    places = [given, *(given / place for place in (file.build.server, *_PLACES))]
    server = next((place for place in places if place.is_file()), None)
    if server is None:
        raise SourceInvalidError(
            f"--engine-bin {file.name}: there is no llama-server at {given}.",
            next_step="Name the program, or the build folder that it lies in.",
        )
    version = require_version(server, f"--engine-bin {file.name}")
    stat = server.stat()
    identity = [str(server), stat.st_size, stat.st_mtime_ns]
    facts = _facts(
        file,
        backend,
        commit="" if version[1] == "unknown" else version[1],
        llama_server=server,
        label=build_label(version),
        prebuilt=True,
        key=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12],
    )
    return Fork(file, facts)


def _facts(file: EngineFile, backend: Backend, **more: object) -> OtherEngine:
    said = {name: getattr(file, name) for name in ("name", "git", "ref", "homepage", "license", "note")}
    facts: Mapping[str, object] = {**said, "backend": backend, "commit": "", **more}
    return OtherEngine.model_validate(facts)
