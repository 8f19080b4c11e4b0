"""Every way to fail ends as its own type, with the log's last lines, and leaves no process: real servers."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest
from hottune_command import gone_within, require_engine, servers_of

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, find_engine
from hottune.machine.probe import virtual_gpu
from hottune.models.resolve import load_model, resolve_model
from hottune.outcomes import Crashed, Garbage, Measurement, NotEngaged, Outcome, OutOfMemory, TimedOut
from hottune.placement import KvType, Placement
from hottune.stats.divergence import divergence
from hottune.tasks.measure import Bench
from hottune.workload.workloads import load_workload

pytestmark = pytest.mark.real
ROOMY_MIB = 2048


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    require_engine()
    engine = find_engine(BuildOptions(backend="cpu"), cache_dir=cache_dir())
    assert engine is not None
    return Bench(
        engine=engine,
        model=resolve_model("demo", cache_dir=cache_dir()),
        gpu=virtual_gpu(ROOMY_MIB),
        ceiling_mib=ROOMY_MIB,
        workload=load_workload("chat", scale=0.1),
        log_dir=tmp_path / "logs",
    )


@pytest.fixture(autouse=True)
def no_server_is_left() -> Iterator[None]:
    yield
    assert gone_within(servers_of(os.getpid()), 1)


def placement(bench: Bench, **changes: object) -> Placement:
    facts: dict[str, object] = {"n_cpu_moe": bench.model.shape.n_layers, "threads": 1, "context": 512}
    return Placement.model_validate(facts | changes)


def in_the_second_request(bench: Bench, what: Callable[[psutil.Process], None]) -> None:
    """Let something happen to the server a moment after its second request was sent."""

    def note(line: str) -> None:
        if line.startswith("request 2 "):
            (server,) = servers_of(os.getpid())
            threading.Timer(0.05, what, [server]).start()

    bench.workload = load_workload("chat", scale=0.5)  # long enough for it to happen within the answer
    bench.note = note


def ended_as(outcome: Outcome, kind: type) -> str:
    """Check the type, and that it tells why and how the log ended; return why."""
    assert isinstance(outcome, kind), outcome
    assert not isinstance(outcome, Measurement)
    assert outcome.log_tail
    return outcome.detail


def test_a_cache_without_a_layer_to_cache_is_not_engaged(bench: Bench) -> None:
    why = ended_as(bench.measure(placement(bench, n_cpu_moe=0, hot_k=16)), NotEngaged)
    assert "hot-expert device" in why


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_without_a_device_in_it_is_not_engaged(bench: Bench, tmp_path: Path) -> None:
    empty = tmp_path / "libggml-hot.so"
    subprocess.run(["cc", "-shared", "-o", empty, "-x", "c", "/dev/null"], check=True)
    bench.engine = bench.engine.model_copy(update={"device_library": empty})
    why = ended_as(bench.measure(placement(bench, hot_k=16)), NotEngaged)
    assert "libggml-hot.so" in why


def test_a_fit_that_gave_up_is_not_engaged(bench: Bench) -> None:
    everything = bench.measure(placement(bench, n_cpu_moe=0))
    assert isinstance(everything, Measurement)
    ceiling_mib = math.ceil(everything.vram_peak_mib) + 1  # fits, but fit leaves 2 MiB and so wants to move
    bench.gpu, bench.ceiling_mib = virtual_gpu(ceiling_mib), ceiling_mib
    bench.extra_env = {"LLAMA_ARG_N_GPU_LAYERS": "99"}
    why = ended_as(bench.measure(placement(bench, fit=True)), NotEngaged)
    assert "fit gave up" in why


def test_a_fit_that_had_nothing_to_do_for_somebody_else_had_placed_is_not_engaged(bench: Bench) -> None:
    bench.extra_env = {"LLAMA_ARG_N_GPU_LAYERS": "1"}
    why = ended_as(bench.measure(placement(bench, fit=True)), NotEngaged)
    assert "1 of 7 layers" in why


def test_a_ceiling_below_what_is_needed_is_out_of_memory(bench: Bench) -> None:
    bench.gpu, bench.ceiling_mib = virtual_gpu(4), 4
    outcome = bench.measure(placement(bench, n_cpu_moe=0))
    ended_as(outcome, OutOfMemory)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.stage == "load"


def test_a_server_that_dies_in_a_request_is_a_crash_with_its_signal(bench: Bench) -> None:
    in_the_second_request(bench, lambda server: server.send_signal(signal.SIGSEGV))
    outcome = bench.measure(placement(bench))
    ended_as(outcome, Crashed)
    assert isinstance(outcome, Crashed)
    assert outcome.exit_code == -signal.SIGSEGV


def test_a_server_that_hangs_in_a_stream_is_timed_out_and_killed(bench: Bench) -> None:
    bench.request_timeout_s = 10.0  # ample for an answer, also on a busy machine
    in_the_second_request(bench, lambda server: server.suspend())
    outcome = bench.measure(placement(bench))
    assert "silent" in ended_as(outcome, TimedOut)
    assert isinstance(outcome, TimedOut)
    assert (outcome.stage, outcome.limit_s) == ("request", 10.0)


def test_a_model_whose_logits_are_no_numbers_is_garbage(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    shutil.copyfile(bench.model.path, path)
    (norm,) = [one for one in gguf.GGUFReader(path, "r+").tensors if one.name == "output_norm.weight"]
    norm.data[:] = np.nan
    norm.data.flush()
    bench.model = load_model(path, str(path))
    why = ended_as(bench.measure(placement(bench)), Garbage)
    assert "not finite" in why or "no text" in why


def test_a_scored_server_tells_its_next_tokens_and_its_counters_are_those_of_the_workload(
    bench: Bench,
) -> None:
    cpu, hot = placement(bench), placement(bench, hot_k=16)
    with bench.scoring({cpu: 1, hot: 1}):
        reference, scored, plain = bench.measure(cpu), bench.measure(hot), bench.measure(hot)
    for one in (reference, scored, plain):
        assert isinstance(one, Measurement), one
    assert plain.next_tokens is None
    tops = reference.next_tokens.tops
    assert len({next(iter(top)) for top in tops}) > 10, "the sampler's bias is not in the probabilities"
    assert all(0.2 < sum(math.exp(one) for one in top.values()) < 1.001 for top in tops)
    found = divergence(reference.next_tokens.tops, scored.next_tokens.tops)
    assert found.kld < 1e-3
    assert found.same_top > 0.95
    counted = [one.engagement.hot.hits + one.engagement.hot.misses for one in (scored, plain)]
    assert counted[0] == counted[1]


def test_a_coarser_kv_cache_is_seen_in_the_divergence(bench: Bench) -> None:
    exact = placement(bench)
    coarse = exact.model_copy(update={"kv_type_k": KvType.Q4_0, "kv_type_v": KvType.Q4_0})
    with bench.scoring({exact: 1, coarse: 1}):
        one, other = bench.measure(exact), bench.measure(coarse)
    assert isinstance(one, Measurement)
    assert isinstance(other, Measurement)
    assert one.next_tokens is not None
    assert other.next_tokens is not None
    found = divergence(one.next_tokens.tops, other.next_tokens.tops)
    assert 1e-5 < found.kld < 1
