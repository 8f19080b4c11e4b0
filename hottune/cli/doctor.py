"""`hottune doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.text import Text

import hottune
from hottune.cli.common import cache_dir, emit_json, handled
from hottune.engine.build import list_builds
from hottune.engine.executable import check_device
from hottune.engine.facts import Backend, EngineBuild
from hottune.engine.pin import load_pin
from hottune.engine.toolchain import choose_backend, find_compiler, find_gpu_compiler, find_tool, tool_version
from hottune.errors import HottuneError
from hottune.machine.facts import Machine
from hottune.machine.probe import probe_machine
from hottune.units import MIB, format_bytes


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ToolFacts(_Facts):
    """One program that building needs or can use."""

    name: str
    path: str = Field(default="", description="empty when it was not found")
    version: str = ""
    problem: str = Field(default="", description="what is wrong and what to do; empty when all is well")


class BuildFacts(_Facts):
    """One finished engine build, and whether its llama-server loads the device."""

    build: EngineBuild
    device_loads: bool
    output: str = Field(default="", description="what llama-server printed, when the device does not load")


class Checkup(_Facts):
    """Everything `hottune doctor --json` tells."""

    hottune: str
    python: str
    pinned_llama: str
    machine: Machine
    backend: Backend = Field(description="what `hottune build` would build here")
    backend_remark: str = ""
    tools: tuple[ToolFacts, ...]
    cache_dir: Path
    cache_bytes: int
    cache_free_bytes: int
    builds: tuple[BuildFacts, ...]
    problems: tuple[str, ...]


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check what hottune finds on this machine and what is missing to build and run."""
    with handled(json_output):
        findings, error = examine(cache_dir())
        if json_output:
            emit_json(findings)
        else:
            _show(findings)
    if error is not None:
        raise typer.Exit(error.exit_code)


def examine(cache: Path) -> tuple[Checkup, HottuneError | None]:
    """Look at everything; return the findings and the first error that would stop a build (None: none)."""
    errors: list[HottuneError] = []
    tools = [_compiler(errors), *(_tool(name, errors) for name in ("cmake", "ninja"))]
    tools += [_gpu_compiler(backend) for backend in (Backend.CUDA, Backend.HIP, Backend.VULKAN)]
    backend, remark = choose_backend(None)
    pin = load_pin()
    builds = tuple(_check(build) for build in list_builds(cache))
    broken = [
        f"The device does not load in {one.build.llama_server}." for one in builds if not one.device_loads
    ]
    findings = Checkup(
        hottune=hottune.__version__,
        python=platform.python_version(),
        pinned_llama=f"{pin.build} ({pin.package} {pin.version})",
        machine=probe_machine(),
        backend=backend,
        backend_remark=remark,
        tools=tuple(tools),
        cache_dir=cache,
        cache_bytes=_size(cache),
        cache_free_bytes=shutil.disk_usage(cache).free,
        builds=builds,
        problems=(*(str(error) for error in errors), *([remark] if remark else []), *broken),
    )
    return findings, (errors[0] if errors else None)


def _compiler(errors: list[HottuneError]) -> ToolFacts:
    try:
        compiler = find_compiler()
    except HottuneError as error:
        errors.append(error)
        return ToolFacts(name="C++ compiler", problem=str(error))
    return ToolFacts(name="C++ compiler", path=compiler.cxx, version=compiler.version)


def _tool(name: str, errors: list[HottuneError]) -> ToolFacts:
    try:
        path = find_tool(name)
    except HottuneError as error:
        errors.append(error)
        return ToolFacts(name=name, problem=str(error))
    return ToolFacts(name=name, path=str(path), version=tool_version(path))


def _gpu_compiler(backend: Backend) -> ToolFacts:
    path = find_gpu_compiler(backend)
    name = {Backend.CUDA: "CUDA (nvcc)", Backend.HIP: "HIP (hipcc)", Backend.VULKAN: "Vulkan (glslc)"}[
        backend
    ]
    return ToolFacts(name=name, path=str(path or ""), version=tool_version(path, "release") if path else "")


def _check(build: EngineBuild) -> BuildFacts:
    found = check_device(build.llama_server, build.device_library)
    return BuildFacts(
        build=build, device_loads=found.loads, output="" if found.loads else found.output.strip()
    )


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # removed while we looked
                total += (Path(root) / name).lstat().st_size
    return total


def _show(findings: Checkup) -> None:
    out = Console(highlight=False)
    for name, text in _rows(findings):
        out.print(
            Text.assemble(f"{name:<16}", text), soft_wrap=True
        )  # unwrapped, so that paths can be copied
    for problem in findings.problems:
        out.print(Text.assemble(("Problem: ", "bold red"), problem), soft_wrap=True)
    if not findings.problems:
        out.print("No problem found.", style="green")


def _rows(findings: Checkup) -> Iterator[tuple[str, str | Text]]:
    machine = findings.machine
    cpu = machine.cpu
    yield "hottune", f"{findings.hottune}, Python {findings.python}, {machine.system}"
    yield "processor", f"{cpu.name}, {cpu.physical_cores} cores, {' '.join(cpu.features)}"
    yield "memory", f"{_mib(machine.ram_total_mib)}, {_mib(machine.ram_available_mib)} available"
    for gpu in machine.gpus:
        facts = [gpu.name, _mib(gpu.vram_total_mib), f"{_mib(gpu.vram_free_mib)} free", gpu.pcie]
        facts.append(f"driver {gpu.driver}" if gpu.driver else "")
        yield f"GPU {gpu.index}", ", ".join(fact for fact in facts if fact)
    if not machine.gpus:
        yield "GPU", "none found: runs use the virtual GPU, which shows the tool, not a gain"
    for note in machine.notes:
        yield "note", note
    for tool in findings.tools:
        yield tool.name, _tool_text(tool)
    yield "back-end", f"{findings.backend} would be built; llama.cpp {findings.pinned_llama}"
    used, free = format_bytes(findings.cache_bytes), format_bytes(findings.cache_free_bytes)
    yield "cache", f"{findings.cache_dir}, {used} used, {free} free"
    for one in findings.builds:
        built = f"{one.build.llama_build} {one.build.backend}, {one.build.source}, "
        state = (
            Text("device loads", "green") if one.device_loads else Text("device does NOT load", "bold red")
        )
        yield "build", Text.assemble(built, str(one.build.llama_server.parent), ", ", state)
    if not findings.builds:
        yield "build", "none yet; `hottune build` makes one, and so does the first run"


def _mib(amount: float) -> str:
    return format_bytes(amount * MIB)


def _tool_text(tool: ToolFacts) -> Text:
    if tool.problem:
        return Text("missing", "bold red")
    return Text(f"{tool.version}  {tool.path}" if tool.path else "not found (only needed for such a GPU)")
