"""A PostgreSQL server of its own for a test: Debian's, in a temporary folder, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


def programs() -> Path | None:
    """Return the folder with initdb and pg_ctl, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).parent if on_path else None


class Server:
    """Use it as a context: it is stopped, and its files removed, at the end."""

    def __init__(self, bin_folder: Path) -> None:
        self._bin = bin_folder
        self._folder = Path(tempfile.mkdtemp(prefix="hottune-postgresql-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as = {"user": UNPRIVILEGED, "group": "nogroup", "extra_groups": []}
            shutil.chown(self._folder, UNPRIVILEGED)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://hottune@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Server:
        self._call(
            "initdb", "--auth=trust", "--username=hottune", "--encoding=UTF8", "--locale=C", "--no-sync"
        )
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self._folder}"
        self._call("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As a power cut would: nothing is said to the clients, and the next start has to recover."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def restart(self) -> None:
        self.stop()
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        data = str(self._folder / "data")
        # Output to a file: the server inherits it, and a pipe would stay open as long as the server runs.
        with (self._folder / "said").open("a") as said:
            subprocess.run(
                [str(self._bin / program), "-D", data, *arguments],
                check=True,
                cwd=self._folder,
                stdout=said,
                stderr=said,
                timeout=60,
                **self._as,
            )
