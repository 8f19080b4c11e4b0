"""Runs the `hottune` command as a user does: a process of its own in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, find_engine

ROOT = Path(__file__).parents[2]


def require_engine() -> None:
    if find_engine(BuildOptions(backend="cpu"), cache_dir=cache_dir()) is None:
        pytest.skip("no finished engine in the cache folder: run `hottune build`")


@dataclass
class Command:
    """`hottune` in one folder, where its studies and reports go."""

    folder: Path

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        inherited = {k: v for k, v in os.environ.items() if k != "CI"}
        return subprocess.Popen(
            [sys.executable, "-m", "hottune.cli.app", *arguments],
            cwd=self.folder,
            env={**inherited, "HOTTUNE_CACHE": str(cache_dir()), "PYTHONPATH": str(ROOT), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **env)
        try:
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def servers_of(pid: int) -> list[psutil.Process]:
    """Return the llama-servers that a process started."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if child.name().startswith("llama-server")]


def wait_for_servers(pid: int, seconds: float = 60) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = servers_of(pid)
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("no llama-server was started")


def gone_within(servers: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(servers, timeout=seconds)
    return not [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
