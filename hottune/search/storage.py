"""The Optuna storage of studies: opened, its errors told apart, and asked again while it does not answer."""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy.event
import sqlalchemy.exc
from optuna.storages._cached_storage import _CachedStorage

from hottune.errors import StorageError

SQLITE_WAIT_S = 60
#: A worker shows this often that it is alive, ...
BEAT_S = 10
#: ... and is taken for dead when the storage has not heard of it for so long.
GRACE_S = 60
#: A storage that does not answer is asked again for so long before the run ends.
OUTAGE_LIMIT_S = 300.0
#: Workers that make the tables of an empty storage at once get into each other's way: they open it again.
MOST_OPENINGS = 6
OPEN_AGAIN_S = 0.5
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0

T = TypeVar("T")
#: Optuna's wrapper of a relational storage: it alone keeps finished trials in memory.
Storage = _CachedStorage


def sqlite_url(path: Path) -> str:
    """Return the storage URL of a SQLite file."""
    return f"sqlite:///{path}"


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for every other storage, which machines can share."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what storages raise into `StorageError`."""
    shown = url.split("@")[-1]  # never show a password
    hint = "Check the path or URL, its permissions and the free disk space; --storage chooses another one."
    try:
        yield
    except ImportError as error:
        message = f"The driver for the storage {shown} is not installed."
        raise StorageError(
            message, str(error), "For PostgreSQL: pip install 'hottune[postgresql]'."
        ) from error
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(f"The storage {shown} failed.", _said(error.__cause__ or error), hint) from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, RuntimeError) as error:
        raise StorageError(f"The storage {shown} cannot be used.", _said(error), hint) from error


def _said(error: BaseException) -> str:
    """Return what an error says, without the statement and the address that SQLAlchemy adds below it."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "malformed" in reason or "file is not a database" in reason:
        reason += ": the file is damaged, or was cut short while it was copied"
    if "unable to open database file" in reason or "readonly database" in reason:
        reason += ": SQLite writes beside a file even to read it, so copy it out of a read-only folder"
    return reason[:500]


def open_storage(url: str) -> Storage:
    """Open an Optuna storage; a SQLite file is made with its folder and set to write-ahead logging.

    Raises:
        StorageError: it cannot be opened.
    """
    with storage_errors(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path = sqlite_path(url)
        if path is None:
            # A pooled connection is tried before it is used: the server may have been restarted.
            return Storage(_opened_by_many(_with_driver(url), {"pool_pre_ping": True}))
        _refuse_foreign(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=SQLITE_WAIT_S)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        backend = _relational(url, {"connect_args": {"timeout": SQLITE_WAIT_S}})
        sqlalchemy.event.listen(backend.engine, "connect", _prepare_sqlite)
        sqlalchemy.event.listen(backend.engine, "begin", _begin_sqlite)
        backend.engine.dispose()
        return Storage(backend)


def open_to_look(url: str) -> optuna.storages.RDBStorage:
    """Open a storage that exists, to show it: without the lock that every read of a worker takes.

    Raises:
        StorageError: it cannot be opened.
    """
    with storage_errors(url):
        path = sqlite_path(url)
        if path is None:
            return optuna.storages.RDBStorage(_with_driver(url), engine_kwargs={"pool_pre_ping": True})
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        _refuse_foreign(path)
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SQLITE_WAIT_S}})


def _refuse_foreign(path: Path) -> None:
    """Leave a database of another program as it is: Optuna would make its tables in there.

    Raises:
        StorageError: it has tables, and not Optuna's.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    if tables and "studies" not in tables:
        raise StorageError(
            f"{path} is the database of another program.",
            f"It has no studies, but {', '.join(sorted(tables)[:3])}. It was left as it is.",
            "Give the .db file of a study.",
        )


def _relational(url: str, engine_kwargs: dict[str, Any]) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(
        url, engine_kwargs=engine_kwargs, heartbeat_interval=BEAT_S, grace_period=GRACE_S
    )


def _opened_by_many(url: str, engine_kwargs: dict[str, Any]) -> optuna.storages.RDBStorage:
    """Open a storage whose tables several workers may be making at this very moment."""
    for _ in range(MOST_OPENINGS - 1):
        try:
            return _relational(url, engine_kwargs)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            time.sleep(OPEN_AGAIN_S)
    return _relational(url, engine_kwargs)


def _with_driver(url: str) -> str:
    """Name the PostgreSQL driver that is installed in a plain PostgreSQL URL; psycopg where both are."""
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            driver = "psycopg" if importlib.util.find_spec("psycopg") else "psycopg2"
            return f"postgresql+{driver}://" + url.removeprefix(plain)
    return url


def _prepare_sqlite(connection: Any, record: object) -> None:
    # With a write-ahead log this survives any killed process, and costs no disk flush for each attribute.
    connection.execute("PRAGMA synchronous=NORMAL")
    # The driver's own transactions begin with the first write, after what the write was decided on was read.
    connection.isolation_level = None


def _begin_sqlite(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@dataclass
class Patience:
    """Asks a storage again while it does not answer, so that a restarted server ends no run.

    Whatever is given to it must be harmless when done twice: the answer to the first may have been lost.

    Args:
        url: of the storage.
        limit_s: seconds after which a silent storage is an error.
        say: told when a storage goes silent, and when it answers again.
    """

    url: str
    limit_s: float
    say: Callable[[str], None] = field(default=lambda line: None)
    #: How often the storage has gone silent; claims doubt what they saw before.
    outages: int = 0

    def __call__(self, call: Callable[[], T]) -> T:
        """Return what the call returns.

        Raises:
            StorageError: the storage refuses, or stayed silent too long.
        """
        silent_since: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                with storage_errors(self.url):
                    answer = call()
            except StorageError as error:
                now = time.monotonic()
                if silent_since is None:
                    silent_since = now
                    self.outages += 1
                if not _may_pass(error) or now - silent_since >= self.limit_s:
                    raise
                if pause_s == FIRST_PAUSE_S:
                    self.say(
                        f"The storage does not answer; asking again for {self.limit_s:.0f} s: {error.why}"
                    )
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                if silent_since is not None:
                    self.say(f"The storage answers again after {time.monotonic() - silent_since:.0f} s.")
                return answer


def _may_pass(error: StorageError) -> bool:
    """Tell a lost connection (or a lock held too long) from what no waiting heals."""
    cause: BaseException | None = error.__cause__
    while cause is not None and not isinstance(cause, sqlalchemy.exc.SQLAlchemyError):
        cause = cause.__cause__
    if not isinstance(cause, sqlalchemy.exc.DBAPIError):
        # What a session says that lost its connection in the middle; the next call has a new session.
        return isinstance(cause, sqlalchemy.exc.PendingRollbackError)
    if isinstance(cause.orig, sqlite3.Error):
        return "locked" in str(cause.orig)
    return cause.connection_invalidated or isinstance(
        cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError
    )
