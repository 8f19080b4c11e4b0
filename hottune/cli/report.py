"""`hottune report`: render what a study measured again, in any format, from what is stored of it alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hottune.cli import common
from hottune.cli.found import found_result
from hottune.cli.options import Link, StoredIn, checked_link
from hottune.errors import BadSettingError
from hottune.report import Format, render, render_bytes
from hottune.report.endpoint import EndpointResult, json_text
from hottune.report.json_file import no_arms
from hottune.report.schema import Report
from hottune.report.store import write_bytes


def report(
    study: Annotated[
        str,
        typer.Argument(help="A study's name, its .db file, or a result file (.json)."),
    ],
    format: Annotated[
        Format, typer.Option("--format", "-f", help="How to render it.", case_sensitive=False)
    ] = Format.TERMINAL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead of the screen.")
    ] = None,
    storage: StoredIn = None,
    link: Link = "",
    json_output: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Render a study again, in any format, also one that is not finished.

    What is stored of the study is enough: neither engine nor model nor ./reports need to be here.
    """
    chosen = Format.JSON if json_output else format
    with common.handled(json_output=chosen is Format.JSON):
        checked_link(link)
        if chosen.is_binary and output is None and sys.stdout.isatty():
            raise BadSettingError(
                f"{chosen.value} is no text, and standard output is a terminal.",
                next_step=f"Add --output, say: --output {Path(study).stem}.{chosen.value}",
            )
        data = _rendered(found_result(study, storage), chosen, link=link, to_file=output is not None)
        if output is not None:
            _write(output, data)
        else:
            sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _rendered(result: Report | EndpointResult, format: Format, *, link: str, to_file: bool) -> bytes:
    """Render a result; that of an endpoint is a table or its own JSON.

    Raises:
        BadResultError: the format needs arms, and the result is of an endpoint.
    """
    if isinstance(result, Report):
        if format.is_binary or to_file:
            return render_bytes(result, format, link=link)
        return render(result, format, link=link).encode()
    if format is Format.JSON:
        return json_text(result).encode()
    if format is Format.TERMINAL:
        from hottune.cli.endpoint import text

        return text(result).encode()
    raise no_arms(result.label)


def _write(output: Path, data: bytes) -> None:
    try:
        write_bytes(output, data)
    except OSError as error:
        raise BadSettingError(
            f"{output} cannot be written: {error.strerror}.", next_step="Give another --output."
        ) from error
    common.console().print(Text(f"Wrote {output}"), soft_wrap=True)
