"""`hottune report`: render the result of a study again, in any format."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hottune.cli import common
from hottune.errors import BadSettingError, StudyNotFoundError
from hottune.report import Format, load, render
from hottune.report.store import file_stem, write_text


def report(
    study: Annotated[str, typer.Argument(help="A study's name, or the path of a result file (.json).")],
    format: Annotated[
        Format, typer.Option("--format", "-f", help="How to render it.", case_sensitive=False)
    ] = Format.TERMINAL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead of the screen.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
) -> None:
    """Render the result of a study again, in any format."""
    chosen = Format.JSON if json_output else format
    with common.handled(json_output=chosen is Format.JSON):
        text = _rendered(result_path(study), chosen, color=False if output else None)
        if output is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        try:
            write_text(output, text)
        except OSError as error:
            raise BadSettingError(
                f"{output} cannot be written: {error.strerror}.", next_step="Give another --output."
            ) from error
        common.console().print(Text(f"Wrote {output}"), soft_wrap=True)


def _rendered(path: Path, format: Format, *, color: bool | None) -> str:
    """Render a result; one of an endpoint is a table or its own JSON."""
    from hottune.report.endpoint import load_endpoint

    endpoint = load_endpoint(path)
    if endpoint is None or format not in (Format.TERMINAL, Format.JSON):
        return render(load(path), format, color=color)
    if format is Format.JSON:
        return endpoint.model_dump_json(indent=2) + "\n"
    from hottune.cli.endpoint import text

    return text(endpoint)


def result_path(study: str) -> Path:
    """Return the result file that an argument means: the path itself, or the study's in the reports folder.

    Raises:
        StudyNotFoundError: neither exists; the message names what is there.
    """
    given = Path(study).expanduser()
    if given.is_file():
        return given
    folder = common.reports_dir()
    found = folder / f"{file_stem(study)}.json"
    if found.is_file():
        return found
    there = sorted(path.stem for path in folder.glob("*.json"))
    near = difflib.get_close_matches(study, there, n=3) or there[:5]
    raise StudyNotFoundError(
        f"There is no result file {study} and no report of a study named '{study}' in {folder}.",
        "A study has a report once `hottune run` has finished it.",
        f"Reports here: {', '.join(near)}."
        if near
        else "Run `hottune run MODEL` first, or give a .json file.",
    )
