"""NVML, NVIDIA's management library, behind one door that never throws at its users.

No library, no driver and no GPU are normal answers. The module `pynvml` comes from the package
nvidia-ml-py; it is imported on first use, so that a machine without it loses nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


class NvmlUnavailable(Exception):
    """NVML cannot be used here; the message says why, for a note in the report."""


@contextmanager
def nvml() -> Iterator[Any]:
    """Open NVML and yield the `pynvml` module; close it afterwards.

    NVML counts openings, so nested use (a sampler inside a probe) is fine.

    Raises:
        NvmlUnavailable: the module, the library or the driver is missing, or access is denied.
    """
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise NvmlUnavailable("the Python package nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        raise NvmlUnavailable(_why(pynvml, error)) from error
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def ask(module: Any, question: Callable[[], _T], otherwise: _T) -> _T:
    """Return the answer to one NVML question, or `otherwise` where this GPU or driver cannot tell."""
    try:
        return question()
    except (module.NVMLError, AttributeError):  # AttributeError: a pynvml older than the question
        return otherwise


def text(value: str | bytes) -> str:
    """Return a string from NVML as str (older versions of the module answer in bytes)."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _why(module: Any, error: Exception) -> str:
    by_class = {
        "NVMLError_LibraryNotFound": "no NVIDIA driver library (libnvidia-ml.so.1) on this machine",
        "NVMLError_DriverNotLoaded": "the NVIDIA driver is installed but not loaded",
        "NVMLError_NoPermission": "this process may not talk to the NVIDIA driver",
        "NVMLError_LibRmVersionMismatch": "NVIDIA driver and library have different versions; reboot to fix",
    }
    for name, reason in by_class.items():
        kind = getattr(module, name, None)
        if kind is not None and isinstance(error, kind):
            return reason
    return f"NVML: {error}"
