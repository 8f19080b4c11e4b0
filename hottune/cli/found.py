"""What the name of a study, or a file, means: a result file, or a study in a storage, which is enough."""

from __future__ import annotations

import difflib
from pathlib import Path

from rich.text import Text

from hottune.cli import common
from hottune.errors import BadResultError, StudyNotFoundError
from hottune.report import load
from hottune.report.endpoint import EndpointResult, load_endpoint
from hottune.report.names import file_stem
from hottune.report.schema import Report

_SQLITE = b"SQLite format 3\x00"


def found_report(study: str, storage: str | None = None) -> Report:
    """Return the report that an argument means.

    A file is a result, or the SQLite file of a study. A name is a study in `storage`, or else in ./studies,
    or else a result in ./reports.

    Raises:
        StudyNotFoundError: there is nothing of that name.
        BadResultError: the file is no result, or the study does not say enough.
        NothingMeasuredError, StorageError: nothing was measured yet; the storage cannot be read.
    """
    if storage is not None:
        return _stored(study, [storage])
    given = Path(study).expanduser()
    if given.is_file():
        return _in_file(given) if _is_database(given) else load(given)
    own = common.studies_dir() / f"{study}.db"
    files = [own] if own.is_file() else sorted(common.studies_dir().glob("*.db"))
    if not files:
        return load(result_path(study))
    from hottune.search.storage import sqlite_url

    try:
        return _stored(study, [sqlite_url(path) for path in files])
    except StudyNotFoundError:
        return load(result_path(study))
    except BadResultError as error:
        result = _result_of(study)
        if result is None:
            raise
        common.console().print(Text(f"{error.what} This is its result file {result}."), soft_wrap=True)
        return load(result)


def found_endpoint(study: str) -> EndpointResult | None:
    """Return the result of an endpoint that an argument means; None where it means something else.

    Raises:
        BadResultError: it is one, but cannot be read.
    """
    given = Path(study).expanduser()
    path = given if given.is_file() else _result_of(study)
    return None if path is None or _is_database(path) else load_endpoint(path)


def result_path(study: str) -> Path:
    """Return the result file that an argument means: the path itself, or the study's in the reports folder.

    Raises:
        StudyNotFoundError: neither exists; the message names what is there.
    """
    given = Path(study).expanduser()
    if given.is_file():
        return given
    if (found := _result_of(study)) is not None:
        return found
    folder = common.reports_dir()
    there = sorted({path.stem for path in [*folder.glob("*.json"), *common.studies_dir().glob("*.db")]})
    near = difflib.get_close_matches(study, there, n=3) or there[:5]
    raise StudyNotFoundError(
        f"There is no result file {study}, and no report or study named '{study}' here.",
        "Studies are looked for in ./studies (or --storage), results in ./reports.",
        f"Here: {', '.join(near)}." if near else "Run `hottune run MODEL` first, or give a .json file.",
    )


def _result_of(study: str) -> Path | None:
    path = common.reports_dir() / f"{file_stem(study)}.json"
    return path if path.is_file() else None


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _in_file(path: Path) -> Report:
    """Return the report of the one study in a SQLite file."""
    from hottune.search.catalogue import names_in
    from hottune.search.storage import sqlite_url

    url = sqlite_url(path.absolute())
    names = names_in(url)
    if len(names) != 1:
        raise StudyNotFoundError(
            f"{path} holds {len(names) or 'no'} studies of hottune's.",
            ", ".join(names[:5]),
            f"Name one: hottune report NAME --storage {url}" if names else "Give the .db file of a study.",
        )
    return _stored(names[0], [url])


def _stored(name: str, urls: list[str]) -> Report:
    """Return the report of a study in one of some storages.

    Raises:
        BadResultError: it does not say enough; the message names its result file where that is here.
    """
    from hottune.search.catalogue import reopen
    from hottune.tasks.stored import basis_of, report_of

    journal = reopen(name, urls)
    try:
        return report_of(journal, basis_of(journal))
    except BadResultError as error:
        result = _result_of(name)
        if result is not None:
            raise BadResultError(error.what, error.why, f"Its result file is here: {result}") from error
        raise
