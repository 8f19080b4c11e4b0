from __future__ import annotations

import observed_logs as observed
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.engine import loadlog
from hottune.outcomes import Crashed, OutOfMemory

EVERY_LOG = [text for name, text in vars(observed).items() if name.isupper()]


def test_buffers_are_counted_by_where_they_lie() -> None:
    found = loadlog.parse(observed.HOT).engagement()
    assert found.gpu_device == "VGPU0"
    assert found.vram_model_mib == 23.53
    assert found.host_model_mib == 87.69
    assert found.vram_kv_mib == 4.0
    assert found.vram_compute_mib == pytest.approx(11.03), "the cache device's own buffer counts too"


def test_a_gpus_pinned_host_buffer_is_host_memory_and_is_recognised_as_pinned() -> None:
    found = loadlog.parse(observed.CUDA_LOADED).engagement()
    assert found.gpu_device == "CUDA0"
    assert found.vram_model_mib == 1234.5
    assert found.host_model_mib == pytest.approx(14167.17)
    assert found.pinned is True


def test_weights_that_fell_back_to_plain_memory_are_not_pinned() -> None:
    log = observed.CUDA_LOADED.replace("   CUDA_Host model buffer", "         CPU model buffer")
    assert loadlog.parse(log).engagement().pinned is False
    mapped = observed.CUDA_LOADED.replace("  CUDA_Host model buffer", " CPU_Mapped model buffer")
    assert loadlog.parse(mapped).engagement().pinned is False


def test_nothing_is_said_about_pinning_where_no_weight_is_in_host_memory() -> None:
    assert loadlog.parse(observed.FIT_ALL).engagement().pinned is None


def test_several_caches_add_up_but_a_new_reservation_replaces_the_old() -> None:
    found = loadlog.parse(observed.CUDA_LOADED).engagement()
    assert found.vram_kv_mib == 402
    assert found.vram_compute_mib == 300


def test_the_hot_device_counts_as_ready_only_by_its_own_line() -> None:
    ready = loadlog.parse(observed.HOT)
    assert ready.hot_ready
    assert ready.hot_lines[-1] == "ggml_hot: cache: 1 layers x 8 slots, 0.8 MiB on VGPU0"
    assert not loadlog.parse(observed.VIRTUAL_OUT_OF_MEMORY).hot_ready


def test_a_library_that_did_not_load_is_told() -> None:
    log = loadlog.parse(observed.LIBRARY_NOT_LOADED)
    assert "/nope.so" in log.not_loaded[0]
    assert log.gpu_device == ""


def test_fits_choice_is_given_in_the_words_of_tensor_overrides() -> None:
    fit = loadlog.parse(observed.FIT_PARTLY).fit()
    assert fit is not None
    assert (fit.n_gpu_layers, fit.layers_total, fit.projected_mib) == (5, 5, 45)
    assert fit.overrides == [
        r"blk\.1\.ffn_(gate|up|gate_up|down).*=CPU",
        r"blk\.2\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU",
        r"blk\.3\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU",
    ]
    assert any("4 overflowing" in line for line in fit.lines)


def test_fit_that_leaves_whole_layers_on_the_cpu_overrides_nothing() -> None:
    fit = loadlog.parse(observed.FIT_TIGHT).fit()
    assert fit is not None
    assert (fit.n_gpu_layers, fit.overrides, fit.projected_mib) == (1, [], 21)


def test_fit_with_room_for_everything_still_ran() -> None:
    fit = loadlog.parse(observed.FIT_ALL).fit()
    assert fit is not None
    assert (fit.n_gpu_layers, fit.projected_mib) == (5, 56)


def test_fit_that_gave_up_is_no_placement_and_says_why() -> None:
    log = loadlog.parse(observed.FIT_GAVE_UP)
    assert log.fit() is None
    assert log.fit_failure is not None
    assert "already set by user" in log.fit_failure


def test_a_run_without_fit_has_none() -> None:
    assert loadlog.parse(observed.HOT).fit() is None


@pytest.mark.parametrize(
    ("log", "detail"),
    [
        (observed.VIRTUAL_OUT_OF_MEMORY, "virtual GPU out of memory: 23 MiB asked"),
        (observed.CUDA_OUT_OF_MEMORY, "allocating 9000.00 MiB on device 0"),
        (observed.HOST_OUT_OF_MEMORY, "insufficient memory"),
        ("terminate called after throwing an instance of 'std::bad_alloc'\n", "std::bad_alloc"),
        ("llama_model_load: error: vk::Device::allocateMemory: ErrorOutOfDeviceMemory\n", "ErrorOutOf"),
    ],
)
def test_exhausted_memory_is_told_apart_from_a_crash(log: str, detail: str) -> None:
    outcome = loadlog.diagnose(log, "load", 1)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.stage == "load"
    assert detail in outcome.detail
    assert outcome.log_tail


def test_a_scratch_pool_that_cannot_grow_is_out_of_memory_at_the_first_batch() -> None:
    outcome = loadlog.diagnose(observed.CUDA_POOL_OUT_OF_MEMORY, "first_batch", -6)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.stage == "first_batch"


def test_a_sigkill_that_nobody_here_sent_is_the_kernels_out_of_memory() -> None:
    outcome = loadlog.diagnose(observed.HOT, "later", -9)
    assert isinstance(outcome, OutOfMemory)
    assert "kernel" in outcome.detail


@pytest.mark.parametrize(
    ("log", "exit_code", "detail"),
    [
        (observed.TRUNCATED_MODEL, 1, "model is corrupted or incomplete"),
        (observed.CUDA_ILLEGAL_ACCESS, -6, "illegal memory access"),
        ("error: invalid argument: --nonsense\n", 1, "invalid argument: --nonsense"),
        ("", 3, "exit status 3"),
        ("", -11, "signal 11"),
        ("", None, "wrong answer"),
    ],
)
def test_a_crash_names_the_error_that_matters_not_its_echo(
    log: str, exit_code: int | None, detail: str
) -> None:
    outcome = loadlog.diagnose(log, "load", exit_code)
    assert isinstance(outcome, Crashed)
    assert outcome.exit_code == exit_code
    assert detail in outcome.detail


@pytest.mark.parametrize("log", [observed.HOT, observed.CUDA_LOADED, observed.FIT_PARTLY])
def test_a_healthy_log_shows_no_exhausted_memory(log: str) -> None:
    assert isinstance(loadlog.diagnose(log, "later", 1), Crashed)


def test_a_loading_server_says_what_it_is_doing() -> None:
    assert loadlog.activity("") == "starting"
    assert loadlog.activity(observed.FIT_PARTLY[:400]) == "fitting the placement"
    upto = observed.HOT[: observed.HOT.index("llama_context")]
    assert loadlog.activity(upto) == "loading weights"
    assert loadlog.loading_weights(upto)
    assert not loadlog.loading_weights(observed.HOT)
    assert loadlog.activity(observed.HOT) == "ready"


def test_the_tail_has_no_timestamps_and_no_empty_lines() -> None:
    lines = loadlog.tail(observed.HOT + "\n\n", 2)
    assert lines == [
        "srv  llama_server: model loaded",
        "srv  llama_server: listening on http://127.0.0.1:18099",
    ]


@given(st.sampled_from(EVERY_LOG), st.integers(min_value=0), st.text(max_size=80))
def test_a_log_cut_anywhere_or_followed_by_garbage_never_breaks_the_reader(
    log: str, cut: int, garbage: str
) -> None:
    text = log[: cut % (len(log) + 1)] + garbage
    whole, part = loadlog.parse(log), loadlog.parse(text).engagement()
    assert part.vram_model_mib <= whole.engagement().vram_model_mib + 1e-9 or "buffer size" in garbage
    assert loadlog.diagnose(text, "load", 1).kind in ("out_of_memory", "crashed")
    assert len(loadlog.tail(text, 3)) <= 3
