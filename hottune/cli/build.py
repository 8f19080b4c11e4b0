"""`hottune build`: llama.cpp and the hot-expert device, ready in the cache folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from hottune.cli.common import RichProgress, cache_dir, emit_json, handled
from hottune.engine.build import BuildOptions, build_engine, run_device_matrix, run_device_tests
from hottune.engine.facts import Backend, EngineBuild, OtherEngine
from hottune.engine.forks.build import build_fork
from hottune.engine.forks.file import load_engine_file
from hottune.engine.toolchain import choose_backend
from hottune.errors import BackendUnavailableError, BadSettingError


class _MatrixOn(StrEnum):
    """Where the caches of the device's matrix lie."""

    CPU = "cpu"  # and on virtual GPUs
    GPU = "gpu"


def build(
    backend: Annotated[
        Backend | None, typer.Option(help="GPU back-end. Default: by the GPU and tools found here.")
    ] = None,
    source: Annotated[Path | None, typer.Option(metavar="DIR", help="Build this llama.cpp checkout.")] = None,
    git: Annotated[
        str | None, typer.Option(metavar="URL[@REF]", help="Clone and build this repository.")
    ] = None,
    llama_bin: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Use the llama.cpp already built in this folder."),
    ] = None,
    headers: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --llama-bin: the source it was built from.")
    ] = None,
    sdist: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The pinned source archive, if you have it already.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Compilers at once. Default: by cores and memory."),
    ] = None,
    cmake_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="One more CMake option for llama.cpp; repeatable."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Build another engine: ik_llama, parmesan, or an engine file."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    device_tests: Annotated[bool, typer.Option("--device-tests", hidden=True)] = False,
    sanitize: Annotated[str, typer.Option("--sanitize", hidden=True)] = "",
    device_matrix: Annotated[_MatrixOn | None, typer.Option("--device-matrix", hidden=True)] = None,
) -> None:
    """Build llama.cpp and the hot-expert device into the cache folder, or say where they are already."""
    with handled(json_output):
        options = BuildOptions(
            backend=backend,
            source=source,
            git=git,
            llama_bin=llama_bin,
            headers=headers,
            sdist=sdist,
            jobs=jobs,
            cmake_options=tuple(cmake_option or ()),
        )
        progress = RichProgress()
        try:
            if device_tests:
                printed = run_device_tests(
                    options, cache_dir=cache_dir(), progress=progress, sanitize=sanitize
                )
                typer.echo(printed)
                return
            if device_matrix is not None:
                on_gpu = device_matrix is _MatrixOn.GPU
                run_device_matrix(
                    options, cache_dir=cache_dir(), progress=progress, on_gpu=on_gpu, on_line=typer.echo
                )
                return
            if engine is not None:
                other = _build_other(engine, options, progress)
                emit_json(other) if json_output else _show_other(other)
                return
            result = build_engine(options, cache_dir=cache_dir(), progress=progress)
        finally:
            progress.close()  # or an error would leave the bar and a hidden cursor behind
        if json_output:
            emit_json(result)
        else:
            _show(result)


def _build_other(engine: str, options: BuildOptions, progress: RichProgress) -> OtherEngine:
    """Build another engine for the back-end that is asked for, or found here.

    Raises:
        BadSettingError: options of hottune's own llama.cpp are given as well.
    """
    if options.model_dump(exclude={"backend", "jobs"}, exclude_defaults=True):
        raise BadSettingError(
            "Options for hottune's own llama.cpp do not go with --engine.",
            next_step="What another engine is built from, and how, stands in its engine file.",
        )
    file = load_engine_file(engine)
    backend, remark = choose_backend(options.backend)
    if remark:
        progress.say(remark)
    if backend not in file.build.backends:
        known = ", ".join(file.build.backends)
        raise BackendUnavailableError(
            f"{file.name} is built for {known}, not for {backend}.", next_step=f"Say --backend {known}."
        )
    return build_fork(file, backend, cache_dir=cache_dir(), progress=progress).facts


def _show_other(other: OtherEngine) -> None:
    rows = {
        other.name: f"{other.label}, {other.backend}, from {other.git} at {other.commit}",
        "llama-server": str(other.llama_server),
        "compiler": other.compiler,
        "options": " ".join(other.options),
        "license": other.license,
    }
    _rows(rows)


def _show(result: EngineBuild) -> None:
    changed = " (with changes)" if result.patched else ""
    by_hand = f"GGML_BACKEND_PATH={result.device_library} GGML_HOT_K=16 {result.llama_server} --cpu-moe ..."
    rows = {
        "llama.cpp": f"{result.llama_build}, {result.backend}, from {result.source}{changed}",
        "llama-server": str(result.llama_server),
        "device": str(result.device_library),
        "compiler": result.compiler,
        "by hand": by_hand,
    }
    _rows(rows)


def _rows(rows: dict[str, str]) -> None:
    out = Console(highlight=False)
    for name, text in rows.items():
        out.print(Text(f"{name:<14}{text}"), soft_wrap=True)  # unwrapped, so that paths can be copied
