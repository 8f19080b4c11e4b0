"""llama-server's arguments and environment for a Placement: the one place that spells its flags.

Checked against b11434. What the flags guard against:

- `--fit` is on by default and then moves whatever is unset, so every arm but the fit arm says `-fit off` and
  states its placement; the fit arm states none (any of `-ngl -ncmoe -cmoe -ot` makes fit give up).
- `-np` unset means four slots, `-c` unset lets fit shrink the context. `-c` is the context of all slots
  together, and each gets an equal part of it.
- Load and fit lines are logged at verbosity 4. Some flags (`-ngl`, `--device`) load the back-ends while they
  are parsed, so `-lv` comes first or the lines of that moment are lost, our device's among them.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hottune.engine.facts import Backend, EngineBuild
from hottune.machine.facts import Gpu
from hottune.models.memory import stream_bytes
from hottune.models.shape import MoeShape
from hottune.placement import KvType, Placement
from hottune.units import mib

#: VRAM that fit leaves free below the ceiling on a real GPU, for what grows after loading (scratch pools,
#: kernels loaded on first use); the hot-expert device leaves as much.
FIT_GROWTH_MIB = 256
#: The virtual GPU has no such growth: its allocations are exactly those that fit foresees.
VIRTUAL_FIT_TARGET_MIB = 2
#: Least VRAM, MiB, that the hot-expert device leaves free on a real card.
HOT_HEADROOM_MIB = 256
#: Least tokens that llama.cpp's ngram-mod drafts by default; shorter drafts are dropped.
NGRAM_MOD_MIN = 48

#: Variables of a measurement that a server for people does not need.
MEASURING_ONLY = ("GGML_HOT_STATS", "GGML_HOT_SOCKET")

#: The variable that chooses among several GPUs, and its value for "none of them".
_VISIBLE_DEVICES = {
    Backend.CUDA: ("CUDA_VISIBLE_DEVICES", "-1"),
    Backend.HIP: ("HIP_VISIBLE_DEVICES", "-1"),
    Backend.VULKAN: ("GGML_VK_VISIBLE_DEVICES", ""),
}


@dataclass(frozen=True)
class Serving:
    """How people are served: the placement of a measurement without what only measuring needs.

    Prompt caches, the state of slots, and pages (where the build has some) are as llama-server has them by
    default. All of these lie in host memory, so VRAM is what was measured.
    """

    #: Address to listen on.
    host: str = "127.0.0.1"
    #: More arguments for llama-server; they come last, so they win.
    extra: tuple[str, ...] = ()


def server_argv(
    build: EngineBuild,
    model: Path,
    placement: Placement,
    *,
    shape: MoeShape,
    port: int,
    gpu: Gpu | None,
    ceiling_mib: float,
    no_warmup: bool = False,
    serving: Serving | None = None,
) -> list[str]:
    """Return the command line that serves `model` as `placement` says.

    Args:
        build: the engine.
        model: the GGUF file, or the first of a split model.
        placement: what goes where.
        shape: of the model; what fit must leave to the cache depends on the size of its experts.
        port: to listen on.
        gpu: the GPU, real or virtual; None keeps everything on the CPU.
        ceiling_mib: VRAM that the server may use, MiB; only the fit arm passes it on (as `--fit-target`).
        no_warmup: skip llama-server's empty warm-up run.
        serving: for people to use; None = for a measurement, on loopback.
    """
    argv = [
        str(build.llama_server),
        "-lv",
        "4",
        "-m",
        str(model),
        *_placing(placement, shape, gpu, ceiling_mib),
    ]
    argv += ["-c", str(placement.context * placement.parallel), "-np", str(placement.parallel)]
    # llama.cpp would quietly cut -ub down to -b.
    argv += ["-b", str(max(placement.batch, placement.ubatch)), "-ub", str(placement.ubatch)]
    argv += ["-t", str(placement.threads), "-tb", str(placement.threads)]
    argv += ["--load-mode", placement.load_mode.value]
    if gpu is None or gpu.virtual:
        # Without a GPU's pinned host buffers llama.cpp repacks some quantizations into a layout that only
        # the plain CPU back-end reads, and the hot-expert device would see no weights.
        argv.append("--no-repack")
    argv += ["-ctk", placement.kv_type_k.value, "-ctv", placement.kv_type_v.value]
    # A quantized V cache needs flash attention; else llama.cpp turns it on wherever the device has it.
    argv += ["-fa", "auto" if placement.kv_type_v is KvType.F16 else "on"]
    host = serving.host if serving else "127.0.0.1"
    argv += ["--host", host, "--port", str(port), "--offline", "--no-context-shift"]
    if serving is None:
        # Nothing that a measurement does not need: no pages, no prompt caches.
        argv += ["--no-ui", "--no-slots"]
        argv += ["--no-cache-prompt", "--cache-ram", "0", "--no-cache-idle-slots", "-ctxcp", "0"]
    argv += _speculating(placement)
    argv += ["--no-warmup"] if no_warmup else []
    return [*argv, *serving.extra] if serving else argv


def _speculating(placement: Placement) -> list[str]:
    """Return the flags of speculative decoding, with the draft's length said."""
    kind, longest, ngram = placement.spec_type, str(placement.draft_max), placement.spec_ngram
    if kind == "none":
        return []
    flags = ["--spec-type", kind]
    if kind == "ngram-cache":  # drafts 8 tokens after n-grams of up to 4, without flags for either
        return flags
    if kind == "ngram-mod":
        # The minimum may not lie above the maximum.
        shortest = str(min(NGRAM_MOD_MIN, placement.draft_max))
        flags += ["--spec-ngram-mod-n-max", longest, "--spec-ngram-mod-n-min", shortest]
        return flags + (["--spec-ngram-mod-n-match", str(ngram)] if ngram else [])
    flags += [f"--spec-{kind}-size-m", longest]
    return flags + ([f"--spec-{kind}-size-n", str(ngram)] if ngram else [])


def _placing(placement: Placement, shape: MoeShape, gpu: Gpu | None, ceiling_mib: float) -> list[str]:
    if placement.fit:
        kept_mib = fit_cache_mib(placement, shape)
        kept_mib += math.ceil(mib(stream_bytes(shape.layer_expert_bytes, placement)))
        target_mib = fit_target_mib(gpu, ceiling_mib) + kept_mib
        return ["-fit", "on", "--fit-target", str(target_mib)]
    if gpu is None:
        return ["-fit", "off", "--device", "none", "-ncmoe", str(placement.n_cpu_moe)]
    return ["-fit", "off", "-ngl", "99", "-ncmoe", str(placement.n_cpu_moe)]


def fit_target_mib(gpu: Gpu | None, ceiling_mib: float) -> int:
    """Return `--fit-target`: the VRAM, MiB, that fit must leave free of what is free when it looks.

    On a real GPU all above the ceiling stays free, and `FIT_GROWTH_MIB` below it. fit looks from inside the
    server, after the driver's own share (the CUDA context) is gone, so that share counts against the ceiling
    too: `ceiling = context + what fit places + growth`.
    """
    if gpu is None or gpu.virtual:
        return VIRTUAL_FIT_TARGET_MIB
    return max(0, math.ceil(gpu.vram_free_mib - ceiling_mib)) + FIT_GROWTH_MIB


def fit_cache_mib(placement: Placement, shape: MoeShape) -> int:
    """Return the VRAM, MiB, that a fit placement keeps for the cache: `hot_k` experts of every MoE layer."""
    return math.ceil(mib(placement.hot_k * shape.one_expert_bytes * shape.n_moe_layers))


def server_env(
    build: EngineBuild,
    placement: Placement,
    *,
    shape: MoeShape,
    gpu: Gpu | None,
    ceiling_mib: float,
    stats_path: Path,
    socket_path: Path | None = None,
    profile_path: Path | None = None,
) -> dict[str, str]:
    """Return the variables that hottune adds for llama-server (see `child_environment` for the rest).

    The device library is named only when it has something to do: a cache to keep or a virtual GPU to be.

    Args:
        build: the engine.
        placement: what goes where.
        shape: of the model.
        gpu: the GPU, real or virtual, or None.
        ceiling_mib: VRAM that the server may use, MiB; the virtual GPU enforces it, the cache respects it.
        stats_path: where the device writes its counters when the server ends.
        socket_path: Unix socket on which the device answers meanwhile; shorter than 100 characters.
        profile_path: stands for the placement's `hot_profile`, which the device writes again at the end.
    """
    hot_k = placement.hot_k
    virtual = gpu is not None and gpu.virtual
    env = device_env(build.backend, gpu)
    if hot_k == 0 and not virtual:
        return env
    env["GGML_BACKEND_PATH"] = str(build.device_library)
    if hot_k > 0 and placement.fit:
        # Which layers there will be to cache, fit decides: a budget, not a number for each.
        env["GGML_HOT_MIB"] = str(fit_cache_mib(placement, shape))
    else:
        env["GGML_HOT_K"] = str(hot_k)
    env["GGML_HOT_STATS"] = str(stats_path)
    if socket_path is not None:
        env["GGML_HOT_SOCKET"] = str(socket_path)
    if virtual:
        env["GGML_HOT_VGPU_MIB"] = str(int(ceiling_mib))
    if hot_k > 0:
        env["GGML_HOT_POLICY"] = placement.policy
        env["GGML_HOT_INTERVAL"] = str(placement.rebalance_interval)
        env["GGML_HOT_BYPASS"] = str(placement.prefill_bypass)
        env["GGML_HOT_UPLOAD_MIB"] = str(placement.upload_mib)
        if placement.stream_from:
            env["GGML_HOT_STREAM"] = str(placement.stream_from)
        if placement.shared_budget:
            env["GGML_HOT_SHARED"] = "1"
        if profile := profile_path or placement.hot_profile:
            env["GGML_HOT_PROFILE"] = str(profile)
        env["GGML_HOT_HEADROOM_MIB"] = str(_hot_headroom_mib(gpu, ceiling_mib))
    return env


def device_env(backend: Backend, gpu: Gpu | None) -> dict[str, str]:
    """Return the variables that show a server the one GPU that it is to use."""
    env: dict[str, str] = {}
    if gpu is None:
        return env
    if backend in _VISIBLE_DEVICES:
        variable, none_of_them = _VISIBLE_DEVICES[backend]
        env[variable] = none_of_them if gpu.virtual else str(gpu.index)  # a virtual GPU stands alone
    if backend is Backend.CUDA:
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # NVML's order
    return env


def server_command(
    build: EngineBuild,
    model: Path,
    placement: Placement,
    *,
    shape: MoeShape,
    port: int,
    gpu: Gpu | None,
    ceiling_mib: float,
    serving: Serving | None = None,
    profile_path: Path | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Return a placement's command line and the variables hottune adds, to show (see the two above)."""
    argv = server_argv(
        build, model, placement, shape=shape, port=port, gpu=gpu, ceiling_mib=ceiling_mib, serving=serving
    )
    stats_path = Path("hot-stats.json")
    env = server_env(
        build,
        placement,
        shape=shape,
        gpu=gpu,
        ceiling_mib=ceiling_mib,
        stats_path=stats_path,
        profile_path=profile_path,
    )
    if serving is not None:
        env = {name: value for name, value in env.items() if name not in MEASURING_ONLY}
    return argv, env


def _hot_headroom_mib(gpu: Gpu | None, ceiling_mib: float) -> int:
    """Return what the cache must leave free, MiB: all above the ceiling, so it can never break it."""
    if gpu is None or gpu.virtual:  # the cap itself is the ceiling
        return 0
    return max(HOT_HEADROOM_MIB, math.ceil(gpu.vram_free_mib - ceiling_mib))


def child_environment(added: Mapping[str, str], inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the whole environment for llama-server: ours without foreign settings, plus `added`.

    `LLAMA_ARG_*` works like a flag (an inherited `LLAMA_ARG_N_GPU_LAYERS` would make fit give up) and many
    `GGML_*` variables change speed or memory; none may come in unseen, so that the report's argv and env are
    the whole truth.
    """
    source = os.environ if inherited is None else inherited
    kept = {name: value for name, value in source.items() if not name.startswith(("LLAMA_", "GGML_"))}
    return kept | dict(added)


def shell_command(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return one line to paste into a shell: environment assignments, then the quoted command."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in env.items()), shlex.join(argv)])
