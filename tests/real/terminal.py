"""Runs the `hottune` command in a pseudo-terminal and keeps what a person would see on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte
from hottune_command import ROOT

from hottune.cli.common import cache_dir


class Terminal:
    """A process whose standard input, output and error are one terminal of a given size."""

    def __init__(self, folder: Path, *arguments: str, columns: int = 100, rows: int = 30, **environment: str):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        dropped = ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        inherited = {name: value for name, value in os.environ.items() if name not in dropped}
        own = {"HOTTUNE_CACHE": str(cache_dir()), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        self._master = master
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hottune.cli.app", *arguments],
            cwd=folder,
            env=inherited | own | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.written = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=2000)
        self._stream = pyte.ByteStream(self.screen)

    @property
    def shown(self) -> list[str]:
        """What is on the screen now, without empty lines."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def scrolled(self) -> list[str]:
        """What has left the screen at the top, and what is on it."""
        columns = range(self.screen.columns)
        above = ["".join(line[x].data for x in columns).rstrip() for line in self.screen.history.top]
        return above + [line.rstrip() for line in self.screen.display]

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait(self, done: Callable[[list[str]], bool], seconds: float = 120) -> list[str]:
        """Wait until the screen looks as asked for, and return its lines."""
        deadline = time.monotonic() + seconds
        while not done(self.shown):
            assert time.monotonic() < deadline, "\n".join(self.scrolled)
            assert self._read(), "it ended first:\n" + "\n".join(self.scrolled)
        return self.shown

    def end(self, seconds: float = 200) -> int:
        """Wait for the end and return the exit code."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, "\n".join(self.scrolled)
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        """Take over what was written meanwhile; tell whether there may be more."""
        if not select.select([self._master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            return False
        self.written += data
        self._stream.feed(data)
        return bool(data)
