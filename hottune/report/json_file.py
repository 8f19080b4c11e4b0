"""Result files: the report itself as JSON, and reading it, or the result of an endpoint, back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hottune.errors import BadResultError
from hottune.report.endpoint import ENDPOINT_SCHEMA_VERSION, EndpointResult
from hottune.report.migrations import migrated
from hottune.report.schema import SCHEMA_VERSION, Report

#: A list of numbers alone, on lines of its own: raw samples, mostly. No text has a line break in it here.
_NUMBERS = re.compile(r"\[\n\s+([-+0-9.eE]+(?:,\n\s+[-+0-9.eE]+)*)\n\s+\]")


class JsonRenderer:
    """The whole report, raw samples included."""

    def render(self, report: Report) -> str:
        """Return the report as indented JSON; a list of numbers takes one line, or half a file is blanks."""
        text = report.model_dump_json(indent=2) + "\n"
        return _NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)


def load(path: Path) -> Report:
    """Read the result file of a study (see `load_any`).

    Raises:
        BadResultError: it cannot be read, or is of an endpoint.
    """
    found = load_any(path)
    if isinstance(found, EndpointResult):
        raise no_arms(path)
    return found


def load_any(path: Path) -> Report | EndpointResult:
    """Read a result file; an older one is brought to today's schema (hottune/report/migrations.py).

    Raises:
        BadResultError: the file cannot be read, is not JSON, is not a result of hottune, or was written by a
            newer hottune.
    """
    text, data = _read(path)
    of_endpoint = isinstance(data, dict) and data.get("kind") == "endpoint"
    version = _checked_version(path, data, ENDPOINT_SCHEMA_VERSION if of_endpoint else SCHEMA_VERSION)
    again = "Render the study again with `hottune report STUDY`, or run it again."
    try:
        if of_endpoint:
            again = "Measure it again: `hottune bench --endpoint URL`."
            return EndpointResult.model_validate_json(text)
        if version < SCHEMA_VERSION:
            text = json.dumps(migrated(data, SCHEMA_VERSION))
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise BadResultError(
            f"{path} is not a complete result: {first_problem(error)}.",
            "It was edited by hand, or written by a hottune between two releases.",
            again,
        ) from error


def no_arms(what: object) -> BadResultError:
    """Return the error of a result of an endpoint where one of a study is needed."""
    return BadResultError(
        f"{what} is of an endpoint, which has no arms and no placement.",
        "`hottune report` shows it and `hottune compare` compares it. It keeps no account, key or "
        "folder, and no host of another machine, so it can be posted as it is.",
        "For all else give a result of `hottune run`.",
    )


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong with stored data, and how much else is: `arms.0.name: ...`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    more = f" (and {error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    return f"{place}: {first['msg'].lower()}{more}"


def _read(path: Path) -> tuple[str, Any]:
    text = "?"
    try:
        text = path.read_text(encoding="utf-8")
        return text, json.loads(text)
    except OSError as error:
        raise BadResultError(
            f"The result file {path} cannot be read: {error.strerror}.",
            next_step="Check the path; `hottune studies list` shows the studies that are here.",
        ) from error
    except (ValueError, RecursionError) as error:
        if path.suffix == ".db":
            raise BadResultError(
                f"{path} is no study: it is {'no SQLite file' if text else 'empty'}.",
                "It was damaged or cut short while it was copied, or belongs to another program.",
                "Copy it again while no hottune works on the study, or give its result file (.json).",
            ) from error
        raise BadResultError(
            f"{path} is not JSON: {error}.",
            "It is another kind of file, or was cut short while it was copied.",
            "Give the .json file that `hottune run` wrote into reports/.",
        ) from error


def _checked_version(path: Path, data: Any, newest: int) -> int:
    """Return the file's schema version, of those that this hottune reads."""
    known = isinstance(data, dict) and "schema_version" in data
    version = data["schema_version"] if known else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        why = f"its schema_version is {json.dumps(version)[:40]}" if known else "it has no schema_version"
        raise BadResultError(
            f"{path} is not a result of hottune: {why}.",
            "It is JSON, but of another program, or it was edited by hand.",
            "Give the .json file that `hottune run` wrote into reports/.",
        )
    if version > newest:
        raise BadResultError(
            f"{path} has schema version {version}; this hottune reads up to {newest}.",
            "It was written by a newer hottune.",
            "Update hottune, then try again.",
        )
    return version
