"""What an argument means that names a study or a result: the one way in which every command finds them.

A file means itself: a result (of a study or an endpoint), or the SQLite file of a study. A name is a study in
`--storage`, or else in ./studies, or else a result in ./reports.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from hottune.cli import common
from hottune.errors import BadResultError, HottuneError, StorageError, StudyNotFoundError
from hottune.report import load_any
from hottune.report.endpoint import EndpointResult
from hottune.report.json_file import no_arms
from hottune.report.names import file_stem
from hottune.report.schema import Report
from hottune.workload.endpoint_url import is_url

if TYPE_CHECKING:
    from hottune.search.journal import Journal

_SQLITE = b"SQLite format 3\x00"


def found_report(study: str, storage: str | None = None) -> Report:
    """Return the report that an argument means (see `found_result`).

    Raises:
        BadResultError: also where it means the result of an endpoint.
    """
    result = found_result(study, storage)
    if isinstance(result, EndpointResult):
        raise no_arms(study)
    return result


def found_result(study: str, storage: str | None = None) -> Report | EndpointResult:
    """Return the result that an argument means; of a study what is stored of it is enough.

    A study of ./studies that does not say enough, or cannot be read, is replaced by its result file, and the
    user is told.

    Raises:
        StudyNotFoundError: there is nothing of that name.
        BadResultError: the file is no result, or the study does not say enough.
        NothingMeasuredError, StorageError: nothing was measured yet; the storage cannot be read.
    """
    source = locate(study, storage)
    if isinstance(source, Path):
        return load_any(source)
    try:
        return report_of_study(source)
    except BadResultError as error:
        result = result_file(source.name)
        if result is None:
            raise
        if storage is not None or is_file(study):  # it may be of another study of that name
            raise BadResultError(error.what, error.why, f"Its result file is here: {result}") from error
        _say_instead(error, result)
        return load_any(result)


def locate(study: str, storage: str | None = None) -> Path | Journal:
    """Return the result file or the stored study that an argument means.

    Raises:
        StudyNotFoundError: there is nothing of that name; the message names what is there.
        StorageError: the storage cannot be read.
    """
    if is_file(study):
        given = Path(study).expanduser()
        return _study_in(given) if _is_database(given) else given
    if is_url(study):
        raise StudyNotFoundError(
            f"{study} is an address, and no study or result.",
            next_step="`hottune bench --endpoint URL` measures it; `hottune compare` takes addresses, too.",
        )
    if storage is not None:
        return _reopened(study, [storage])
    path = result_file(study)
    try:
        if urls := _urls_of(study):
            return _reopened(study, urls)
    except StudyNotFoundError:
        pass
    except StorageError as error:
        if path is None:
            raise
        _say_instead(error, path)
    if path is not None:
        return path
    folder = common.reports_dir()
    there = sorted({path.stem for path in [*folder.glob("*.json"), *common.studies_dir().glob("*.db")]})
    near = difflib.get_close_matches(study, there, n=3) or there[:5]
    raise StudyNotFoundError(
        f"There is no result file {study}, and no report or study named '{study}' here.",
        "Studies are looked for in ./studies (or --storage), results in ./reports.",
        f"Here: {', '.join(near)}." if near else "Run `hottune run MODEL` first, or give a .json file.",
    )


def storage_urls(storage: str | None = None) -> list[str]:
    """Return the storages to look into: the one given, or every SQLite file in ./studies."""
    if storage is not None:
        return [storage]
    files = sorted(common.studies_dir().glob("*.db"))
    if not files:
        return []
    from hottune.search.storage import sqlite_url  # not needed where there is nothing to look into

    return [sqlite_url(path) for path in files]


def report_of_study(journal: Journal) -> Report:
    """Return the report of a stored study.

    Raises:
        BadResultError: it does not say enough.
        NothingMeasuredError, StorageError: nothing was measured yet; the storage cannot be read.
    """
    from hottune.tasks.stored import basis_of, report_of

    return report_of(journal, basis_of(journal))


def result_file(study: str) -> Path | None:
    """Return the result file of a study's name in the reports folder; None where there is none."""
    path = common.reports_dir() / f"{file_stem(study)}.json"
    return path if path.is_file() else None


def is_file(study: str) -> bool:
    """Tell whether an argument is a file's path, and no name."""
    return Path(study).expanduser().is_file()


def _urls_of(study: str) -> list[str]:
    """Return the storages in ./studies that may have a study: that of its name alone, where it is there."""
    urls = storage_urls()
    own = [url for url in urls if url.endswith(f"/{study}.db")]
    return own or urls


def _reopened(study: str, urls: list[str]) -> Journal:
    from hottune.search.catalogue import reopen

    return reopen(study, urls)


def _say_instead(error: HottuneError, result: Path) -> None:
    common.console().print(Text(f"{error.what} This is the result file {result}."), soft_wrap=True)


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False  # whoever loads it says what is wrong


def _study_in(path: Path) -> Journal:
    """Return the one study in a SQLite file."""
    from hottune.search.catalogue import names_in
    from hottune.search.storage import sqlite_url

    url = sqlite_url(path.absolute())
    names = names_in(url)
    if len(names) != 1:
        raise StudyNotFoundError(
            f"{path} holds {len(names) or 'no'} studies of hottune's.",
            ", ".join(names[:5]),
            f"Name one, with --storage {url}" if names else "Give the .db file of a study.",
        )
    return _reopened(names[0], [url])
