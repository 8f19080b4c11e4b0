"""The yardstick: a back-end plug-in made from one C++ file, with counters on standard error when it ends."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from hottune.engine.server import Server
from hottune.engine.toolchain import find_compiler
from hottune.errors import BuildFailedError
from hottune.machine.vram import VramSampler
from hottune.machine.watch import MachineWatch
from hottune.models.shape import MoeShape
from hottune.outcomes import HotStats, Measurement, NotEngaged, Outcome
from hottune.placement import Placement
from hottune.tasks.measure import Bench

INTERVAL = 60
#: Smallest batch, tokens, whose experts it streams through VRAM.
STREAM_FROM = 32
#: Layers that it holds whole in VRAM while it streams.
STREAM_LAYERS = 2
#: What its placements say of it.
PLACEMENT: dict[str, object] = {
    "policy": "window",
    "rebalance_interval": INTERVAL,
    "stream_from": STREAM_FROM,
}

_LIBRARY = re.compile(r"lib(ggml(?:-base)?)\.(?:so|dylib)(?:\.[\d.]+)?$")
_HITS = re.compile(
    r"hot: hit (?P<hit>[\d.]+) swaps (?P<swaps>\d+) calls (?P<calls>\d+)"
    r"(?: per-call us: submit (?P<submit>[\d.]+) cpu (?P<cold>[\d.]+) wait (?P<wait>[\d.]+)"
    r" swap (?P<swap>[\d.]+))?"
)
_PREFILL = re.compile(r"hot: prefill blocks (?P<blocks>\d+) upload GB (?P<gb>[\d.]+)")


def build_probe(source: Path, llama_source: Path, lib_dir: Path, folder: Path) -> Path:
    """Compile the plug-in beside a llama.cpp and return the library; what is there already is kept.

    Args:
        source: the C++ file.
        llama_source: llama.cpp's source, of the very build that will load it.
        lib_dir: folder with that build's libggml and libggml-base.
        folder: where the library goes.

    Raises:
        BuildFailedError: the compiler refuses, or the libraries are missing.
    """
    compiler = shlex.split(find_compiler().cxx)
    found = {match[1]: path for path in sorted(lib_dir.iterdir()) if (match := _LIBRARY.match(path.name))}
    if set(found) != {"ggml", "ggml-base"}:
        raise BuildFailedError(f"There are no libggml and libggml-base in {lib_dir}.")
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC"]
    flags += [f"-I{llama_source / 'ggml' / part}" for part in ("include", "src")]
    libraries = [str(found["ggml"]), str(found["ggml-base"]), f"-Wl,-rpath,{lib_dir}"]
    state = f"{compiler}{flags}{libraries}".encode() + source.read_bytes()
    out = folder / f"probe-{hashlib.sha256(state).hexdigest()[:12]}.so"
    if not out.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_suffix(".partial")
        argv = [*compiler, *flags, "-o", str(unfinished), str(source.absolute()), *libraries]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildFailedError(f"{source} does not compile.", done.stderr[-2000:], shlex.join(argv))
        unfinished.replace(out)
    return out


def probe_env(library: Path, hot_k: int) -> dict[str, str]:
    """Return the variables by which llama-server loads the plug-in with `hot_k` slots."""
    return {
        "GGML_BACKEND_PATH": str(library),
        "HOT_K": str(hot_k),
        "HOT_INTERVAL": str(INTERVAL),
        "HOT_PP": str(STREAM_FROM),
    }


def read_counters(log: str, placement: Placement, shape: MoeShape) -> HotStats | None:
    """Return the counters that the plug-in printed when it ended; None when it printed none.

    What it does not print is computed: the bytes of its slots, of its prefill buffers and of its uploads.
    """
    lines = list(_HITS.finditer(log))
    if not lines or int(lines[-1]["calls"]) == 0:
        return None
    last = lines[-1]
    choices = int(last["calls"]) * shape.n_used
    hits = round(float(last["hit"]) * choices)
    slots = min(placement.hot_k, shape.n_experts)
    n_layers = sum(1 for layer in shape.layer_expert_bytes[: placement.n_cpu_moe] if layer)
    each_bytes = sum(layer // shape.n_experts for layer in shape.layer_expert_bytes[: placement.n_cpu_moe])
    streamed = [(int(one["blocks"]), float(one["gb"])) for one in _PREFILL.finditer(log)]
    blocks, gb = streamed[-1] if streamed else (0, 0.0)
    phases = ("submit", "cold", "wait", "swap")
    return HotStats(
        slots=slots,
        layers=n_layers,
        hits=hits,
        misses=choices - hits,
        uploads=int(last["swaps"]),
        uploaded_bytes=int(last["swaps"]) * (each_bytes // max(1, n_layers)),
        cache_bytes=each_bytes * slots,
        time_us={phase: float(last[phase]) for phase in phases if last[phase]},
        policy="window",
        stream_blocks=blocks,
        stream_bytes=int(gb * 1e9),
        stream_buffer_bytes=STREAM_LAYERS * max(shape.layer_expert_bytes) if blocks else 0,
    )


@dataclass
class ProbeBench(Bench):
    """Measures placements with the yardstick in the device's place."""

    library: Path = Path()
    _wanted: Placement | None = field(default=None, init=False)

    def measure(self, placement: Placement) -> Outcome:
        """Start a fresh server with `placement.hot_k` slots of the yardstick, and measure it."""
        self.extra_env = probe_env(self.library, placement.hot_k)
        self._wanted = placement
        return super().measure(placement.model_copy(update={"hot_k": 0, "stream_from": 0}))

    def _measure_in(
        self, server: Server, placement: Placement, vram: VramSampler, watch: MachineWatch
    ) -> Outcome:
        # This stops the server: it has no device.
        outcome = super()._measure_in(server, placement, vram, watch)
        if not isinstance(outcome, Measurement) or self._wanted is None:
            return outcome
        server.stop()
        hot = read_counters(server.log_text(), self._wanted, self.model.shape)
        if hot is None:
            return NotEngaged(detail="the plug-in printed no counters", log_tail=server.log_tail())
        engaged = outcome.engagement.model_copy(update={"hot": hot})
        return outcome.model_copy(update={"engagement": engaged})


def beside(bench: Bench, library: Path) -> ProbeBench:
    """Return what measures the yardstick just as `bench` measures everything else."""
    return ProbeBench(
        bench.engine,
        bench.model,
        bench.gpu,
        bench.ceiling_mib,
        bench.workload,
        bench.log_dir,
        library=library,
    )
