"""An already built llama.cpp is found in its usual layouts, and refused when it would ignore our device."""

import pytest
from llama_tree import built, library, server

from hottune.engine.elf import needed_libraries
from hottune.engine.facts import Backend
from hottune.engine.prebuilt import _libraries, _reaches, find_prebuilt, link_folder
from hottune.errors import SourceInvalidError


def test_a_release_archive_has_everything_in_one_folder(tmp_path):
    found = find_prebuilt(built(tmp_path))
    assert found.llama_server == tmp_path / "llama-server"
    assert found.libraries == (tmp_path / "libggml-base.so", tmp_path / "libggml.so")
    assert (found.backend, found.build_number, found.commit) == (Backend.CPU, 11434, "abc")
    assert found.llama_fit_params is None


def test_the_top_folder_of_a_build_leads_to_its_bin(tmp_path):
    built(tmp_path / "bin")
    (tmp_path / "bin" / "llama-fit-params").touch()
    found = find_prebuilt(tmp_path)
    assert found.llama_server == tmp_path / "bin" / "llama-server"
    assert found.llama_fit_params == tmp_path / "bin" / "llama-fit-params"


@pytest.mark.parametrize("lib", ["lib", "lib64", "lib/x86_64-linux-gnu"])
@pytest.mark.parametrize("backends", ["", "ggml", "ggml/backends0"])
def test_a_system_package_has_its_libraries_under_lib_and_its_back_ends_maybe_deeper(tmp_path, lib, backends):
    server(tmp_path / "usr" / "bin")
    folder = tmp_path / "usr" / lib
    library(folder, "libggml-base.so.0", "libc.so.6")
    library(folder, "libggml.so.0", "libggml-base.so.0")
    library(folder / backends, "libggml-cpu-haswell.so", "libggml-base.so.0")
    library(folder / backends, "libggml-vulkan.so", "libggml-base.so.0")
    found = find_prebuilt(tmp_path / "usr" / "bin")
    assert found.libraries == (folder / "libggml-base.so.0", folder / "libggml.so.0")
    assert found.backend is Backend.VULKAN


def test_the_older_form_of_the_version_line_is_understood(tmp_path):
    found = find_prebuilt(built(tmp_path, version="version: 6123 (79c1160b)"))
    assert (found.build_number, found.commit) == (6123, "79c1160b")


def test_a_folder_without_a_server_is_refused(tmp_path):
    with pytest.raises(SourceInvalidError, match="no llama-server"):
        find_prebuilt(tmp_path)


def test_a_server_that_does_not_run_is_refused(tmp_path):
    built(tmp_path)
    (tmp_path / "llama-server").chmod(0o644)
    with pytest.raises(SourceInvalidError, match="does not run here"):
        find_prebuilt(tmp_path)


def test_a_static_server_is_refused_because_it_would_ignore_the_device(tmp_path):
    server(tmp_path)
    with pytest.raises(SourceInvalidError, match="linked statically") as caught:
        find_prebuilt(tmp_path)
    assert "silently ignores" in caught.value.why


def test_libraries_of_another_llama_cpp_nearby_do_not_make_a_static_server_dynamic(tmp_path):
    stranger = library(tmp_path, "llama-server", "libc.so.6")
    built(tmp_path / "lib")
    assert not _reaches(stranger, "ggml-base", _libraries([tmp_path / "lib"]))


def test_a_server_may_reach_ggml_through_its_other_libraries(tmp_path):
    program = library(tmp_path, "llama-server", "libllama-server-impl.so", "libc.so.6")
    library(tmp_path, "libllama-server-impl.so", "libllama.so.0")
    library(tmp_path, "libllama.so.0", "libllama-server-impl.so", "libggml-base.so.0")
    assert _reaches(program, "ggml-base", _libraries([tmp_path]))


def test_a_build_with_its_back_ends_linked_in_is_refused(tmp_path):
    built(tmp_path)
    library(tmp_path, "libggml.so", "libggml-cpu.so.0", "libggml-base.so.0")
    with pytest.raises(SourceInvalidError, match="GGML_BACKEND_DL"):
        find_prebuilt(tmp_path)


def test_a_build_without_any_cpu_back_end_library_is_refused(tmp_path):
    built(tmp_path)
    (tmp_path / "libggml-cpu.so").unlink()
    with pytest.raises(SourceInvalidError, match="GGML_BACKEND_DL"):
        find_prebuilt(tmp_path)


def test_the_linker_gets_plain_names_even_where_only_versioned_ones_exist(tmp_path):
    found = find_prebuilt(built(tmp_path / "release", version_suffix=".0.26"))
    folder = link_folder(found, tmp_path / "lib")
    assert sorted(path.name for path in folder.iterdir()) == ["libggml-base.so", "libggml.so"]
    assert (folder / "libggml.so").resolve() == tmp_path / "release" / "libggml.so.0.26"
    assert needed_libraries(folder / "libggml.so") == ["libggml-base.so.0", "libc.so.6"]
    assert link_folder(found, tmp_path / "lib") == folder  # a second time is no error
