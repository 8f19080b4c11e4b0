"""The result file: the report itself as JSON, and reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hottune.errors import BadResultError
from hottune.report.schema import SCHEMA_VERSION, Report


class JsonRenderer:
    """The whole report, raw samples included."""

    def render(self, report: Report) -> str:
        """Return the report as indented JSON."""
        return report.model_dump_json(indent=2) + "\n"


def load(path: Path) -> Report:
    """Read a result file.

    Raises:
        BadResultError: the file cannot be read, is not JSON, is not a result of hottune, or was written by a
            newer hottune.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        raise BadResultError(
            f"The result file {path} cannot be read: {error.strerror}.",
            next_step="Check the path; `hottune studies list` shows the studies that are here.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadResultError(
            f"{path} is not JSON: {error}.",
            "It is another kind of file, or was cut short while it was copied.",
            "Give the .json file that `hottune run` wrote into reports/.",
        ) from error
    _check_version(path, data)
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        raise BadResultError(
            f"{path} is not a complete result: {_first_problem(error)}.",
            "It was edited by hand, or written by a hottune between two releases.",
            "Render the study again with `hottune report STUDY`, or run it again.",
        ) from error


def _check_version(path: Path, data: Any) -> None:
    if isinstance(data, dict) and data.get("kind") == "endpoint":
        raise BadResultError(
            f"{path} is of an endpoint, which has no arms and no placement.",
            "`hottune report` shows it and `hottune compare` compares it. It keeps no account, key or "
            "folder, and no host of another machine, so it can be posted as it is.",
            "For all else give a result of `hottune run`.",
        )
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadResultError(
            f"{path} is not a result of hottune: it has no schema_version.",
            "It is JSON, but of another program.",
            "Give the .json file that `hottune run` wrote into reports/.",
        )
    if version > SCHEMA_VERSION:
        raise BadResultError(
            f"{path} has schema version {version}; this hottune reads up to {SCHEMA_VERSION}.",
            "It was written by a newer hottune.",
            "Update hottune, then try again.",
        )


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    more = f" (and {error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    return f"{place}: {first['msg'].lower()}{more}"
