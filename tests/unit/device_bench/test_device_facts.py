"""Texts, bound and shapes of the benchmark."""

from __future__ import annotations

import pytest
from device_rows import SHAPE, counters, measured

from bench.device.models import SHAPES, command
from bench.device.work import make_work
from hottune.outcomes import HotStats
from hottune.placement import Placement
from hottune.routing.bound import Bandwidths
from hottune.tasks.roofline import decode_bound, token_load
from hottune.workload.texts import load_text
from hottune.workload.workloads import load_workload

MACHINE = Bandwidths(cpu=50, hbm=2000, pcie_h2d=50, cpu_overlapped=40, pcie_overlapped=40)
WORK = load_workload("document")
ALL_CPU = Placement(n_cpu_moe=10, threads=8)


def bound(placement: Placement, hot: HotStats | None = None) -> float:
    found = decode_bound(SHAPE, placement, [measured(20, hot=hot)], WORK, MACHINE)
    assert found is not None
    return found


def test_two_requests_warm_up_and_measure() -> None:
    work = make_work("document", requests=1)
    assert [(one.prompt_tokens, one.output_tokens) for one in work.requests] == [(2930, 300)] * 2
    assert work.warmup_requests == 1
    assert make_work("document", requests=2).sha256 == WORK.sha256


def test_more_requests_than_texts_and_long_prompts_have_texts_of_their_own() -> None:
    many = make_work("document", requests=4)
    assert len({one.text for one in many.requests}) == 5
    long = make_work("document", requests=1, prompt_tokens=32768, output_tokens=50)
    assert [(one.prompt_tokens, one.output_tokens) for one in long.requests] == [(32768, 50)] * 2
    texts = [load_text(one.text) for one in long.requests]
    assert texts[0][:4000] not in texts[1]
    assert all(len(text) >= 6 * 32768 for text in texts)


def test_the_bound_rises_with_hits_and_with_layers_in_vram() -> None:
    assert bound(ALL_CPU) < bound(ALL_CPU.model_copy(update={"hot_k": 20}), counters(20))
    assert bound(ALL_CPU) < bound(ALL_CPU.model_copy(update={"n_cpu_moe": 5}))
    # 8 experts of 1 MiB in each of 10 layers at 50 GB/s, and little beside
    assert bound(ALL_CPU) == pytest.approx(50e9 / (80 * 2**20), rel=0.1)


def test_layers_with_their_own_hit_rates_and_uploads_are_in_the_load() -> None:
    hot = counters(20).model_copy(update={"layer_hit_rate": [1.0, *[0.0] * 9]})
    load = token_load(SHAPE, ALL_CPU, hot, kv_bytes=0)
    assert load.layers[0].misses[0] == 1
    assert load.layers[1].misses[-1] == 1
    assert load.uploaded_bytes == pytest.approx(hot.uploaded_bytes / (1000 / 80))


def test_there_is_no_bound_where_it_would_mean_nothing() -> None:
    for placement, machine in (
        (ALL_CPU, None),
        (ALL_CPU.model_copy(update={"fit": True}), MACHINE),
        (ALL_CPU.model_copy(update={"spec_type": "ngram-simple"}), MACHINE),
    ):
        assert decode_bound(SHAPE, placement, [measured(20)], WORK, machine) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_a_command_that_inflates_the_demo(shape: str, tmp_path) -> None:
    argv = command(shape, tmp_path / "x.gguf")
    assert argv[:3] == ["models", "inflate", "demo"]
    assert {"--layers", "--experts", "--used", "--embd", "--ff"} <= set(argv)
