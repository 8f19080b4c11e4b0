"""Background: what looks at a GPU on a thread of its own while something else is measured."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from types import TracebackType

#: A look at the GPU that hangs in the driver is not waited for any longer, seconds.
END_S = 10.0


class Background(ABC):
    """A context whose thread, once started, is ended when the context is left.

    Args:
        thread_name: as debuggers show it.
    """

    def __init__(self, thread_name: str) -> None:
        self._thread_name = thread_name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _run(self) -> None:
        """Look again and again until `_stop` is set; must not raise."""

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self._thread_name, daemon=True)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=END_S)
            self._thread = None
