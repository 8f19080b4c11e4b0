from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from engine_builder import REAL_GPU, VIRTUAL_GPU, engine_build, model_file, placement
from hypothesis import given
from hypothesis import strategies as st

from hottune.engine.argv import (
    Serving,
    child_environment,
    fit_target_mib,
    server_argv,
    server_command,
    server_env,
    shell_command,
)
from hottune.engine.facts import Backend
from hottune.machine.facts import Gpu
from hottune.placement import KvType, LoadMode, Placement, SpecType
from hottune.units import MIB

#: 4 layers x 32 experts, 2 MiB an expert.
SHAPE = model_file(Path("/m/x.gguf")).shape.model_copy(update={"layer_expert_bytes": (32 * 2 * MIB,) * 4})
MEASURING_FLAGS = {
    "--no-ui",
    "--no-slots",
    "--no-cache-prompt",
    "--cache-ram",
    "--no-cache-idle-slots",
    "-ctxcp",
}
PLACEMENT_FLAGS = {"-ngl", "-ncmoe", "-cmoe", "-ot", "-ts"}


def argv_of(one: Placement, gpu: Gpu | None = VIRTUAL_GPU, ceiling_mib: float = 64, **more: Any) -> list[str]:
    return server_argv(
        engine_build(),
        Path("/m/x.gguf"),
        one,
        shape=SHAPE,
        port=1234,
        gpu=gpu,
        ceiling_mib=ceiling_mib,
        **more,
    )


def env_of(
    one: Placement,
    gpu: Gpu | None = VIRTUAL_GPU,
    backend: Backend = Backend.CPU,
    ceiling_mib: float = 64,
    **more: Any,
) -> dict[str, str]:
    stats = Path("/t/stats.json")
    build = engine_build(backend=backend)
    return server_env(build, one, shape=SHAPE, gpu=gpu, ceiling_mib=ceiling_mib, stats_path=stats, **more)


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_verbosity_comes_first_because_later_flags_load_the_back_ends() -> None:
    assert argv_of(placement())[1:3] == ["-lv", "4"]


@pytest.mark.parametrize("gpu", [REAL_GPU, VIRTUAL_GPU])
def test_every_arm_but_fit_states_its_whole_placement(gpu: Gpu) -> None:
    argv = argv_of(placement(n_cpu_moe=31, hot_k=8), gpu)
    assert value(argv, "-fit") == "off"
    assert value(argv, "-ngl") == "99"
    assert value(argv, "-ncmoe") == "31"
    assert value(argv, "-c") == "1024"
    assert value(argv, "-np") == "1"


@pytest.mark.parametrize("gpu", [REAL_GPU, VIRTUAL_GPU, None])
def test_the_fit_arm_states_no_placement_but_the_same_context(gpu: Gpu | None) -> None:
    argv = argv_of(placement(fit=True, n_cpu_moe=9), gpu)
    assert PLACEMENT_FLAGS.isdisjoint(argv)
    assert value(argv, "-fit") == "on"
    assert value(argv, "-c") == "1024"
    assert value(argv, "-np") == "1"


def test_fit_on_a_real_gpu_leaves_all_above_the_ceiling_free_and_room_to_grow() -> None:
    assert fit_target_mib(REAL_GPU, 8000) == 16000 + 256
    assert fit_target_mib(REAL_GPU, 8000.5) == 16000 + 256, "rounded so that fit never gets more"
    assert fit_target_mib(REAL_GPU, 30000) == 256, "a ceiling above what is free asks for nothing negative"


def test_fit_on_the_virtual_gpu_needs_almost_no_margin_since_the_cap_is_the_ceiling() -> None:
    assert 0 < fit_target_mib(VIRTUAL_GPU, 64) <= 4


@pytest.mark.parametrize("gpu", [REAL_GPU, VIRTUAL_GPU])
def test_fit_leaves_room_for_a_cache_and_the_device_gets_exactly_that(gpu: Gpu) -> None:
    plain, cached = placement(fit=True), placement(fit=True, hot_k=9)
    more = int(value(argv_of(cached, gpu), "--fit-target")) - int(value(argv_of(plain, gpu), "--fit-target"))
    assert more == 9 * 4 * 2
    env = env_of(cached, gpu, Backend.CUDA)
    assert env["GGML_HOT_MIB"] == "72"
    assert "GGML_HOT_K" not in env, "the budget replaces the number of experts a layer"


def test_each_parallel_slot_gets_the_whole_context_since_llama_cpp_divides_it() -> None:
    argv = argv_of(placement(parallel=4))
    assert (value(argv, "-c"), value(argv, "-np")) == ("4096", "4")


@pytest.mark.parametrize("kind", ["ngram-simple", "ngram-map-k", "ngram-map-k4v"])
def test_the_length_of_a_draft_is_always_said(kind: SpecType) -> None:
    argv = argv_of(placement(spec_type=kind))
    assert value(argv, "--spec-type") == kind
    assert value(argv, f"--spec-{kind}-size-m") == "48"
    assert f"--spec-{kind}-size-n" not in argv
    assert value(argv_of(placement(spec_type=kind, spec_ngram=3)), f"--spec-{kind}-size-n") == "3"


def test_a_draft_of_ngram_mod_is_never_asked_to_be_longer_than_its_maximum() -> None:
    argv = argv_of(placement(spec_type="ngram-mod", parallel=4, spec_ngram=8))
    assert value(argv, "--spec-ngram-mod-n-max") == "15"
    assert value(argv, "--spec-ngram-mod-n-min") == "15"
    assert value(argv, "--spec-ngram-mod-n-match") == "8"


def test_without_speculation_no_flag_of_it_is_passed() -> None:
    assert not [word for word in argv_of(placement()) if word.startswith("--spec")]
    assert [word for word in argv_of(placement(spec_type="ngram-cache")) if word.startswith("--spec")] == [
        "--spec-type"
    ]


def test_without_a_gpu_everything_stays_on_the_cpu_and_weights_are_not_repacked() -> None:
    argv = argv_of(placement(), None)
    assert value(argv, "--device") == "none"
    assert "-ngl" not in argv
    assert "--no-repack" in argv


def test_a_real_gpu_brings_pinned_host_buffers_so_repacking_needs_no_flag() -> None:
    assert "--no-repack" not in argv_of(placement(), REAL_GPU)
    assert "--no-repack" in argv_of(placement(), VIRTUAL_GPU)


@pytest.mark.parametrize("mode", list(LoadMode))
def test_the_load_mode_is_always_said(mode: LoadMode) -> None:
    assert value(argv_of(placement(load_mode=mode)), "--load-mode") == mode.value


def test_a_quantized_v_cache_turns_flash_attention_on() -> None:
    assert value(argv_of(placement(kv_type_v=KvType.Q8_0)), "-fa") == "on"
    assert value(argv_of(placement(kv_type_k=KvType.Q8_0)), "-fa") == "auto"
    assert value(argv_of(placement(kv_type_k=KvType.Q4_0)), "-ctk") == "q4_0"


def test_the_logical_batch_is_never_below_the_physical_one_which_llama_cpp_would_cut() -> None:
    argv = argv_of(placement(batch=512, ubatch=4096))
    assert (value(argv, "-b"), value(argv, "-ub")) == ("4096", "4096")


def test_the_server_listens_on_loopback_alone_and_caches_no_prompts() -> None:
    argv = argv_of(placement())
    assert value(argv, "--host") == "127.0.0.1"
    assert value(argv, "--port") == "1234"
    assert value(argv, "--cache-ram") == "0"
    assert {"--no-cache-prompt", "--no-ui", "--offline"} <= set(argv)


def test_warm_up_is_skipped_only_when_asked() -> None:
    assert "--no-warmup" not in argv_of(placement())
    assert "--no-warmup" in argv_of(placement(), no_warmup=True)


def test_without_a_cache_and_without_a_virtual_gpu_the_library_is_not_named_at_all() -> None:
    for one in (placement(hot_k=0), placement(fit=True)):
        env = env_of(one, REAL_GPU, Backend.CUDA)
        assert not [name for name in env if name.startswith("GGML_")]


def test_a_cache_names_the_library_and_all_its_settings() -> None:
    env = env_of(placement(hot_k=16, rebalance_interval=80, prefill_bypass=4), REAL_GPU, Backend.CUDA, 23000)
    assert env["GGML_BACKEND_PATH"] == "/engine/libggml-hot.so"
    assert env["GGML_HOT_K"] == "16"
    assert env["GGML_HOT_INTERVAL"] == "80"
    assert env["GGML_HOT_BYPASS"] == "4"
    assert env["GGML_HOT_STATS"] == "/t/stats.json"
    assert env["GGML_HOT_POLICY"] == "lfru"
    assert env["GGML_HOT_UPLOAD_MIB"] == "128"
    unasked = {"GGML_HOT_VGPU_MIB", "GGML_HOT_MIB", "GGML_HOT_SHARED", "GGML_HOT_PROFILE", "GGML_HOT_STREAM"}
    assert unasked.isdisjoint(env)


def test_every_setting_of_the_cache_reaches_the_device() -> None:
    one = placement(
        hot_k=8,
        policy="lru",
        shared_budget=True,
        upload_mib=32,
        stream_from=64,
        hot_profile=Path("/p/uses.json"),
    )
    env = env_of(one)
    assert env["GGML_HOT_STREAM"] == "64"
    assert env["GGML_HOT_POLICY"] == "lru"
    assert env["GGML_HOT_SHARED"] == "1"
    assert env["GGML_HOT_UPLOAD_MIB"] == "32"
    assert env["GGML_HOT_PROFILE"] == "/p/uses.json"
    assert env_of(one, profile_path=Path("/t/copy.json"))["GGML_HOT_PROFILE"] == "/t/copy.json"


def test_the_cache_may_never_break_the_ceiling_of_a_larger_card() -> None:
    hot = placement(hot_k=16)
    assert env_of(hot, REAL_GPU, Backend.CUDA, 8000)["GGML_HOT_HEADROOM_MIB"] == "16000"
    assert env_of(hot, REAL_GPU, Backend.CUDA, 23990)["GGML_HOT_HEADROOM_MIB"] == "256"
    assert env_of(hot, VIRTUAL_GPU)["GGML_HOT_HEADROOM_MIB"] == "0"


def test_the_virtual_gpu_has_the_ceiling_as_its_memory_with_or_without_a_cache() -> None:
    plain = env_of(placement(hot_k=0), VIRTUAL_GPU, ceiling_mib=60.9)
    assert plain["GGML_HOT_VGPU_MIB"] == "60"
    assert plain["GGML_HOT_K"] == "0"
    assert plain["GGML_BACKEND_PATH"] == "/engine/libggml-hot.so"
    assert env_of(placement(fit=True), VIRTUAL_GPU)["GGML_HOT_K"] == "0"


def test_the_chosen_card_alone_is_visible_and_a_virtual_one_hides_all_real_ones() -> None:
    env = env_of(placement(), REAL_GPU, Backend.CUDA)
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env_of(placement(), VIRTUAL_GPU, Backend.CUDA)["CUDA_VISIBLE_DEVICES"] == "-1"
    assert env_of(placement(), VIRTUAL_GPU, Backend.VULKAN)["GGML_VK_VISIBLE_DEVICES"] == ""


def test_inherited_settings_of_the_engine_do_not_leak_into_a_measurement() -> None:
    inherited = {
        "LLAMA_ARG_N_GPU_LAYERS": "5",
        "GGML_CUDA_NO_PINNED": "1",
        "GGML_HOT_K": "9",
        "PATH": "/bin",
    }
    assert child_environment({"GGML_HOT_K": "4"}, inherited) == {"PATH": "/bin", "GGML_HOT_K": "4"}


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1),
    st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text(max_size=9), max_size=3),
)
def test_the_shell_line_means_exactly_the_command_and_environment(
    argv: list[str], env: dict[str, str]
) -> None:
    words = shlex.split(shell_command(argv, env))
    assert words == [f"{name}={text}" for name, text in env.items()] + argv


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("gpu", [REAL_GPU, VIRTUAL_GPU, None])
def test_serving_takes_away_what_only_measuring_needs_and_nothing_else(gpu: Gpu | None, fit: bool) -> None:
    where = placement(hot_k=8, parallel=2, fit=fit, spec_type="ngram-mod")
    measured, served = argv_of(where, gpu), argv_of(where, gpu, serving=Serving())
    assert set(measured) >= MEASURING_FLAGS
    assert MEASURING_FLAGS.isdisjoint(served)
    assert [word for word in measured if word not in MEASURING_FLAGS | {"0"}] == [
        word for word in served if word != "0"
    ]


def test_serving_listens_where_it_is_told_and_arguments_of_the_user_come_last() -> None:
    argv = argv_of(placement(), serving=Serving(host="0.0.0.0", extra=("--api-key", "x")))
    assert value(argv, "--host") == "0.0.0.0"
    assert argv[-2:] == ["--api-key", "x"]


def test_a_command_to_show_has_the_profile_and_no_files_of_a_measurement() -> None:
    _, env = server_command(
        engine_build(),
        Path("/m/x.gguf"),
        placement(hot_k=8),
        shape=SHAPE,
        port=1234,
        gpu=VIRTUAL_GPU,
        ceiling_mib=64,
        serving=Serving(),
        profile_path=Path("/p/uses.json"),
    )
    assert env["GGML_HOT_PROFILE"] == "/p/uses.json"
    assert {"GGML_HOT_STATS", "GGML_HOT_SOCKET"}.isdisjoint(env)
