"""What every command shares: the console, progress, JSON output, folders, errors to exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from hottune import progress as progress_protocol
from hottune.errors import HottuneError, NoSpaceError
from hottune.progress import StudyState
from hottune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from hottune.cli.live import StudyView

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
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        show_error(NoSpaceError("Nothing more can be written: the disk is full.", str(error), "Make room."))
        raise typer.Exit(NoSpaceError.exit_code) from error


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
    print_line(out, Text.assemble(("Error: ", "bold red"), error.what))
    if error.why:
        print_line(out, Text(f"Why: {error.why}"))
    if error.next_step:
        print_line(out, Text(f"Next: {error.next_step}"))


def print_line(out: Console, line: Text) -> None:
    """Print a line that a program may read: cut between words on a terminal, never within one; else whole.

    So a path that is longer than the terminal can still be copied. Lines that go on are indented.
    """
    if not is_live(out):
        out.print(line, soft_wrap=True)
        return
    text = line.plain
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    pieces = textwrap.wrap(
        text, max(20, out.width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    at = 0
    for piece in pieces:
        words = piece if at == 0 else piece[len(indent) :]
        at = text.index(words, at)
        shown = line[at : at + len(words)]
        out.print(Text(indent) + shown if at else shown, soft_wrap=True)
        at += len(words)


def is_live(out: Console) -> bool:
    """Tell whether lines can be drawn again here: a terminal that is not dumb, whatever its colours."""
    return out.is_interactive and out.file.isatty()


def make_progress(quiet: bool = False) -> progress_protocol.Progress:
    """Return the progress sink for a command: nothing when quiet, otherwise bar or plain lines."""
    return progress_protocol.NoProgress() if quiet else RichProgress()


def close(progress: progress_protocol.Progress) -> None:
    """Remove a bar that an error or Ctrl-C left on the screen."""
    if isinstance(progress, RichProgress):
        progress.close()


class RichProgress:
    """`hottune.progress.Progress` on the console: a bar or live view on a terminal, else plain lines.

    Plain lines come every 5 s, or after 2 s when 5 % more are done; never right after another line.

    Args:
        out: where to; None = standard error.
        live: draw lines again and again; None = where that is possible (see `is_live`).
    """

    def __init__(self, out: Console | None = None, live: bool | None = None) -> None:
        self._out = out or console()
        self._live = is_live(self._out) if live is None else live
        self._bar: Progress | None = None
        self._study: StudyView | None = None
        self._shown: tuple[int, int, str] | None = None
        self._closed = False
        self._task_id = TaskID(0)
        self._task = ""
        self._unit = ""
        self._total: float | None = None
        self._started = 0.0
        self._said_at = 0.0
        self._said_share = 0.0

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        """Begin a named task; an unfinished one before it is ended."""
        self._begin(task, total, unit)
        if self._live:
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

    def show(self, state: StudyState) -> None:
        """Draw a study's state on a terminal; elsewhere say what changed, no oftener than `update` does."""
        if self._closed:
            return
        if self._live:
            if self._study is None or state.stage != self._task:
                from hottune.cli.live import StudyView  # with the words of reports: not for every command

                self._begin(state.stage, state.total, "servers")
                self._study = StudyView(self._out)
            self._study.show(state)
            return
        if state.stage != self._task:
            self.start(state.stage, state.total, "servers")
            self._shown = None
        changing = (
            state.done,
            state.total,
            state.doing,
        )  # not VRAM and hits, which change all the time
        if changing != self._shown:
            self._shown = changing
            self.update(state.done, state.total, state.doing)

    def finish(self, note: str = "") -> None:
        """End the current task and leave one line with its duration."""
        self._stop()
        if not self._task:
            return
        took = format_seconds(time.monotonic() - self._started)
        print_line(self._out, Text(f"{self._task}: {note or 'done'} ({took})"))
        self._task = ""

    def say(self, line: str) -> None:
        """Show one line that stays, above a running bar."""
        self._said_at = time.monotonic()
        print_line(self._out, Text(line))

    def close(self) -> None:
        """Remove what is still drawn (after an error or Ctrl-C); nothing is drawn any more."""
        self._closed = True
        self._stop()

    def _begin(self, task: str, total: float | None, unit: str) -> None:
        self._stop()
        self._task, self._unit, self._total = task, unit, total
        self._started = self._said_at = time.monotonic()
        self._said_share = 0.0

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._study is not None:
            self._study.stop()
            self._study = None

    def _amount(self, done: float) -> str:
        if self._unit == "bytes":
            return f"{format_bytes(done)}" + (f"/{format_bytes(self._total)}" if self._total else "")
        number = f"{done:.0f}" + (f"/{self._total:.0f}" if self._total else "")
        return f"{number} {self._unit}".rstrip()
