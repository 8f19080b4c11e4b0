"""A benchmark without servers: all numbers are invented, and a fake bench answers what is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.device.options import Options, parse
from bench.device.room import Settings
from bench.device.setting import Setting
from hottune.engine.facts import Backend, EngineBuild
from hottune.machine.facts import Cpu, Gpu, Machine
from hottune.models.shape import ModelFile, MoeShape
from hottune.outcomes import Engagement, HotStats, Measurement, Outcome, RequestSample
from hottune.placement import Placement
from hottune.report.schema import Report
from hottune.units import MIB, mib
from hottune.workload.workloads import load_workload

SHAPE = MoeShape(
    architecture="qwen3moe",
    n_layers=10,
    n_experts=100,
    n_used=8,
    n_embd=2048,
    n_ff_expert=768,
    n_params=1,
    layer_expert_bytes=(100 * MIB,) * 10,
    layer_dense_bytes=(10 * MIB,) * 10,
    other_bytes=100 * MIB,
    host_bytes=0,
    kv_elements_k=512,
    kv_elements_v=512,
    context_train=32768,
    n_vocab=32000,
    quant="Q4_K",
)
#: Peak of all-cpu.
BASE_MIB = 500.0
GPU = Gpu(index=0, name="NVIDIA Made Up", vram_total_mib=24000, vram_free_mib=23500, driver="580.1")


def measured(
    decode: float,
    prefill: float = 1000.0,
    *,
    vram: float = BASE_MIB,
    hot: HotStats | None = None,
    **more: Any,
) -> Measurement:
    facts: dict[str, Any] = {
        "prefill_tok_s": prefill,
        "decode_tok_s": decode,
        "ttft_ms": 500.0,
        "turn_s": 5.0,
        "token_ms_p50": 10.0,
        "token_ms_p95": 10.0,
        "token_ms_p99": 10.0,
        "vram_peak_mib": vram,
        "vram_source": "process",
        "load_s": 10.0,
        "engagement": Engagement(
            gpu_device="CUDA0",
            vram_model_mib=1,
            vram_kv_mib=1,
            vram_compute_mib=1,
            host_model_mib=1,
            hot=hot,
        ),
        "requests": [
            RequestSample(
                workload="document",
                warmup=False,
                prompt_tokens=100,
                output_tokens=10,
                prefill_ms=1,
                decode_ms=1,
                ttft_ms=1,
                turn_s=1,
                text_sha256="0",
            )
        ],
    }
    return Measurement(**facts | more)


def counters(slots: int, n_layers: int = 10, stream_mib: float = 0.0) -> HotStats:
    return HotStats(
        slots=slots,
        layers=n_layers,
        hits=600,
        misses=400,
        uploads=50,
        uploaded_bytes=50 * MIB,
        cache_bytes=slots * n_layers * MIB,
        stream_buffer_bytes=int(stream_mib * MIB),
        time_us={"submit": 10.0, "cold": 50.0, "wait": 5.0, "swap": 1.0},
    )


def answer(placement: Placement) -> Outcome:
    """What an ideal machine measures: everything takes the bytes it should."""
    whole = mib(sum(SHAPE.layer_expert_bytes[placement.n_cpu_moe :]))
    if placement.hot_k:
        stream = 100.0 if 0 < placement.stream_from <= placement.ubatch else 0.0
        hot = counters(placement.hot_k, placement.n_cpu_moe, stream)
        return measured(30, 2000, vram=BASE_MIB + whole + mib(hot.cache_bytes) + stream, hot=hot)
    return measured(20 + whole / 100, 1000 + placement.ubatch, vram=BASE_MIB + whole)


@dataclass
class FakeBench:
    """Stands for what measures a placement in real servers."""

    answer: Callable[[Placement], Outcome] = answer
    asked: list[tuple[Placement, float]] = field(default_factory=list)
    ceiling_mib: float = 0.0
    kept: int = 0

    def measure(self, placement: Placement) -> Outcome:
        self.asked.append((placement, self.ceiling_mib))
        return self.answer(placement)

    def keeping(self) -> FakeBench:
        return self

    def __enter__(self) -> FakeBench:
        self.kept += 1
        return self

    def __exit__(self, *_: object) -> None:
        return None


def options(folder: Path, *arguments: str) -> Options:
    given = ("demo", "--ceilings", "25,50", "--ubatches", "512,2048", "--out", str(folder / "out.json"))
    return parse([*given, *arguments])


def frame(options: Options) -> Report:
    return Report(
        hottune_version="0.1.0",
        created=datetime(2026, 3, 1, tzinfo=UTC),
        command=options.command,
        study="device-benchmark",
        objective="none",
        ceiling_mib=0,
        model=ModelFile(
            argument="big.gguf",
            name="big",
            path=Path("big.gguf"),
            size_bytes=1 << 30,
            fingerprint="f",
            synthetic=False,
            shape=SHAPE,
        ),
        machine=Machine(
            system="Linux",
            cpu=Cpu(name="A CPU", physical_cores=16, logical_cores=32, features=()),
            ram_total_mib=64000,
            ram_available_mib=60000,
            gpus=(GPU,),
        ),
        engine=EngineBuild(
            llama_server=Path("llama-server"),
            device_library=Path("libggml-hot.so"),
            backend=Backend.CUDA,
            llama_build="b11434",
            source="",
            api_version=1,
            compiler="c++",
            options=(),
            key="k",
        ),
        workload=load_workload("document"),
        arms=[],
        winner=None,
        trials=[],
        seconds=0,
    )


def setting(options: Options, bench: FakeBench) -> Setting:
    hot = {"policy": options.policy, "stream_from": options.stream, "prefill_bypass": 1}
    base = Placement(n_cpu_moe=10, threads=8, context=4096)
    placements = Settings(base, hot, options.stream_layers, 0.0, options.split)
    measures: Any = bench
    return Setting(options, frame(options), GPU, options.threads or (8,), placements, None, measures, None)
