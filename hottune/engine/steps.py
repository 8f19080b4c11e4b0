"""Run one step of a build: a child process with a complete log, a live callback, and a certain end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from hottune.errors import BuildFailedError, NoSpaceError

NINJA_STATUS = "[%f/%t] "
_NINJA_LINE = re.compile(r"\[(\d+)/(\d+)\] (.*)")
_ERROR_LINE = re.compile(
    r"\berror[ :]|CMake Error|undefined reference|No space left|out of memory|Killed|cannot find -l|\*\*\*",
    re.IGNORECASE,
)
_SHOWN_LINES = 8
_STOP_S = 8.0


def run_step(
    argv: Sequence[object],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run a command to its end and return its exit code; its output is appended to `log`.

    The child leads its own process group and reads nothing. Whatever interrupts the wait (Ctrl-C, SIGTERM, a
    failing callback) ends the child and all its descendants first.

    Args:
        argv: command, each word a string or a path; the first is a path or a name on PATH.
        log: file that receives the command line and everything it prints.
        env: variables added to this process's own.
        cwd: folder to run in.
        on_line: called with every line of output, without its line end.

    Raises:
        FileNotFoundError: no such program.
    """
    words = [str(word) for word in argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {' '.join(words)}\n")
        out.flush()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            assert process.stdout is not None  # asked for above
            for line in process.stdout:
                out.write(line)
                out.flush()
                if on_line:
                    on_line(line.rstrip("\r\n"))
            return process.wait()
        finally:
            if process.poll() is None:
                stop_tree(process)


def stop_tree(process: subprocess.Popen[str]) -> None:
    """End a process and all its descendants for certain.

    Ninja puts every compiler into a process group of its own and forwards only an interrupt that it lives to
    see: so it is asked first, and what remains is killed one by one.
    """
    try:
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    try:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=_STOP_S)
    except (ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
        pass  # gone already, too slow, or the user pressed Ctrl-C again: kill
    for member in family:
        try:
            member.kill()  # psutil knows a process by its start time too: never a stranger with the same id
        except psutil.NoSuchProcess:
            continue
    process.wait()


def parse_ninja(line: str) -> tuple[int, int, str] | None:
    """Return steps done, steps in all and what was done, from a Ninja status line; None for other lines."""
    match = _NINJA_LINE.match(line)
    return (int(match[1]), int(match[2]), match[3]) if match else None


def error_lines(log_text: str) -> list[str]:
    """Return the lines of a build's output that most likely say why it failed: the last errors in it."""
    lines = [line.rstrip() for line in log_text.splitlines() if line.strip()]
    hits = [number for number, line in enumerate(lines) if _ERROR_LINE.search(line)]
    if not hits:
        return lines[-_SHOWN_LINES:]
    # CMake puts the reason on the lines after "CMake Error at ...", compilers on the line itself.
    near = sorted(
        {number + i for number in hits for i in (range(4) if "CMake Error" in lines[number] else (0,))}
    )
    return [lines[number] for number in near if number < len(lines)][-_SHOWN_LINES:]


def require_success(code: int, *, step: str, log: Path) -> None:
    """Check a step's exit code.

    Raises:
        NoSpaceError: the log says that the disk is full.
        BuildFailedError: any other failure; the message shows the last errors and names the log.
    """
    if code == 0:
        return
    text = _last_step(log)
    if "No space left on device" in text:
        raise NoSpaceError(
            f"The disk of {log.parent} filled up: {step} stopped.",
            next_step="Free some space, or point HOTTUNE_CACHE at a larger disk; running again resumes.",
        )
    shown = "\n  ".join(error_lines(text))
    killed = "Killed" in text or "out of memory" in text.lower()
    raise BuildFailedError(
        f"{step} failed with exit code {code}:\n  {shown}\n",
        why="Probably out of memory while compiling." if killed else "",
        next_step=f"The whole log is {log}. "
        + ("Try --jobs 1." if killed else "Running again resumes where it stopped."),
    )


def _last_step(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    return text[max(text.rfind("\n$ "), 0) :]
