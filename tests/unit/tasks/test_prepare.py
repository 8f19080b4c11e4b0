from __future__ import annotations

from pathlib import Path

import planned
import pytest

from hottune.engine.facts import Backend
from hottune.errors import BadSettingError, CeilingTooSmallError
from hottune.models.memory import estimate
from hottune.tasks import prepare


def real(folder: Path, *gpus: object, **changes: object) -> prepare.Plan:
    machine = planned.machine(*gpus)  # type: ignore[arg-type]
    return prepare.plan(
        planned.config(folder, **changes), planned.engine(Backend.CUDA), planned.model(), machine
    )


def test_without_a_gpu_the_ceiling_is_a_squeeze_on_the_virtual_one(tmp_path: Path) -> None:
    plan = planned.plan(tmp_path)
    assert plan.gpu.virtual
    always = estimate(planned.SHAPE, plan.space.all_cpu(64)).vram_mib
    assert plan.ceiling_mib == pytest.approx(always + 0.35 * 128, abs=1)
    assert plan.ceiling_mib < estimate(planned.SHAPE, plan.space.layers(0, 64)).vram_mib


def test_with_a_gpu_the_ceiling_is_what_is_free_less_the_headroom(tmp_path: Path) -> None:
    assert real(tmp_path, planned.gpu(20000)).ceiling_mib == 20000 - 512


def test_the_gpu_with_most_room_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    both = planned.gpu(9000, 0), planned.gpu(15000, 1)
    assert real(tmp_path, *both).gpu.index == 1
    assert real(tmp_path, *both, gpu=0).gpu.index == 0
    with pytest.raises(BadSettingError, match="no GPU 7"):
        real(tmp_path, *both, gpu=7)


def test_more_vram_than_is_free_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="more than is free"):
        real(tmp_path, planned.gpu(8000), vram_mib=9000)


def test_a_ceiling_below_the_dense_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CeilingTooSmallError):
        planned.plan(tmp_path, vram_mib=5)


def test_a_context_too_short_for_the_workload_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="too short"):
        planned.plan(tmp_path, context=100)


def test_the_context_holds_the_longest_request(tmp_path: Path) -> None:
    plan = planned.plan(tmp_path, workload="document")
    longest = max(one.prompt_tokens + one.output_tokens for one in plan.workload.requests)
    assert plan.space.base.context > longest


def test_a_model_larger_than_memory_needs_mmap(tmp_path: Path) -> None:
    huge = planned.model().model_copy(update={"size_bytes": 10**14})
    with pytest.raises(BadSettingError, match="larger than this machine's memory"):
        prepare.plan(planned.config(tmp_path, load_mode="none"), planned.engine(), huge, planned.machine())
    relaxed = planned.config(tmp_path, load_mode="mmap")
    assert prepare.plan(relaxed, planned.engine(), huge, planned.machine()).space.base.load_mode == "mmap"


def test_ubatches_are_those_that_the_prompts_can_fill(tmp_path: Path) -> None:
    assert real(tmp_path, planned.gpu(), ubatches=()).space.ubatches == (512,)
    document = real(tmp_path, planned.gpu(), ubatches=(), workload="document")
    assert document.space.ubatches == (512, 2048, 4096)


def test_quick_keeps_one_ubatch(tmp_path: Path) -> None:
    quick = real(tmp_path, planned.gpu(), ubatches=(), workload="document", quick=True)
    assert quick.space.ubatches == (2048,)


def test_threads_are_tried_up_to_the_physical_cores(tmp_path: Path) -> None:
    assert real(tmp_path, planned.gpu()).space.threads == (3, 2, 1)
    assert real(tmp_path, planned.gpu(), threads=2).space.threads == ()


def test_quick_shortens_the_workload_unless_a_scale_is_given(tmp_path: Path) -> None:
    assert planned.plan(tmp_path, quick=True).workload.requests[0].output_tokens == 100
    assert planned.plan(tmp_path, quick=True, scale=1.0).workload.requests[0].output_tokens == 300


def test_a_study_is_named_after_what_is_measured_on_what(tmp_path: Path) -> None:
    name = planned.plan(tmp_path).name
    assert name == planned.plan(tmp_path).name
    assert name.startswith("m-chat-")
    for change in ({"vram_mib": 90}, {"workload": "code"}, {"threads": 1}, {"ubatches": (32,)}):
        assert planned.plan(tmp_path, **change).name != name
    for change in ({"trials": 9}, {"replicates": 9}, {"seed": 4}, {"time_budget_s": 9}):
        assert planned.plan(tmp_path, **change).name == name
    assert planned.plan(tmp_path, study="mine").name == "mine"


def test_free_vram_that_moved_a_little_is_still_the_same_study(tmp_path: Path) -> None:
    assert real(tmp_path, planned.gpu(20000)).name == real(tmp_path, planned.gpu(19990)).name


def with_free_ram(folder: Path, free_mib: float, **changes: object) -> prepare.Plan:
    machine = planned.machine().model_copy(update={"ram_available_mib": free_mib})
    return prepare.plan(planned.config(folder, **changes), planned.engine(), planned.model(), machine)


def test_weights_are_pinned_where_they_fit_into_free_memory_and_mapped_where_not(tmp_path: Path) -> None:
    roomy, tight = with_free_ram(tmp_path, 700), with_free_ram(tmp_path, 600)  # the model has 150 MiB
    assert (roomy.space.base.load_mode, tight.space.base.load_mode) == ("none", "mmap")
    assert "none for every arm: 150" in prepare.load_mode_line(roomy)
    assert "mmap for every arm: 150" in prepare.load_mode_line(tight)
    assert roomy.name == tight.name, "free memory moves; the study is the same"
    asked = with_free_ram(tmp_path, 600, load_mode="none")
    assert asked.space.base.load_mode == "none"
    assert prepare.load_mode_line(asked) == ""


def test_every_arm_gets_the_kv_type_and_a_smaller_one_leaves_more_room(tmp_path: Path) -> None:
    full, small = planned.plan(tmp_path, vram_mib=90), planned.plan(tmp_path, vram_mib=90, kv_type="q4_0")
    for one in (small.space.all_cpu(64), small.space.fit(64), small.space.layers(4, 64)):
        assert (one.kv_type_k, one.kv_type_v) == ("q4_0", "q4_0")
    assert small.space.need_mib(small.space.all_cpu(64)) < full.space.need_mib(full.space.all_cpu(64))
    assert small.name != full.name


def test_what_must_stay_free_is_planned_for_by_every_arm(tmp_path: Path) -> None:
    plain, careful = (
        planned.plan(tmp_path, vram_mib=90),
        planned.plan(tmp_path, vram_mib=90, keep_free_mib=20),
    )
    assert careful.ceiling_mib == 90
    assert careful.space.ceiling_mib == careful.usable_mib == 70
    assert careful.space.fewest_cpu_layers(64) > plain.space.fewest_cpu_layers(64)
    assert careful.limits.headroom_mib == 20
    assert careful.name != plain.name
    with pytest.raises(BadSettingError, match="leaves nothing"):
        planned.plan(tmp_path, vram_mib=90, keep_free_mib=90)
