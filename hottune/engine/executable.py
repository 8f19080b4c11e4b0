"""Ask a llama-server what it is and what it sees. No model, no port: it prints and ends."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hottune.errors import SourceInvalidError

_VERSION = re.compile(r"version: \S+ \(build (\d+), commit (\S+?)\)|version: (\d+) \((\S+?)\)")


@dataclass(frozen=True)
class DeviceCheck:
    """Whether llama-server sees our devices, and what it printed."""

    hot: bool  # the hot-expert device
    virtual_gpu: bool
    output: str

    @property
    def loads(self) -> bool:
        """Tell whether both devices are there."""
        return self.hot and self.virtual_gpu


def check_device(llama_server: Path, library: Path) -> DeviceCheck:
    """Ask llama-server to list its devices with our library loaded (no model needed)."""
    env = {**os.environ, "GGML_BACKEND_PATH": str(library), "GGML_HOT_K": "4", "GGML_HOT_VGPU_MIB": "64"}
    output = _output([str(llama_server), "--list-devices"], env)
    return DeviceCheck(
        hot=re.search(r"^\s*HOT\d*\b", output, re.MULTILINE) is not None
        or "ggml_hot: device ready" in output,
        virtual_gpu=re.search(r"^\s*VGPU0\b", output, re.MULTILINE) is not None,
        output=output,
    )


def server_version(llama_server: Path) -> tuple[int, str] | None:
    """Return llama-server's build number and commit, or None when it does not run.

    The number is 0 where its build did not know it.
    """
    env = {name: value for name, value in os.environ.items() if name != "GGML_BACKEND_PATH"}
    match = _VERSION.search(_output([str(llama_server), "--version"], env))
    return (int(match[1] or match[3]), match[2] or match[4]) if match else None


def require_version(llama_server: Path, asked: str = "") -> tuple[int, str]:
    """Return what `server_version` does.

    Args:
        llama_server: the program.
        asked: the option that named it, as errors begin; "" = they name the program alone.

    Raises:
        SourceInvalidError: it does not run here.
    """
    version = server_version(llama_server)
    if version is None:
        raise SourceInvalidError(
            f"{asked}{': ' if asked else ''}{llama_server} does not run here.",
            next_step=f"Try it by hand: {llama_server} --version",
        )
    return version


def build_label(version: tuple[int, str] | None) -> str:
    """Return a build's short name: `b11434`, or its commit where it has no number."""
    number, commit = version or (0, "unknown")
    if number > 1:
        return f"b{number}"
    return "unknown" if commit == "unknown" else f"commit {commit}"


def _output(argv: list[str], env: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, errors="replace", timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]} does not run: {error}"
    return done.stdout + done.stderr
