"""A plan for a machine that does not exist, and the simulated servers to measure it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.durability import landscape
from hottune.engine.facts import Backend, EngineBuild
from hottune.machine.facts import Cpu, Gpu, Machine
from hottune.models.memory import estimate
from hottune.models.shape import ModelFile, MoeShape
from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.tasks import prepare
from hottune.tasks.prepare import Plan
from hottune.tasks.settings import RunConfig
from hottune.units import MIB

SHAPE = MoeShape(
    architecture="qwen3moe",
    n_layers=8,
    n_experts=16,
    n_used=2,
    n_embd=64,
    n_ff_expert=64,
    n_params=1,
    layer_expert_bytes=(16 * MIB,) * 8,
    layer_dense_bytes=(MIB,) * 8,
    other_bytes=2 * MIB,
    host_bytes=MIB,
    kv_elements_k=64,
    kv_elements_v=64,
    context_train=4096,
    n_vocab=1000,
    quant="Q4_K",
)


def config(folder: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": "/models/m.gguf",
        "cache_dir": folder / "cache",
        "studies_dir": folder / "studies",
        "reports_dir": folder / "reports",
        "trials": 4,
        "replicates": 3,
        "ubatches": (64,),
    }
    return RunConfig(**(settings | changes))


def engine(backend: Backend = Backend.CPU) -> EngineBuild:
    return EngineBuild(
        llama_server=Path("/bin/llama-server"),
        device_library=Path("/lib/libggml-hot.so"),
        backend=backend,
        llama_build="b1",
        source="test",
        api_version=1,
        compiler="c++",
        options=(),
        key="key",
    )


def model() -> ModelFile:
    return ModelFile(
        argument="/models/m.gguf",
        name="m",
        path=Path("/models/m.gguf"),
        size_bytes=150 * MIB,
        fingerprint="f" * 64,
        synthetic=False,
        shape=SHAPE,
    )


def gpu(free_mib: float = 20000.0, index: int = 0) -> Gpu:
    return Gpu(index=index, name=f"GPU {index}", vram_total_mib=24000, vram_free_mib=free_mib)


def machine(*gpus: Gpu) -> Machine:
    cpu = Cpu(name="cpu", physical_cores=4, logical_cores=8, features=())
    return Machine(system="Linux", cpu=cpu, ram_total_mib=32000, ram_available_mib=30000, gpus=gpus)


def plan(folder: Path, **changes: Any) -> Plan:
    return prepare.plan(config(folder, **changes), engine(), model(), machine())


def measured(placement: Placement, turn_s: float, text: str = "t") -> Measurement:
    return landscape.measured(placement, turn_s, estimate(SHAPE, placement).vram_mib, text=text)
