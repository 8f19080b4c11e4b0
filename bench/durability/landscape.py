"""A study without servers: a plan for a machine that does not exist, and measurements by formula.

What is tested is the study's bookkeeping, so the numbers only have to be distinct and repeatable.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import made_up
from hottune.engine.facts import Backend, EngineBuild
from hottune.machine.facts import Cpu, Machine
from hottune.models.memory import estimate
from hottune.models.shape import ModelFile, MoeShape
from hottune.outcomes import Measurement, NotEngaged, Outcome, OutOfMemory, RequestSample
from hottune.placement import Placement
from hottune.search.recorder import Measure
from hottune.tasks import prepare
from hottune.tasks.prepare import Plan
from hottune.tasks.settings import RunConfig
from hottune.units import MIB

SHAPE = MoeShape(
    architecture="qwen3moe",
    n_layers=24,
    n_experts=64,
    n_used=4,
    n_embd=64,
    n_ff_expert=64,
    n_params=1,
    layer_expert_bytes=(64 * MIB,) * 24,
    layer_dense_bytes=(MIB,) * 24,
    other_bytes=2 * MIB,
    host_bytes=MIB,
    kv_elements_k=64,
    kv_elements_v=64,
    context_train=4096,
    n_vocab=1000,
    quant="Q4_K",
)
#: Standard deviation of a turn's wall-clock, as a share: what real replicates showed.
NOISE = 0.03


def plan(folder: Path, **changes: Any) -> Plan:
    """Return a plan on the virtual GPU whose files all lie in one folder."""
    settings: dict[str, Any] = {
        "model": "/models/formula.gguf",
        "cache_dir": folder / "cache",
        "studies_dir": folder / "studies",
        "reports_dir": folder / "reports",
        "trials": 30,
        "replicates": 3,
        "ubatches": (64,),
        "study": "formula",
    }
    engine = EngineBuild(
        llama_server=Path("/bin/llama-server"),
        device_library=Path("/lib/libggml-hot.so"),
        backend=Backend.CPU,
        llama_build="none",
        source="none: measurements by formula",
        api_version=1,
        compiler="none",
        options=(),
        key="formula",
    )
    model = ModelFile(
        argument="/models/formula.gguf",
        name="formula",
        path=Path("/models/formula.gguf"),
        size_bytes=1600 * MIB,
        fingerprint="f" * 64,
        synthetic=True,
        shape=SHAPE,
    )
    cpu = Cpu(name="formula", physical_cores=4, logical_cores=8, features=())
    machine = Machine(system="Linux", cpu=cpu, ram_total_mib=32000, ram_available_mib=30000)
    return prepare.plan(RunConfig(**(settings | changes)), engine, model, machine)


def measuring(
    ceiling_mib: float,
    pause_s: float,
    counted: Callable[[Placement], int] = lambda placement: 0,
    *,
    surprise_mib: float = 24,
) -> Measure:
    """Return what measures by formula.

    Args:
        ceiling_mib: above it, a placement runs out of memory.
        pause_s: seconds that a measurement takes.
        counted: a number that makes repeated measurements of a placement differ.
        surprise_mib: what a cache needs more than the memory model says, so that studies learn from it.
    """

    def measure(placement: Placement) -> Outcome:
        time.sleep(pause_s)
        if placement.fit:
            return NotEngaged(detail="fit placed nothing")
        need_mib = estimate(SHAPE, placement).vram_mib + surprise_mib * (placement.hot_k > 0)
        if need_mib > ceiling_mib:
            return OutOfMemory(stage="load", detail=f"needs {need_mib:.0f} MiB")
        return measured(placement, _turn_s(placement) * _wobble(placement, counted(placement)), need_mib)

    return measure


def _turn_s(placement: Placement) -> float:
    """Return seconds: best with everything in one large cache that is rebalanced about every 64 tokens."""
    hits = (placement.hot_k / SHAPE.n_experts) ** 0.5
    away = abs(placement.rebalance_interval - 64) / 512
    return 0.2 + 0.8 * placement.n_cpu_moe / SHAPE.n_layers * (1 - hits) + 0.1 * away


def _wobble(placement: Placement, count: int) -> float:
    digest = hashlib.sha256(f"{placement.model_dump_json()} {count}".encode()).digest()
    return 1 + NOISE * (2 * int.from_bytes(digest[:4], "big") / 2**32 - 1) * 3**0.5


def measured(placement: Placement, turn_s: float, vram_mib: float, *, text: str = "text") -> Measurement:
    """Return a measurement with one request, of which three quarters of the experts were in the cache."""
    sample = RequestSample(
        workload="chat",
        warmup=False,
        prompt_tokens=100,
        output_tokens=101,
        prefill_ms=100,
        decode_ms=1000 * turn_s,
        ttft_ms=110,
        turn_s=turn_s,
        token_ms=[1.0],
        text_sha256=text,
    )
    return made_up.measured(sample, vram_mib, made_up.hot_stats(placement, 3, 1), load_s=1)
