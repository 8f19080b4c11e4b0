"""What can be compiled here is found out, and what is missing is said."""

import os
import platform
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.engine import toolchain
from hottune.engine.facts import Backend
from hottune.engine.toolchain import (
    choose_backend,
    default_jobs,
    find_compiler,
    find_gpu_compiler,
    find_tool,
    host_options,
    instruction_options,
    tool_version,
)
from hottune.errors import BackendUnavailableError, NoCompilerError

SETS = st.dictionaries(st.sampled_from(list(toolchain._X86_FLAGS)), st.booleans())


def fake_tool(folder, name, says="fake 1.0", code=0):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_no_compiler_on_the_path_is_an_error_that_says_how_to_get_one(tmp_path):
    with pytest.raises(NoCompilerError, match="no C\\+\\+ compiler on PATH") as caught:
        find_compiler({"PATH": str(tmp_path)})
    assert "install" in caught.value.next_step.lower()


def test_a_cpp_compiler_without_a_c_compiler_is_not_enough(tmp_path):
    fake_tool(tmp_path, "g++")
    with pytest.raises(NoCompilerError, match="no C compiler on PATH"):
        find_compiler({"PATH": str(tmp_path)})


def test_the_systems_default_compiler_comes_first(tmp_path):
    for name in ("g++", "c++", "gcc", "cc"):
        fake_tool(tmp_path, name, says=f"{name} 1.0")
    found = find_compiler({"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert (found.cxx, found.cc, found.version) == (f"{tmp_path}/c++", f"{tmp_path}/cc", "c++ 1.0")


def test_cxx_and_cc_win_and_may_carry_options(tmp_path):
    fake_tool(tmp_path, "mycxx", says="my compiler 7")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CXX": "mycxx -m64", "CC": f"{tmp_path}/mycxx"}
    found = find_compiler(environ)
    assert found.version == "my compiler 7"
    assert found.environment() == {"CXX": "mycxx -m64", "CC": f"{tmp_path}/mycxx"}


def test_a_cxx_that_does_not_exist_is_named_in_the_error():
    with pytest.raises(NoCompilerError, match="CXX is set to 'nope-c\\+\\+ -O2'"):
        find_compiler({"PATH": os.environ["PATH"], "CXX": "nope-c++ -O2"})


def test_a_compiler_that_does_not_run_is_an_error(tmp_path):
    fake_tool(tmp_path, "c++", code=1)
    fake_tool(tmp_path, "cc")
    with pytest.raises(NoCompilerError, match="does not run"):
        find_compiler({"PATH": f"{tmp_path}:{os.environ['PATH']}"})


@pytest.mark.parametrize("name", ["cmake", "ctest", "ninja"])
def test_the_build_tools_of_the_python_packages_run_even_with_an_empty_path(name, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert tool_version(find_tool(name))[0] in "cn1234567890"


def test_a_tool_that_does_not_run_has_no_version(tmp_path):
    assert tool_version(tmp_path / "nothing") == "does not run"


def test_every_set_the_processor_has_is_spelled_out_on():
    options = instruction_options(dict.fromkeys(toolchain._X86_FLAGS, True), knows=lambda names: True)
    assert set(options) == {f"{name}=ON" for name in toolchain._X86_FLAGS}


def test_avx512_extensions_are_off_where_avx512_itself_is_missing():
    cpu = dict.fromkeys(toolchain._X86_FLAGS, True) | {"GGML_AVX512": False}
    options = instruction_options(cpu, knows=lambda names: True)
    assert {"GGML_AVX512=OFF", "GGML_AVX512_VNNI=OFF", "GGML_AVX512_BF16=OFF", "GGML_AVX2=ON"} <= set(options)


def test_what_an_old_compiler_does_not_know_is_left_off():
    cpu = dict.fromkeys(toolchain._X86_FLAGS, True)
    options = instruction_options(cpu, knows=lambda names: "GGML_AVX_VNNI" not in names)
    assert [option for option in options if option.endswith("=OFF")] == ["GGML_AVX_VNNI=OFF"]


@given(cpu=SETS, unknown=st.sets(st.sampled_from(list(toolchain._X86_FLAGS))))
def test_no_set_is_on_without_processor_and_compiler(cpu, unknown):
    options = instruction_options(cpu, knows=lambda names: not unknown & set(names))
    names = [option.partition("=")[0] for option in options]
    assert names == list(toolchain._X86_FLAGS)
    for name in (option.removesuffix("=ON") for option in options if option.endswith("=ON")):
        assert cpu.get(name, False)
        assert name not in unknown


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="reads x86 flags of Linux"
)
def test_this_hosts_options_never_leave_the_choice_to_the_compilers_baseline():
    options = host_options(find_compiler())
    assert options[0] == "GGML_NATIVE=OFF"
    assert "GGML_SSE42=ON" in options


def test_a_gpu_with_its_compiler_is_used(monkeypatch, tmp_path):
    fake_tool(tmp_path, "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "gpu_present", lambda backend: backend is Backend.CUDA)
    monkeypatch.setattr(sys, "platform", "linux")
    assert choose_backend(None) == (Backend.CUDA, "")


def test_a_gpu_without_its_compiler_falls_back_to_the_cpu_and_says_so(monkeypatch):
    monkeypatch.setattr(toolchain, "gpu_present", lambda backend: backend is Backend.HIP)
    monkeypatch.setattr(toolchain, "find_gpu_compiler", lambda backend: None)
    monkeypatch.setattr(sys, "platform", "linux")
    backend, remark = choose_backend(None)
    assert backend is Backend.CPU
    assert "AMD" in remark
    assert "hipcc" in remark


def test_a_compiler_without_a_gpu_changes_nothing(monkeypatch, tmp_path):
    fake_tool(tmp_path, "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain, "gpu_present", lambda backend: False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert choose_backend(None) == (Backend.CPU, "")


@pytest.mark.parametrize(
    ("backend", "error"),
    [
        (Backend.CUDA, NoCompilerError),
        (Backend.HIP, NoCompilerError),
        (Backend.VULKAN, BackendUnavailableError),
        (Backend.METAL, BackendUnavailableError),
    ],
)
def test_a_back_end_that_was_asked_for_and_cannot_be_built_is_an_error(monkeypatch, backend, error):
    monkeypatch.setattr(toolchain, "find_gpu_compiler", lambda backend: None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(error):
        choose_backend(backend)


def test_nvcc_is_also_found_where_cuda_home_points(monkeypatch, tmp_path):
    nvcc = fake_tool(tmp_path / "bin", "nvcc")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_gpu_compiler(Backend.CUDA) == nvcc
    assert find_gpu_compiler(Backend.CPU) is None


def test_at_least_one_compiler_runs_at_once():
    assert 1 <= default_jobs() <= (os.cpu_count() or 1)
