"""Engine builds, models and placements for tests: small, valid, and changed by keyword."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hottune.engine.facts import Backend, EngineBuild
from hottune.machine.facts import Gpu
from hottune.machine.probe import virtual_gpu
from hottune.models.shape import ModelFile, MoeShape
from hottune.placement import Placement

REAL_GPU = Gpu(index=1, name="NVIDIA Test 24G", vram_total_mib=24576, vram_free_mib=24000)
VIRTUAL_GPU = virtual_gpu(64)


def engine_build(**changes: Any) -> EngineBuild:
    facts: dict[str, Any] = {
        "llama_server": Path("/engine/bin/llama-server"),
        "device_library": Path("/engine/libggml-hot.so"),
        "backend": Backend.CPU,
        "llama_build": "b11434",
        "source": "test",
        "api_version": 2,
        "compiler": "g++ 12",
        "options": (),
        "key": "test",
    }
    return EngineBuild(**(facts | changes))


def placement(**changes: Any) -> Placement:
    return Placement(**({"n_cpu_moe": 3, "threads": 2, "context": 1024} | changes))


def model_file(path: Path) -> ModelFile:
    shape = MoeShape(
        architecture="qwen3moe",
        n_layers=4,
        n_experts=32,
        n_used=8,
        n_embd=256,
        n_ff_expert=256,
        n_params=1,
        layer_expert_bytes=(1,) * 4,
        layer_dense_bytes=(1,) * 4,
        other_bytes=1,
        host_bytes=1,
        kv_elements_k=1,
        kv_elements_v=1,
        context_train=4096,
        n_vocab=1,
        quant="Q4_K",
    )
    size = path.stat().st_size if path.exists() else 1
    return ModelFile(
        argument=str(path),
        name=path.stem,
        path=path,
        size_bytes=size,
        fingerprint="test",
        synthetic=True,
        shape=shape,
    )
