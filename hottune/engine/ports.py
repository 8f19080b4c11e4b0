"""Ports and addresses that a server listens on."""

from __future__ import annotations

import errno
import socket

from hottune.errors import BadSettingError, PortTakenError

LOOPBACK = "127.0.0.1"
#: llama-server's own default.
PORT = 8080


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def require_free(port: int, host: str = LOOPBACK) -> None:
    """Return if the port can be listened on.

    Raises:
        PortTakenError: it cannot.
        BadSettingError: the host is no address of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is no one's
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise BadSettingError(
                    f"Nothing can listen on {host}: {error.strerror}.",
                    "It is no address of this machine.",
                    "Leave --host out for this machine alone; 0.0.0.0 is all its addresses.",
                ) from error
            raise port_taken(port, error.strerror or str(error), host) from error


def port_taken(port: int, why: str, host: str = LOOPBACK) -> PortTakenError:
    """Return the error of a port that cannot be listened on."""
    return PortTakenError(
        f"Port {port} on {host} cannot be used: {why}.",
        "Ports below 1024 need special rights."
        if port < 1024
        else "Another program most likely listens there.",
        "Choose another with --port, or leave it out and a free one is taken.",
    )


def reachable(host: str) -> str:
    """Return how this machine itself reaches a server that listens on `host`, as it stands in a URL."""
    if host in ("0.0.0.0", "::"):  # all addresses
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host
