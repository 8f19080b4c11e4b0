"""Show a storage's studies in optuna-dashboard, on this machine alone, until asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from hottune.engine.ports import require_free
from hottune.errors import ExtraMissingError, PortTakenError
from hottune.search.storage import open_to_look, storage_errors
from hottune.tasks.serve import stop_signals

HOST = "127.0.0.1"
#: Beside llama-server's own default, 8080.
PORT = 8081


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the page asks every few seconds."""


def page_of(url: str, study: str | None) -> str:
    """Return the path of a study's page; that of the list of studies for None.

    Raises:
        StorageError: the storage cannot be used.
    """
    if study is None:
        return "/dashboard"
    storage = open_to_look(url)
    with storage_errors(url):
        return f"/dashboard/studies/{storage.get_study_id_from_name(study)}"


def serve_dashboard(url: str, port: int | None, *, up: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM, on which this returns.

    Args:
        url: of the Optuna storage.
        port: to listen on; None = 8081, or a free one where that is taken.
        up: called once with the port, when it listens.

    Raises:
        ExtraMissingError: optuna-dashboard is not installed.
        PortTakenError: the asked-for port is in use.
        StorageError: the storage cannot be used.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ExtraMissingError(
            "optuna-dashboard is not installed.", str(error), "Install it: pip install 'hottune[dashboard]'"
        ) from error
    if port is not None:
        require_free(port, HOST)
    app = wsgi(open_to_look(url))
    with stop_signals() as stopping, _listening(port) as server:
        server.set_app(app)
        thread = threading.Thread(target=server.serve_forever, name="dashboard", daemon=True)
        thread.start()
        up(server.server_port)
        stopping.wait()
        server.shutdown()
        thread.join()


def _listening(port: int | None) -> _Server:
    if port is not None:
        return _Server((HOST, port), _Quiet)
    try:
        require_free(PORT, HOST)
    except PortTakenError:
        return _Server((HOST, 0), _Quiet)
    return _Server((HOST, PORT), _Quiet)
