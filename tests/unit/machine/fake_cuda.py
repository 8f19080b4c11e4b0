"""A stand-in for the CUDA driver library: keeps count of what is held, and fails where a test says."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

UUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
OUT_OF_MEMORY = 2

_TAKES = {
    "cuMemAlloc_v2": "device memory",
    "cuMemHostAlloc": "pinned memory",
    "cuStreamCreate": "stream",
    "cuEventCreate": "event",
    "cuDevicePrimaryCtxRetain": "context",
    "cuCtxPushCurrent_v2": "current context",
}
_RELEASES = {
    "cuMemFree_v2": "device memory",
    "cuMemFreeHost": "pinned memory",
    "cuStreamDestroy_v2": "stream",
    "cuEventDestroy_v2": "event",
    "cuDevicePrimaryCtxRelease_v2": "context",
    "cuCtxPopCurrent_v2": "current context",
}


class FakeCuda:
    """Behaves as `ctypes.CDLL("libcuda.so.1")` with one GPU whose copies run at memory speed.

    Args:
        fails: name of the function that fails, and with which code.
        lacks: a function that this driver does not have.
        gpus: how many there are.
        card: the fake NVML's card (its `used`, bytes), in which this driver's memory shows.
        context_bytes: VRAM of a context.
    """

    def __init__(
        self,
        fails: str = "",
        code: int = OUT_OF_MEMORY,
        lacks: str = "",
        gpus: int = 1,
        card: Any = None,
        context_bytes: int = 0,
    ) -> None:
        self.fails, self.code, self.lacks, self.gpus = fails, code, lacks, gpus
        self.card, self.context_bytes = card, context_bytes
        self.sizes: dict[int, int] = {}
        self.held: list[str] = []
        self.copied: dict[str, int] = {}
        self.began = 0.0
        self.buffers: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu") or name == self.lacks:
            raise AttributeError(name)
        return lambda *arguments: self.answer(name, *arguments)

    def answer(self, name: str, *arguments: Any) -> int:
        if name == self.fails:
            return self.code
        if name in _TAKES:
            self.held.append(_TAKES[name])
        if name in _RELEASES:
            self.held.remove(_RELEASES[name])
        special = getattr(self, f"do_{name}", None)
        if special is not None:
            special(*arguments)
        return 0

    def do_cuGetErrorString(self, status: int, text: Any) -> None:
        text._obj.value = b"made to fail"

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = self.gpus

    def do_cuDeviceGetUuid(self, raw: Any, device: Any) -> None:
        raw._obj[:] = list(range(16))

    def do_cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        self.take(self.context_bytes)

    def do_cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        self.take(-self.context_bytes)

    def do_cuMemAlloc_v2(self, address: Any, size: ctypes.c_size_t) -> None:
        address._obj.value = 4096 + sum(self.sizes.values())
        self.sizes[address._obj.value] = size.value
        self.take(size.value)

    def do_cuMemFree_v2(self, address: ctypes.c_uint64) -> None:
        self.take(-self.sizes.pop(address.value))

    def take(self, n_bytes: int) -> None:
        if self.card is not None:
            self.card.used += n_bytes

    def do_cuMemHostAlloc(self, address: Any, size: ctypes.c_size_t, flags: Any) -> None:
        self.buffers.append(ctypes.create_string_buffer(size.value))  # the measuring writes to it
        address._obj.value = ctypes.addressof(self.buffers[-1])

    def do_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: ctypes.c_size_t, stream: Any) -> None:
        self.copied["pinned"] = self.copied.get("pinned", 0) + size.value

    def do_cuMemcpyHtoD_v2(self, target: Any, source: Any, size: ctypes.c_size_t) -> None:
        self.copied["unpinned"] = self.copied.get("unpinned", 0) + size.value

    def do_cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, size: ctypes.c_size_t, stream: Any) -> None:
        self.copied["hbm"] = self.copied.get("hbm", 0) + size.value

    def do_cuEventRecord(self, event: Any, stream: Any) -> None:
        self.last, self.began = time.perf_counter(), getattr(self, "last", 0.0)

    def do_cuEventElapsedTime(self, elapsed: Any, begin: Any, end: Any) -> None:
        elapsed._obj.value = (self.last - self.began) * 1e3
