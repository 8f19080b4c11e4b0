"""The few functions of NVIDIA's CUDA driver library that measuring copies needs, each return code checked.

`libcuda.so.1` comes with the driver: no CUDA toolkit is needed. No library is a normal answer
(`CudaUnavailable`). Function names and numbers: https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

_LIBRARY = "libcuda.so.1"
_BLOCKING_SYNC = 4  # CU_CTX_SCHED_BLOCKING_SYNC: a waiting thread sleeps, and so leaves its core to readers
_STATES = {3: "the driver is not initialized", 100: "no CUDA device is visible", 2: "out of memory"}


def driver_is_here() -> bool:
    """Tell whether the driver library can be loaded; loading alone takes no GPU memory."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


class CudaUnavailable(Exception):
    """The driver cannot be used, or one of its functions failed; the message says which and why."""


class Cuda:
    """One GPU's primary context, current in the thread that made it. Use `opened`.

    Args:
        library: the loaded driver library.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            CudaUnavailable: it is not there, or did not return CUDA_SUCCESS.
        """
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise CudaUnavailable(f"the CUDA driver has no {name}: it is too old") from error
        status = int(function(*arguments))
        if status:
            raise CudaUnavailable(f"{name} failed: {self._words(status)}")

    def _words(self, status: int) -> str:
        text = ctypes.c_char_p()
        function = getattr(self._library, "cuGetErrorString", None)
        if function is not None and function(status, ctypes.byref(text)) == 0 and text.value:
            return f"{text.value.decode(errors='replace')} ({status})"
        return f"{_STATES.get(status, 'error')} ({status})"

    @contextmanager
    def device_memory(self, n_bytes: int) -> Iterator[ctypes.c_uint64]:
        """Yield the address of `n_bytes` of VRAM."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(n_bytes))
        with self._afterwards("cuMemFree_v2", address):
            yield address

    @contextmanager
    def pinned_memory(self, n_bytes: int) -> Iterator[ctypes.c_void_p]:
        """Yield the address of `n_bytes` of page-locked host memory."""
        address = ctypes.c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(n_bytes), ctypes.c_uint(0))
        with self._afterwards("cuMemFreeHost", address):
            yield address

    @contextmanager
    def stream(self) -> Iterator[ctypes.c_void_p]:
        """Yield a stream of its own (it does not wait for the default one)."""
        handle = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(1))
        with self._afterwards("cuStreamDestroy_v2", handle):
            yield handle

    @contextmanager
    def event(self) -> Iterator[ctypes.c_void_p]:
        """Yield an event that keeps the time."""
        handle = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(handle), ctypes.c_uint(0))
        with self._afterwards("cuEventDestroy_v2", handle):
            yield handle

    @contextmanager
    def _afterwards(self, name: str, handle: Any) -> Iterator[None]:
        """Release what was taken, also after an error; a failing release does not hide that error."""
        try:
            yield
        except BaseException:
            with suppress(CudaUnavailable):
                self.call(name, handle)
            raise
        self.call(name, handle)


@contextmanager
def opened(uuid: str = "", library: Any = None) -> Iterator[Cuda]:
    """Open the driver and make a GPU's primary context current in this thread, until the block ends.

    Args:
        uuid: of the GPU as NVML writes it (`GPU-...`); "" = the driver's first.
        library: stands in for the driver in tests.

    Raises:
        CudaUnavailable: no driver, no such GPU, or a function failed.
    """
    if library is None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise CudaUnavailable(f"no CUDA driver library ({_LIBRARY}) on this machine") from error
    cuda = Cuda(library)
    cuda.call("cuInit", ctypes.c_uint(0))
    device = _device(cuda, uuid)
    with ExitStack() as ending:
        # Flags of a context that is in use already cannot change; then it spins, which costs a core.
        with suppress(CudaUnavailable):
            cuda.call("cuDevicePrimaryCtxSetFlags_v2", device, ctypes.c_uint(_BLOCKING_SYNC))
        context = ctypes.c_void_p()
        cuda.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        ending.enter_context(cuda._afterwards("cuDevicePrimaryCtxRelease_v2", device))
        cuda.call("cuCtxPushCurrent_v2", context)
        ending.enter_context(cuda._afterwards("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p())))
        yield cuda


def _device(cuda: Cuda, uuid: str) -> ctypes.c_int:
    count = ctypes.c_int()
    cuda.call("cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise CudaUnavailable("the CUDA driver shows no GPU")
    for ordinal in range(count.value):
        device = ctypes.c_int()
        cuda.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        if not uuid or _uuid(cuda, device) == uuid:
            return device
    raise CudaUnavailable(f"the CUDA driver does not show the GPU {uuid} to this process")


def _uuid(cuda: Cuda, device: ctypes.c_int) -> str:
    raw = (ctypes.c_ubyte * 16)()
    cuda.call("cuDeviceGetUuid", ctypes.byref(raw), device)
    text = bytes(raw).hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
