"""What every command shares: the console, progress, JSON output, folders, errors to exit codes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from hottune import progress as progress_protocol
from hottune.errors import HottuneError
from hottune.units import format_bytes, format_seconds

EXIT_INTERRUPTED = 130
PLAIN_SECONDS = 5.0
PLAIN_SHARE = 0.05
PLAIN_PAUSE_S = 2.0


@lru_cache(maxsize=1)
def console() -> Console:
    """Return the console for people: standard error, so that standard output stays clean for `--json`.

    Rich itself honours NO_COLOR and plain pipes.
    """
    return Console(stderr=True, highlight=False)


def cache_dir() -> Path:
    """Return hottune's cache folder: `HOTTUNE_CACHE`, else the user's cache folder. It is created."""
    chosen = os.environ.get("HOTTUNE_CACHE")
    if chosen:
        folder = Path(chosen).expanduser().absolute()
    else:
        import platformdirs

        folder = Path(platformdirs.user_cache_dir("hottune", appauthor=False))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def studies_dir() -> Path:
    """Return the folder where studies go by default: `./studies`. It is not created here."""
    return Path.cwd() / "studies"


def reports_dir() -> Path:
    """Return the folder where reports go by default: `./reports`. It is not created here."""
    return Path.cwd() / "reports"


def emit_json(value: object) -> None:
    """Print a pydantic model, or plain data that may contain some, as JSON on standard output."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value


@contextmanager
def handled(json_output: bool = False) -> Iterator[None]:
    """Turn fatal errors into their exit code with what, why and the next step; Ctrl-C into 130.

    Args:
        json_output: also print `{"error": {...}}` on standard output, for programs.
    """
    try:
        yield
    except HottuneError as error:
        show_error(error)
        if json_output:
            emit_json({"error": error_facts(error)})
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        console().print("Interrupted.", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def error_facts(error: HottuneError) -> dict[str, object]:
    """Return an error as plain data, for `--json`."""
    return {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "what": error.what,
        "why": error.why,
        "next_step": error.next_step,
    }


def show_error(error: HottuneError) -> None:
    """Print what happened, why, and what to do next."""
    out = console()
    out.print(Text.assemble(("Error: ", "bold red"), error.what), soft_wrap=True)
    if error.why:
        out.print(Text(f"Why: {error.why}"), soft_wrap=True)
    if error.next_step:
        out.print(Text(f"Next: {error.next_step}"), soft_wrap=True)


def make_progress(quiet: bool = False) -> progress_protocol.Progress:
    """Return the progress sink for a command: nothing when quiet, otherwise bar or plain lines."""
    return progress_protocol.NoProgress() if quiet else RichProgress()


class RichProgress:
    """`hottune.progress.Progress` on the console: a bar with an ETA on a terminal, plain lines elsewhere.

    Plain lines come every 5 s, or after 2 s when 5 % more are done; never right after another line.
    """

    def __init__(self, out: Console | None = None) -> None:
        self._out = out or console()
        self._bar: Progress | None = None
        self._task_id = TaskID(0)
        self._task = ""
        self._unit = ""
        self._total: float | None = None
        self._started = 0.0
        self._said_at = 0.0
        self._said_share = 0.0

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        """Begin a named task; an unfinished one before it is ended."""
        self._stop_bar()
        self._task, self._unit, self._total = task, unit, total
        self._started = self._said_at = time.monotonic()
        self._said_share = 0.0
        if self._out.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[amount]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=self._out,
                transient=True,
            )
            self._bar.start()
            self._task_id = self._bar.add_task(task, total=total, amount="", note="")
        else:
            self._out.print(Text(f"{task} ..."), soft_wrap=True)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how much of the current task is done (absolute)."""
        if total is not None:
            self._total = total
        amount = self._amount(done)
        if self._bar is not None:
            self._bar.update(self._task_id, completed=done, total=self._total, amount=amount, note=note[:60])
            return
        now = time.monotonic()
        share = done / self._total if self._total else 0.0
        waited = now - self._said_at
        if waited < PLAIN_PAUSE_S or (waited < PLAIN_SECONDS and share - self._said_share < PLAIN_SHARE):
            return
        self._said_at, self._said_share = now, share
        eta = f", ETA {format_seconds((now - self._started) * (1 - share) / share)}" if 0 < share < 1 else ""
        self._out.print(
            Text(f"{self._task}: {amount}{eta}{f'  {note}' if note else ''}".rstrip()), soft_wrap=True
        )

    def finish(self, note: str = "") -> None:
        """End the current task and leave one line with its duration."""
        self._stop_bar()
        if not self._task:
            return
        took = format_seconds(time.monotonic() - self._started)
        self._out.print(Text(f"{self._task}: {note or 'done'} ({took})"), soft_wrap=True)
        self._task = ""

    def say(self, line: str) -> None:
        """Show one line that stays, above a running bar."""
        self._said_at = time.monotonic()
        self._out.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        """Remove a bar that still runs (after an error or Ctrl-C)."""
        self._stop_bar()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _amount(self, done: float) -> str:
        if self._unit == "bytes":
            return f"{format_bytes(done)}" + (f"/{format_bytes(self._total)}" if self._total else "")
        number = f"{done:.0f}" + (f"/{self._total:.0f}" if self._total else "")
        return f"{number} {self._unit}".rstrip()
