"""What is settled before anything is compiled: options, keys, what counts as finished. No compiler runs."""

import json

import pytest
from llama_tree import built, source_tree
from pydantic import ValidationError

from hottune.engine import build as build_module
from hottune.engine import llama
from hottune.engine.build import BuildOptions, build_engine, find_engine, list_builds, source_dir
from hottune.engine.executable import build_label
from hottune.engine.facts import Backend, EngineBuild
from hottune.engine.pin import load_pin
from hottune.engine.sources import LlamaSource, checkout, pinned_folder
from hottune.engine.toolchain import Compiler
from hottune.errors import (
    ApiMismatchError,
    BackendUnavailableError,
    BadSettingError,
    NoCompilerError,
    NoSpaceError,
    SourceInvalidError,
)

GCC = Compiler("c++", "cc", "g++ 12")
CPU = BuildOptions(backend=Backend.CPU)


@pytest.fixture(autouse=True)
def one_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build_module, "find_compiler", lambda: GCC)


@pytest.fixture
def cache(tmp_path):
    """A cache that has the pinned source (as far as hottune looks)."""
    folder = tmp_path / "cache"
    source_tree(pinned_folder(load_pin(), folder))
    return folder


class FakeCompile:
    """Stands in for CMake and Ninja: leaves the files that a build leaves, and counts."""

    def __init__(self, monkeypatch):
        self.llama = self.device = 0
        monkeypatch.setattr(build_module.llama, "compile_llama", self._llama)
        monkeypatch.setattr(build_module.device, "compile_device", self._device)

    def _llama(self, folder, source, compiler, options, *, jobs, progress):
        self.llama += 1
        bin_dir = llama.bin_dir(folder)
        bin_dir.mkdir(parents=True, exist_ok=True)
        (bin_dir / "llama-server").touch()
        (folder / "llama.json").write_text(json.dumps({"identity": source.identity, "label": "b11434"}))

    def _device(self, plan, *, jobs, progress):
        self.device += 1
        plan.folder.mkdir(parents=True)
        (plan.folder / "libggml-hot.so").touch()
        (plan.folder / "done").touch()
        return plan.folder / "libggml-hot.so"


@pytest.fixture
def compiled(monkeypatch):
    return FakeCompile(monkeypatch)


def source(**changes):
    facts = {"name": "x", "place": "p", "identity": "i", "build_number": 11434}
    return LlamaSource(**({"folder": None} | facts | changes))


def test_every_build_can_load_the_device_and_needs_no_network():
    options = llama.cmake_options(Backend.CPU, GCC, source())
    assert {"GGML_BACKEND_DL=ON", "BUILD_SHARED_LIBS=ON", "CMAKE_BUILD_TYPE=Release"} <= set(options)
    assert {"LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF", "LLAMA_USE_PREBUILT_UI=OFF"} <= set(options)
    assert any(option.startswith("GGML_NATIVE=") for option in options)
    assert "GGML_CUDA=ON" not in options


def test_the_build_number_is_told_where_git_could_not_know_it():
    assert "LLAMA_BUILD_NUMBER=11434" in llama.cmake_options(Backend.CPU, GCC, source())
    asked = llama.cmake_options(Backend.CPU, GCC, source(build_number=None))
    assert not [option for option in asked if option.startswith("LLAMA_BUILD_NUMBER")]


@pytest.mark.parametrize("gpu", [True, False])
def test_cuda_is_compiled_for_the_gpu_that_is_here_or_for_all(monkeypatch, gpu):
    monkeypatch.setattr(llama, "gpu_present", lambda backend: gpu)
    monkeypatch.setattr(llama, "find_gpu_compiler", lambda backend: "/cuda/bin/nvcc")
    options = llama.cmake_options(Backend.CUDA, GCC, source())
    assert {"GGML_CUDA=ON", "CMAKE_CUDA_COMPILER=/cuda/bin/nvcc"} <= set(options)
    assert ("CMAKE_CUDA_ARCHITECTURES=native" in options) == gpu


@pytest.mark.parametrize("text", ["GGML_LTO=ON", "-DGGML_LTO=ON", "GGML_LTO:BOOL=ON", " -DGGML_LTO:BOOL=ON "])
def test_an_option_of_the_users_may_be_written_in_any_usual_way(text):
    assert llama.cmake_options(Backend.CPU, GCC, source(), (text,))[-1] == "GGML_LTO=ON"


def test_an_option_of_the_users_wins_over_ours():
    options = llama.cmake_options(Backend.CPU, GCC, source(), ("CMAKE_BUILD_TYPE=Debug",))
    assert "CMAKE_BUILD_TYPE=Debug" in options
    assert "CMAKE_BUILD_TYPE=Release" not in options


@pytest.mark.parametrize(
    "text", ["GGML_BACKEND_DL=OFF", "-DBUILD_SHARED_LIBS:BOOL=0", "nonsense", "=ON", "-G Ninja"]
)
def test_an_option_that_is_none_or_would_hide_the_device_is_refused(text):
    with pytest.raises(BadSettingError):
        llama.cmake_options(Backend.CPU, GCC, source(), (text,))


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(source="/a", git="b"),
        BuildOptions(source="/a", llama_bin="/b"),
        BuildOptions(git="a", sdist="/b"),
        BuildOptions(headers="/a"),
        BuildOptions(headers="/a", source="/b"),
        BuildOptions(llama_bin="/a", cmake_options=("A=B",)),
    ],
    ids=str,
)
def test_ways_that_exclude_each_other_are_refused_together(options, tmp_path):
    with pytest.raises(BadSettingError):
        find_engine(options, cache_dir=tmp_path)


def test_there_are_no_zero_jobs():
    with pytest.raises(ValidationError):
        BuildOptions(jobs=0)


def test_nothing_is_found_in_an_empty_cache(tmp_path):
    assert find_engine(CPU, cache_dir=tmp_path) is None
    assert list_builds(tmp_path) == []


def test_a_finished_build_is_found_again_and_not_made_twice(cache, compiled):
    assert find_engine(CPU, cache_dir=cache) is None
    made = build_engine(CPU, cache_dir=cache)
    assert (compiled.llama, compiled.device) == (1, 1)
    assert made == find_engine(CPU, cache_dir=cache) == build_engine(CPU, cache_dir=cache)
    assert (compiled.llama, compiled.device) == (1, 1)
    assert (made.llama_build, made.backend, made.compiler) == ("b11434", Backend.CPU, "g++ 12")
    assert list_builds(cache) == [made]


def test_a_finished_build_is_used_without_a_network(cache, compiled, monkeypatch):
    build_engine(CPU, cache_dir=cache)
    monkeypatch.setattr(
        build_module.sources, "fetch_sdist", lambda *_, **__: pytest.fail("went to the network")
    )
    assert build_engine(CPU, cache_dir=cache).llama_build == "b11434"
    assert source_dir(CPU, cache_dir=cache) == pinned_folder(load_pin(), cache)


def test_options_and_compiler_each_make_another_build(cache, compiled, monkeypatch):
    keys = {build_engine(CPU, cache_dir=cache).key}
    keys.add(build_engine(CPU.model_copy(update={"cmake_options": ("GGML_LTO=ON",)}), cache_dir=cache).key)
    monkeypatch.setattr(build_module, "find_compiler", lambda: Compiler("c++", "cc", "g++ 13"))
    keys.add(build_engine(CPU, cache_dir=cache).key)
    assert len(keys) == compiled.llama == 3
    assert len(list_builds(cache)) == 3


def test_how_many_compilers_run_makes_no_other_build(cache, compiled):
    build_engine(CPU, cache_dir=cache)
    build_engine(CPU.model_copy(update={"jobs": 3}), cache_dir=cache)
    assert compiled.llama == 1


def test_a_change_of_the_device_rebuilds_only_the_device(cache, compiled, monkeypatch, tmp_path):
    first = build_engine(CPU, cache_dir=cache)
    vendor = tmp_path / "vendor"
    (vendor / "ggml-hot").mkdir(parents=True)
    (vendor / "ggml-hot" / "x.cpp").write_text("// changed")
    monkeypatch.setattr(build_module.device, "vendor_dir", lambda: vendor)
    assert find_engine(CPU, cache_dir=cache) is None
    second = build_engine(CPU, cache_dir=cache)
    assert (compiled.llama, compiled.device) == (1, 2)
    assert second.llama_server == first.llama_server
    assert second.device_library != first.device_library


def test_an_edited_checkout_is_built_again_in_the_same_folder(cache, compiled, tmp_path):
    folder = source_tree(tmp_path / "checkout")
    options = BuildOptions(backend=Backend.CPU, source=folder)
    first = build_engine(options, cache_dir=cache)
    (folder / "CMakeLists.txt").write_text("# edited, and longer\n")
    assert find_engine(options, cache_dir=cache) is None
    second = build_engine(options, cache_dir=cache)
    assert first.llama_server == second.llama_server  # Ninja compiles only what changed
    assert first.key != second.key
    assert first.device_library != second.device_library
    assert compiled.llama == 2


def test_a_build_whose_files_were_removed_is_not_listed(cache, compiled):
    made = build_engine(CPU, cache_dir=cache)
    made.llama_server.unlink()
    assert list_builds(cache) == []
    assert find_engine(CPU, cache_dir=cache) is None


def test_records_of_another_version_are_passed_over(cache):
    record = cache / "builds" / "old" / "engine.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"of": "another version"}')
    assert list_builds(cache) == []


def test_without_a_compiler_nothing_is_found_and_nothing_built(cache, compiled, monkeypatch):
    build_engine(CPU, cache_dir=cache)

    def none():
        raise NoCompilerError("none")

    monkeypatch.setattr(build_module, "find_compiler", none)
    assert find_engine(CPU, cache_dir=cache) is None
    with pytest.raises(NoCompilerError):
        build_engine(CPU, cache_dir=cache)


def test_too_little_space_stops_before_compiling(cache, compiled, monkeypatch):
    monkeypatch.setattr(build_module, "BUILD_BYTES", 10**22)
    with pytest.raises(NoSpaceError):
        build_engine(CPU, cache_dir=cache)
    assert compiled.llama == 0


def test_a_source_of_another_api_version_is_refused_before_compiling(cache, compiled, tmp_path):
    folder = source_tree(tmp_path / "checkout", api_version=99)
    with pytest.raises(ApiMismatchError):
        build_engine(BuildOptions(source=folder), cache_dir=cache)
    assert compiled.llama == 0


def test_an_incomplete_source_is_refused_before_compiling(cache, compiled, tmp_path):
    folder = source_tree(tmp_path / "checkout")
    (folder / "CMakeLists.txt").unlink()
    with pytest.raises(SourceInvalidError):
        build_engine(BuildOptions(source=folder), cache_dir=cache)
    assert compiled.llama == 0


def prebuilt_options(folder, **changes):
    return BuildOptions(llama_bin=folder, **changes)


@pytest.fixture
def loads(monkeypatch):
    """Decide whether the built llama-server loads the device."""
    answer = {"loads": True}

    class Check:
        @property
        def loads(self):
            return answer["loads"]

    monkeypatch.setattr(build_module.executable, "check_device", lambda server, library: Check())
    return answer


def test_a_built_llama_cpp_of_the_pinned_build_needs_only_the_device(cache, compiled, loads, tmp_path):
    made = build_engine(prebuilt_options(built(tmp_path / "release")), cache_dir=cache)
    assert (compiled.llama, compiled.device) == (0, 1)
    assert made.llama_server == tmp_path / "release" / "llama-server"
    assert (made.llama_build, made.source, made.options) == ("b11434", str(tmp_path / "release"), ())


def test_a_built_llama_cpp_of_another_build_needs_its_headers(cache, compiled, loads, tmp_path):
    folder = built(tmp_path / "release", version="version: 0.6.0 (build 11000, commit abc)")
    with pytest.raises(
        ApiMismatchError, match=r"is llama\.cpp b11000; hottune only has the headers of b11434"
    ):
        build_engine(prebuilt_options(folder), cache_dir=cache)
    headers = source_tree(tmp_path / "source")
    assert build_engine(prebuilt_options(folder, headers=headers), cache_dir=cache).llama_build == "b11000"


def test_headers_of_another_api_version_are_refused(cache, compiled, loads, tmp_path):
    headers = source_tree(tmp_path / "source", api_version=2)
    with pytest.raises(ApiMismatchError, match="GGML_BACKEND_API_VERSION 2"):
        build_engine(prebuilt_options(built(tmp_path / "release"), headers=headers), cache_dir=cache)


def test_a_device_that_the_server_does_not_load_does_not_count_as_built(cache, compiled, loads, tmp_path):
    options = prebuilt_options(built(tmp_path / "release"))
    loads["loads"] = False
    with pytest.raises(ApiMismatchError, match="does not load a device"):
        build_engine(options, cache_dir=cache)
    assert find_engine(options, cache_dir=cache) is None
    assert list_builds(cache) == []


def test_a_built_llama_cpp_without_the_wanted_back_end_is_refused(cache, compiled, loads, tmp_path):
    options = prebuilt_options(built(tmp_path / "release"), backend=Backend.CUDA)
    with pytest.raises(BackendUnavailableError, match="built for cpu, not for cuda"):
        build_engine(options, cache_dir=cache)


def test_an_updated_llama_cpp_gets_a_new_device(cache, compiled, loads, tmp_path):
    options = prebuilt_options(built(tmp_path / "release"))
    first = build_engine(options, cache_dir=cache)
    (tmp_path / "release" / "llama-server").write_text(
        "#!/bin/sh\necho 'version: 1.0 (build 11434, commit d)' >&2\n"
    )
    second = build_engine(options, cache_dir=cache)
    assert first.device_library != second.device_library


@pytest.mark.parametrize(
    ("version", "label"),
    [((11434, "abc"), "b11434"), ((0, "unknown"), "unknown"), ((1, "abc"), "commit abc"), (None, "unknown")],
)
def test_a_build_is_labelled_by_its_number_or_else_its_commit(version, label):
    assert build_label(version) == label


def test_a_checkouts_name_reaches_the_build(cache, compiled, tmp_path):
    folder = source_tree(tmp_path / "checkout")
    made = build_engine(BuildOptions(backend=Backend.CPU, source=folder), cache_dir=cache)
    assert isinstance(made, EngineBuild)
    assert made.source == checkout(folder).name
