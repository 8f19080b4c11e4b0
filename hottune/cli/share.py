"""`hottune share`: what of a result would leave this machine, and the redacted files. It sends nothing."""

from __future__ import annotations

import getpass
import json
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hottune.cli import common
from hottune.cli.found import found_report
from hottune.cli.options import Link, StoredIn, checked_link
from hottune.errors import BadSettingError
from hottune.report import save
from hottune.report.names import file_stem
from hottune.report.private_text import Identity
from hottune.report.redact import Redaction, redact
from hottune.report.schema import Report
from hottune.units import format_bytes

#: Longest new value shown of a field that changed, characters; the files have it whole.
SHOWN = 150


def share(
    study: Annotated[str, typer.Argument(help="A study's name, its .db file, or a result file (.json).")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write to. Default: ./share.", show_default=False),
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Also write the main chart as a picture.")] = False,
    storage: StoredIn = None,
    link: Link = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print what was replaced and written as JSON.")
    ] = False,
) -> None:
    """Redact a result for sharing: show what would leave this machine, and write it to files.

    Nothing is sent. Names, hosts, addresses, folders, secrets and log tails are removed; numbers and verdicts
    stay. Without --yes it asks first, and where nobody can be asked, it only shows.
    """
    with common.handled(json_output=json_output):
        checked_link(link)
        before = found_report(study, storage)
        redaction = redact(before, this_identity())
        folder = out or Path.cwd() / "share"
        _require_other_file(Path(study).expanduser(), folder, redaction.report)
        if not json_output:
            _show(before, redaction)
        agreed = yes or _agreed(folder, json_output)
        written = _write(redaction.report, folder, png, link) if agreed else []
        if json_output:
            common.emit_json(_facts(before, redaction, written))
            return
        for path in written:
            common.console().print(Text(f"Wrote {path}"), soft_wrap=True)
        common.console().print(
            Text("Nothing was sent. Read the .md before you post it." if written else "Nothing was written."),
            soft_wrap=True,
        )


def this_identity() -> Identity:
    """Return what this machine would give away: account, home folder, host name."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        user = ""
    return Identity(user=user, home=str(Path.home()), hosts=(socket.gethostname(),))


def _require_other_file(source: Path, folder: Path, report: Report) -> None:
    target = (folder / f"{file_stem(report.study)}.json").resolve()
    if target.parent == common.reports_dir().resolve() or target == source.resolve():
        raise BadSettingError(
            f"--out {folder} would replace the result itself by its redacted copy.",
            "Results lie in that folder, under the same name.",
            "Give another --out.",
        )


def _agreed(folder: Path, json_output: bool) -> bool:
    if json_output or not _can_ask():
        if not json_output:
            common.console().print(Text("Add --yes to write it where nobody can be asked."), soft_wrap=True)
        return False
    return typer.confirm(f"Write this to {folder}?", default=False, err=True)


def _can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _write(report: Report, folder: Path, png: bool, link: str) -> list[Path]:
    try:
        return save(report, folder, png=png, link=link)
    except OSError as error:
        raise BadSettingError(
            f"The folder {folder} cannot be written: {error.strerror}.", next_step="Give another --out."
        ) from error


def sizes(report: Report) -> dict[str, int]:
    """Return the bytes that each top-level field takes as JSON."""
    fields: dict[str, Any] = json.loads(report.model_dump_json())
    return {name: len(json.dumps(value, ensure_ascii=False).encode()) for name, value in fields.items()}


def _facts(before: Report, redaction: Redaction, written: list[Path]) -> dict[str, object]:
    return {
        "replaced": [vars(item) for item in redaction.replaced],
        "changed": redaction.changed,
        "not_replaced": redaction.unreplaced,
        "bytes_before": sizes(before),
        "bytes_after": sizes(redaction.report),
        "written": [str(path) for path in written],
    }


def _show(before: Report, redaction: Redaction) -> None:
    """Print what was replaced, how the changed fields read now, and the size of every field that leaves."""
    out = common.console()
    if redaction.replaced:
        table = Table("replaced", "times", "for example", title="Removed", title_justify="left", box=None)
        for item in redaction.replaced:
            table.add_row(item.kind, str(item.count), Text("; ".join(item.examples)))
        out.print(table)
        out.print(Text("\nWhat stands there instead:"))
        for place, value in redaction.changed.items():
            shown = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
            out.print(Text(f"  {place}: {shown or '(nothing)'}"), soft_wrap=True)
    else:
        out.print(Text("Nothing private was found."))
    if redaction.unreplaced:
        out.print(
            Text(f"Not looked for, as a common word: {', '.join(redaction.unreplaced)}."),
            soft_wrap=True,
        )
    old, new = sizes(before), sizes(redaction.report)
    table = Table("field", "before", "after", title="\nWhat would leave", title_justify="left", box=None)
    for name, size in new.items():
        table.add_row(name, format_bytes(old[name]), format_bytes(size) if size != old[name] else "the same")
    table.add_row("all", format_bytes(sum(old.values())), format_bytes(sum(new.values())))
    out.print(table)
