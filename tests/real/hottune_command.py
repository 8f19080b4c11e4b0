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


class Started:
    """A running `hottune`; what it says goes to files, so that no full pipe can hold it up."""

    def __init__(self, folder: Path, arguments: tuple[str, ...]) -> None:
        number = len(list(folder.glob("said-*.err")))
        self._out, self._err = folder / f"said-{number}.out", folder / f"said-{number}.err"
        inherited = {name: value for name, value in os.environ.items() if name != "CI"}
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hottune.cli.app", *arguments],
                cwd=folder,
                env={**inherited, "HOTTUNE_CACHE": str(cache_dir()), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        self.pid = self.process.pid

    @property
    def said(self) -> str:
        """Everything on standard error so far."""
        return self._err.read_text()

    def wait_for_lines(self, start: str, count: int, seconds: float = 120) -> None:
        """Wait until so many lines (indentation aside) start with a text, and a server runs again."""
        deadline = time.monotonic() + seconds
        while sum(line.lstrip().startswith(start) for line in self.said.splitlines()) < count:
            assert self.process.poll() is None, f"it ended too early:\n{self.said}"
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.said}"
            time.sleep(0.05)
        wait_for_servers(self.pid)

    def end(self, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for the end; a process that does not end is killed and fails the test."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds} s:\n{self.said}") from None
        finally:
            self.kill()
        return subprocess.CompletedProcess(self.process.args, code, self._out.read_text(), self.said)

    def kill(self) -> None:
        """Kill -9: it can do nothing about it."""
        self.process.kill()
        self.process.wait()


@dataclass
class Command:
    """`hottune` in one folder, where its studies and reports go."""

    folder: Path

    def start(self, *arguments: str) -> Started:
        return Started(self.folder, arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.start(*arguments).end()


def small_study(folder: Path, name: str) -> Command:
    """Run a small study of real servers in a folder, to its report."""
    require_engine()
    made = Command(folder)
    small = ("--scale", "0.1", "--trials", "1", "--replicates", "1", "--top", "1", "--study", name)
    ended = made.run("run", "demo", "--backend", "cpu", *small, "--json")
    assert ended.returncode == 0, ended.stderr
    return made


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
