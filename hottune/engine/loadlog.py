"""Read llama-server's log: where everything lies, what fit decided, and why a server died.

Patterns are those of b11434 at `-lv 4`. A line looks like

    0.00.286.474 I load_tensors:          CPU model buffer size =   111.22 MiB

(minutes.seconds.ms.us, level, function: text); everything is matched behind that prefix, wherever it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from hottune.engine import fitlog
from hottune.outcomes import Crashed, Engagement, FitPlacement, OutOfMemory

_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s+(\d+(?:\.\d+)?) MiB", re.ASCII)
_DEVICE = re.compile(r"using device (\S+) \((.*)\) \([^()]*\) - \d+ MiB free")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_LOAD_MODE = re.compile(r"load_mode = ([\w+]+)")
_FIT = re.compile(r"\bcommon_(?:params_fit_impl|fit_params): (.*)")
_RESERVING = "sched_reserve: reserving"
_HOT_READY = re.compile(r"ggml_hot: device ready\b")
_SPECULATING = "speculative decoding context initialized"
_NOT_LOADED = re.compile(r"load_backend: failed to (?:load|initialize|find) .*")
_PREFIX = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ")

#: What memory exhaustion looks like: CUDA and HIP, Vulkan, the virtual GPU, host memory, and llama.cpp's own
#: words for an allocation of any back-end that failed.
_OUT_OF_MEMORY = re.compile(
    r"cudaMalloc failed|hipMalloc failed|(?:CUDA|ROCm) error: out of memory|ErrorOutOf(?:Device|Host)Memory"
    r"|OutOfDeviceMemory|ggml_hot: virtual GPU out of memory|ggml_aligned_malloc: insufficient memory"
    r"|unable to allocate \S+ buffer|failed to allocate (?:\S+ )?buffer|failed to allocate compute"
    r"|failed to allocate graph|failed to allocate \S+ for|CUBLAS_STATUS_ALLOC_FAILED|std::bad_alloc",
    re.IGNORECASE,
)
_ERROR = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} E |GGML_ASSERT|\berror\b|terminate called", re.IGNORECASE)
#: Errors that only repeat or detail (indented) what an earlier line said.
_ECHO = re.compile(
    r"exiting due to|failed to load model|failed to create.context|^\s|\.cuh?:\d+: (?:CUDA|ROCm) error"
)

Stage = Literal["load", "first_batch", "later"]


@dataclass
class LoadLog:
    """What a load log says. Sizes in MiB, by buffer name as llama.cpp prints it (CUDA0, CUDA_Host, CPU)."""

    devices: dict[str, str] = field(default_factory=dict)  #: GPU name -> description
    model_mib: dict[str, float] = field(default_factory=dict)
    kv_mib: dict[str, float] = field(default_factory=dict)  #: recurrent state included
    compute_mib: dict[str, float] = field(default_factory=dict)
    offloaded: tuple[int, int] | None = None  #: layers on the GPU, of how many (output layer counted)
    load_mode: str = ""
    fit_lines: list[str] = field(default_factory=list)
    hot_lines: list[str] = field(default_factory=list)  #: everything our device said
    hot_ready: bool = False
    speculating: bool = False
    not_loaded: list[str] = field(default_factory=list)  #: back-end libraries that could not be loaded

    @property
    def gpu_device(self) -> str:
        """Name of the (first) GPU in use, or ""."""
        return next(iter(self.devices), "")

    @property
    def host_model_mib(self) -> float:
        """Weights outside all GPUs."""
        return sum(size for name, size in self.model_mib.items() if name not in self.devices)

    @property
    def pinned(self) -> bool | None:
        """Whether most host weights are in pinned memory; None when there are none."""
        if self.host_model_mib <= 0:
            return None
        pinned = sum(size for name, size in self.model_mib.items() if name.endswith("_Host"))
        return pinned > self.host_model_mib / 2

    def engagement(self) -> Engagement:
        """Return the proof that goes into a measurement (the cache's counters come when the server ends)."""
        return Engagement(
            gpu_device=self.gpu_device,
            vram_model_mib=self._on_gpu(self.model_mib),
            vram_kv_mib=self._on_gpu(self.kv_mib),
            vram_compute_mib=self._on_gpu(self.compute_mib),
            host_model_mib=self.host_model_mib,
            pinned=self.pinned,
            fit=self.fit(),
        )

    def fit(self) -> FitPlacement | None:
        """Return what fit decided, or None when it did not run or gave up."""
        return fitlog.fit_placement(self.fit_lines, self.offloaded)

    @property
    def fit_failure(self) -> str | None:
        """Why fit gave up and changed nothing; None when it did not."""
        return fitlog.failure(self.fit_lines)

    @property
    def fit_left_no_experts(self) -> bool:
        """Whether fit put every layer into VRAM, experts and all."""
        fit = self.fit()
        return (
            fit is not None
            and fit.layers_total is not None
            and fit.n_gpu_layers == fit.layers_total
            and not fit.overrides
        )

    def _on_gpu(self, sizes: dict[str, float]) -> float:
        return sum(size for name, size in sizes.items() if name in self.devices)


def parse(text: str) -> LoadLog:
    """Read a log, complete or still growing. Unknown lines, and half a last line, are no error."""
    log = LoadLog()
    for line in text.splitlines():
        if found := _BUFFER.search(line):
            name, kind, size = found[1], found[2], float(found[3])
            if kind == "model":
                log.model_mib[name] = log.model_mib.get(name, 0.0) + size  # one line for each file's share
            elif kind in ("KV", "RS"):
                log.kv_mib[name] = log.kv_mib.get(name, 0.0) + size  # one line for each kind of cache
            elif kind == "compute":
                log.compute_mib[name] = log.compute_mib.get(name, 0.0) + size  # our device has a share
        elif _RESERVING in line:
            log.compute_mib.clear()  # a later reservation replaces an earlier one
        elif found := _DEVICE.search(line):
            log.devices[found[1]] = found[2]
        elif found := _OFFLOADED.search(line):
            log.offloaded = (int(found[1]), int(found[2]))
        elif found := _FIT.search(line):
            log.fit_lines.append(found[1].strip())
        elif "ggml_hot:" in line:
            log.hot_lines.append(line[line.index("ggml_hot:") :].strip())
            log.hot_ready = log.hot_ready or bool(_HOT_READY.search(line))
        elif _SPECULATING in line:
            log.speculating = True
        elif found := _NOT_LOADED.search(line):
            log.not_loaded.append(found[0])
        elif found := _LOAD_MODE.search(line):
            log.load_mode = found[1]
    return log


def activity(text: str) -> str:
    """Return in a few words what a loading server is doing, for a progress line."""
    for mark, words in (
        ("model loaded", "ready"),
        ("warming up the model", "warming up"),
        ("constructing llama_context", "allocating KV cache and buffers"),
        ("loading model tensors", "loading weights"),
        ("common_params_fit_impl", "fitting the placement"),
        ("loading model '", "reading the header"),
    ):
        if mark in text:
            return words
    return "starting"


def loaded(text: str) -> bool:
    """Tell whether the log has the line that follows all of those about loading."""
    return "model loaded" in text


def loading_weights(text: str) -> bool:
    """Tell whether the log stands between the first and the last weight."""
    return "loading model tensors" in text and "constructing llama_context" not in text


def tail(text: str, n_lines: int = 20) -> list[str]:
    """Return the last non-empty lines, without timestamps."""
    lines = [_PREFIX.sub("", line.rstrip()) for line in text.splitlines() if line.strip()]
    return lines[-n_lines:]


def diagnose(text: str, stage: Stage, exit_code: int | None) -> OutOfMemory | Crashed:
    """Say why a server failed, from its log and exit status.

    Args:
        text: the log.
        stage: how far it had come: `load`, `first_batch` (first request), `later`.
        exit_code: exit status, negative for a signal, None while it still runs.
    """
    lines = text.splitlines()
    # fit's trial run may fail to allocate and recover, but what a server dies of stands near the end.
    for line in lines[-200:]:
        if _OUT_OF_MEMORY.search(line):
            return OutOfMemory(stage=stage, detail=_PREFIX.sub("", line).strip(), log_tail=tail(text))
    if exit_code == -9:
        # Nobody here sends SIGKILL to a server before reading why it failed: that leaves the kernel.
        detail = "killed by SIGKILL, most likely by the kernel because host memory ran out"
        return OutOfMemory(stage=stage, detail=detail, log_tail=tail(text))
    return Crashed(exit_code=exit_code, detail=_last_error(lines, exit_code), log_tail=tail(text))


def _last_error(lines: list[str], exit_code: int | None) -> str:
    errors = [_PREFIX.sub("", line) for line in lines if _ERROR.search(line)]
    telling = [error for error in errors if not _ECHO.search(error)] or errors
    if telling:
        return telling[-1].strip()
    if exit_code is None:
        return "the server gave a wrong answer; its log shows no error"
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit status {exit_code}"
    return f"the server ended with {how} and its log shows no error"
