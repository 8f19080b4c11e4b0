"""Engine files: what they may say, what their templates mean, and the commands that come out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from engine_builder import REAL_GPU, VIRTUAL_GPU, engine_build, model_file, placement
from hypothesis import given
from hypothesis import strategies as st

from hottune.engine.facts import Backend
from hottune.engine.forks.build import find_fork, fork_options, refusal
from hottune.engine.forks.command import Unmapped, fork_argv, fork_command, fork_values, require_mapped
from hottune.engine.forks.file import EngineFile, load_engine_file, names, parse
from hottune.engine.forks.proof import check_fork_loaded, fork_log
from hottune.engine.forks.words import FIELDS, BadTemplate, expand, expand_pattern, fields_of
from hottune.errors import EngineFileError
from hottune.placement import KvType, LoadMode

TEXT = """\
name = "twin"
git = "https://example.org/twin"
[build]
options = ["A=1", "B=2"]
[build.backends]
cuda = ["GGML_CUDA=ON", "B=3"]
[placement]
kind = "layers"
[arguments]
model = ["-m", "{model}"]
n_cpu_moe = ["-ncmoe", "{n_cpu_moe}"]
ubatch = ["-ub", "{ubatch}"]
threads = ["-t", "{threads}"]
context = ["-c", "{context}"]
load_mode = { none = ["--no-mmap"] }
port = ["--port", "{port}"]
[proof]
lines = ['offloaded \\d{1,2} layers']
"""
VALUES = {field: f"<{field}>" for field in FIELDS}


def file(text: str = TEXT, **changes: str) -> EngineFile:
    for old, new in changes.items():
        text = text.replace(old, new)
    return parse(text, "twin.toml")


@pytest.mark.parametrize("name", ["ik_llama", "parmesan"])
def test_the_files_that_ship_are_engine_files_of_their_own_names(name: str) -> None:
    assert name in names()
    assert load_engine_file(name).name == name
    assert load_engine_file(name).git.startswith("https://github.com/")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind =", "sort =", r"placement.sort: there is no such field"),
        ('"{model}"', '"{modle}"', r"names \{modle\}"),
        ('"{model}"', '"{model"', "brace"),
        ('"{model}"', '"{model!r}"', r"\{model!r\}"),
        ('"{model}"', '"{model.name}"', r"names \{model.name\}"),
        ('ubatch = ["-ub"', 'ubtach = ["-ub"', "'ubtach' is no field"),
        ('ubatch = ["-ub", "{ubatch}"]', "", "say what ubatch means"),
        ('kind = "layers"', 'kind = "hot"', "say what hot_k means"),
        ('name = "twin"', 'name = "hot"', "arm of hottune's own"),
        ('name = "twin"', 'name = "a b"', "name: "),
        ("layers']", "layers(']", "no regular expression"),
        ('"https://example.org/twin"', '"--upload-pack=x"', "no hyphen"),
        ("[build]\n", '[build]\nserver = "../x"\n', "within the build folder"),
        ("[proof]", "[log]\nweights = 'x'\n[proof]", "has no group"),
        ("[proof]", "[proof", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, said: str) -> None:
    with pytest.raises(EngineFileError) as caught:
        file(TEXT.replace(old, new))
    assert caught.value.exit_code == 28
    assert re.search(said, str(caught.value)), caught.value


def test_a_name_that_does_not_ship_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineFileError, match="Known: ik_llama, parmesan"):
        load_engine_file("../twin")
    with pytest.raises(EngineFileError):
        load_engine_file(str(tmp_path / "twin.toml"))


LITERAL = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.one_of(st.sampled_from(sorted(FIELDS)).map(lambda name: ("field", name)), LITERAL)))
def test_a_template_is_its_words_with_every_field_replaced(parts: list[Any]) -> None:
    template = "".join(
        f"{{{part[1]}}}" if isinstance(part, tuple) else part.replace("{", "{{").replace("}", "}}")
        for part in parts
    )
    wanted = "".join(VALUES[part[1]] if isinstance(part, tuple) else part for part in parts)
    assert expand(template, VALUES) == wanted
    assert fields_of(template) == {part[1] for part in parts if isinstance(part, tuple)}


@given(st.text(st.sampled_from("{}!:.[]0aport_ "), max_size=12))
def test_any_text_is_a_template_or_a_bad_one(text: str) -> None:
    try:
        assert fields_of(text) <= FIELDS
        expand(text, VALUES)
    except BadTemplate:
        pass


@given(st.text(max_size=12))
def test_a_value_in_a_pattern_stands_for_itself(value: str) -> None:
    pattern = expand_pattern(r"^K={hot_k}, \d{1,2}$", {**VALUES, "hot_k": value})
    assert re.search(pattern, f"K={value}, 42")


def test_a_placement_becomes_a_command_in_the_files_order() -> None:
    one = placement(n_cpu_moe=3, threads=2, ubatch=512, context=1024)
    values = fork_values(one, model="m.gguf", port=1234, gpu=REAL_GPU)
    wanted = "/b/server -m m.gguf -ncmoe 3 -ub 512 -t 2 -c 1024 --no-mmap --port 1234"
    assert " ".join(fork_argv(file(), Path("/b/server"), values)) == wanted


def test_what_has_no_meaning_to_the_fork_is_refused() -> None:
    mapped = placement(load_mode=LoadMode.MMAP)
    with pytest.raises(Unmapped, match="no arguments for load_mode = mmap, only for none"):
        fork_argv(file(), Path("s"), fork_values(mapped, model="m", port=1, gpu=None))
    for change in ({"kv_type_k": KvType.Q8_0}, {"hot_k": 4}, {"parallel": 2}, {"fit": True}):
        with pytest.raises(Unmapped, match=f"does not say what {next(iter(change))} = "):
            require_mapped(file(), placement(**change))


@pytest.mark.parametrize(("gpu", "variable"), [(REAL_GPU, "1"), (VIRTUAL_GPU, "-1")])
def test_a_fork_sees_the_one_gpu_and_its_own_knobs(tmp_path: Path, gpu: Any, variable: str) -> None:
    parmesan = load_engine_file("parmesan")
    fork = find_fork(parmesan, Backend.CUDA, cache_dir=tmp_path)
    one = placement(n_cpu_moe=4, hot_k=42, rebalance_interval=60, prefill_bypass=64, policy="window")
    argv, env = fork_command(
        fork,
        engine_build(backend=Backend.CUDA),
        model_file(tmp_path / "m.gguf"),
        one,
        port=1,
        gpu=gpu,
        ceiling_mib=64,
        stats_path=tmp_path / "stats.json",
    )
    assert argv[:5] == ["llama-server", "-lv", "4", "-fit", "off"]
    assert env["LLAMA_ARG_MOE_HOT_K"] == "42"
    assert env["LLAMA_ARG_MOE_HOT_REBALANCE_INTERVAL"] == "60"
    assert env["LLAMA_MOE_HOT_PP_BYPASS_N_TOKENS"] == "64"
    assert env["CUDA_VISIBLE_DEVICES"] == variable
    assert ("GGML_BACKEND_PATH" in env) is gpu.virtual, "the virtual GPU is a plug-in"
    assert env.get("GGML_HOT_K", "0") == "0", "hottune's own cache is off"


def test_options_of_the_back_end_win_over_the_general_ones() -> None:
    options = fork_options(file(), Backend.CUDA)
    assert "CMAKE_BUILD_TYPE=Release" in options
    assert options[-3:] == ("A=1", "B=3", "GGML_CUDA=ON")


@pytest.mark.parametrize(
    ("name", "backend", "virtual", "architecture", "said"),
    [
        ("parmesan", Backend.CUDA, False, "qwen3moe", "serves qwen35moe models, not qwen3moe"),
        ("parmesan", Backend.CUDA, False, "qwen35moe", ""),
        ("parmesan", Backend.VULKAN, False, "qwen35moe", "built for cuda, not for vulkan"),
        ("ik_llama", Backend.CPU, True, "qwen3moe", "needs a real GPU"),
        ("ik_llama", Backend.CUDA, False, "qwen3moe", ""),
    ],
)
def test_what_cannot_be_an_arm_says_why(
    name: str, backend: Backend, virtual: bool, architecture: str, said: str
) -> None:
    why = refusal(load_engine_file(name), backend=backend, virtual=virtual, architecture=architecture)
    assert said in why
    assert bool(said) == bool(why)


IK_LOG = """\
llama_model_load_from_file: using device CUDA0 - 23000 MiB free
llm_load_tensors: offloading 48 repeating layers to GPU
llm_load_tensors: offloaded 49/49 layers to GPU
llm_load_tensors:        CPU buffer size =  9000.50 MiB
llm_load_tensors:      CUDA0 buffer size =  6000.25 MiB
llama_init_from_model: fused_moe     = 1
llama_init_from_model:      CUDA0 compute buffer size =   300.75 MiB
llama_kv_cache_init:      CUDA0 KV buffer size =   384.00 MiB
INFO [                    main] model loaded | tid="1" timestamp=1
"""


def test_the_log_of_ik_llama_is_read_by_its_own_patterns() -> None:
    ik, one = load_engine_file("ik_llama"), placement()
    found = fork_log(ik, IK_LOG).engagement()
    assert found.gpu_device == "CUDA0"
    assert (found.vram_model_mib, found.host_model_mib) == (6000.25, 9000.5)
    assert (found.vram_kv_mib, found.vram_compute_mib) == (384.0, 300.75)
    values = fork_values(one, model="m", port=1, gpu=REAL_GPU)
    assert check_fork_loaded(ik, IK_LOG, one, REAL_GPU, values) is None
    for line, said in (("fused_moe     = 1", "fused_moe"), ("using device CUDA0", "no GPU in use")):
        refused = check_fork_loaded(ik, IK_LOG.replace(line, ""), one, REAL_GPU, values)
        assert refused is not None
        assert said in refused.detail
    on_cpu = IK_LOG.replace("49/49", "12/49")
    assert check_fork_loaded(ik, on_cpu, one, REAL_GPU, values) is not None


def test_the_seeds_cache_must_have_the_size_that_was_asked_for() -> None:
    parmesan, one = load_engine_file("parmesan"), placement(hot_k=42, n_cpu_moe=4)
    log = (
        "x: using device CUDA0 (NVIDIA Test) (0000:01:00.0) - 20000 MiB free\n"
        "llama_moe_hot_cache_init: allocated hot cache: K=42, 48 layers, 9.90 GB VRAM\n"
        "llama_context: MoE hot cache attached to llama_context\nmodel loaded\n"
    )
    values = fork_values(one, model="m", port=1, gpu=REAL_GPU)
    assert check_fork_loaded(parmesan, log, one, REAL_GPU, values) is None
    smaller = check_fork_loaded(parmesan, log.replace("K=42", "K=4"), one, REAL_GPU, values)
    assert smaller is not None
    assert "K=42" in smaller.detail
