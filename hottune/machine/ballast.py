"""The ballast: what a larger card has above the ceiling is held by a helper process while hottune measures.

llama-server, `--fit` and the driver then really see a card with only the ceiling free. It copies a small
card's capacity, not its bandwidth, and reports say so.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

import hottune
from hottune.errors import BallastError
from hottune.machine.cuda_driver import driver_is_here
from hottune.machine.facts import Gpu

#: Less than this above the ceiling, MiB, is not worth a ballast: its own CUDA context takes half of it.
LEAST_MIB = 1024.0
#: Seconds for the driver to start (a card without persistence mode takes some) and to hand out the memory.
FILL_LIMIT_S = 120.0
_STOP_LIMIT_S = 10.0
_NO_BALLAST = "Close the other programs, or use --no-ballast: the ceiling then limits the server alone."

#: Starts the helper from this very package, also where another one lies in the current folder (`-P`).
_START = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from hottune.machine.ballast_holder import main; raise SystemExit(main())"
)
_ROOT = str(Path(hottune.__file__).parent.parent)

#: The kernel ties the holder's life to the thread that starts it, so that one lives as long as we do.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ballast")


class Ballast(BaseModel):
    """What was held while everything was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    held_mib: float = Field(description="VRAM that the helper process held, its CUDA context included, MiB")
    free_mib: float = Field(description="VRAM that was then free on the card, MiB")


class Holder:
    """The helper process, as `held` started it."""

    def __init__(self, process: subprocess.Popen[bytes], facts: Ballast) -> None:
        self._process = process
        self.pid = process.pid
        self.facts = facts

    def require(self) -> None:
        """Raise BallastError when the helper process is gone, and the ceiling with it."""
        if self._process.poll() is not None:
            raise BallastError(
                "The ballast is gone: its helper process ended "
                f"(exit status {self._process.returncode}) while hottune measured.",
                "Somebody ended it, or memory ran out.",
                "Run again; what was measured so far is kept.",
            )


def why_not(gpu: Gpu, ceiling_mib: float) -> str:
    """Return why no ballast is possible or useful on this card, or "" when one is."""
    if gpu.virtual:
        return "the virtual GPU has just the ceiling's size"
    if not gpu.uuid:
        return "the card's memory cannot be read (no NVML)"
    if gpu.vram_free_mib - ceiling_mib < LEAST_MIB:
        return f"less than {LEAST_MIB:.0f} MiB are free above the ceiling"
    return "" if driver_is_here() else "the CUDA driver library is not here"


@contextmanager
def held(gpu: Gpu, ceiling_mib: float, *, command: Sequence[str] = ()) -> Iterator[Holder]:
    """Hold what is free on the card above the ceiling until the block ends, however it ends.

    Args:
        gpu: the card.
        ceiling_mib: what stays free, MiB.
        command: program and first arguments of the helper process; () = `ballast_holder`. For tests.

    Raises:
        BallastError: other programs use the card, or the driver refuses.
    """
    argv = [
        *(command or (sys.executable, "-P", "-c", _START, _ROOT)),
        *("--gpu", str(gpu.index), "--uuid", gpu.uuid),
        *("--leave-mib", str(ceiling_mib), "--parent", str(os.getpid())),
    ]
    # A list of visible devices may hide this card, which is chosen by NVML's number.
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    process = _SPAWNER.submit(_start, argv, env).result()
    try:
        yield Holder(process, _facts(process, gpu))
    finally:
        _stop(process)


def _start(argv: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.PIPE,  # its end is what ends the helper
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C of the terminal reaches us alone
    )


def _facts(process: subprocess.Popen[bytes], gpu: Gpu) -> Ballast:
    """Wait for the helper's one line.

    Raises:
        BallastError: it refuses, or says nothing in time.
    """
    assert process.stdout is not None
    line = _line(process.stdout, FILL_LIMIT_S)
    if line is None:
        raise BallastError(
            f"The ballast on {gpu.name} could not be taken in {FILL_LIMIT_S:.0f} s.",
            "The driver did not answer in time.",
            "Run again, or use --no-ballast.",
        )
    try:
        said = json.loads(line)
        if "refused" in said:
            raise BallastError(f"No ballast on {gpu.name}: {said['refused']}.", "", _NO_BALLAST)
        return Ballast.model_validate(said)
    except ValueError as error:  # no JSON: it died of something that it did not foresee
        process.kill()
        said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
        raise BallastError(
            f"The helper process that holds the ballast on {gpu.name} failed.",
            said[-400:] or f"exit status {process.wait()}",
            "Use --no-ballast.",
        ) from error


def _line(stream: IO[bytes], limit_s: float) -> bytes | None:
    """Return the first line, or what there was before the stream ended; None when the time is over."""
    deadline, got = time.monotonic() + limit_s, b""
    while not got.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(stream.fileno(), 65536)
        if not piece:
            break
        got += piece
    return got


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the helper: gently by its input's end, then for certain."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
