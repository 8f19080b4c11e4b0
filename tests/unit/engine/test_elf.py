"""The libraries a program asks for are read from the file itself."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_tree import elf

from hottune.engine.elf import needed_libraries
from hottune.engine.toolchain import find_compiler

_scratch = tempfile.NamedTemporaryFile()  # noqa: SIM115  one file for all examples
names = st.lists(st.from_regex(r"lib[a-z]{1,8}\.so(\.\d)?", fullmatch=True), max_size=6, unique=True)


@given(names)
def test_names_are_returned_in_order(wanted):
    path = Path(_scratch.name)
    path.write_bytes(elf(*wanted))
    assert needed_libraries(path) == wanted


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_damage_is_more_than_an_unknown(noise, cut):
    path = Path(_scratch.name)
    path.write_bytes(elf("liba.so", "libb.so")[:cut] + noise)
    found = needed_libraries(path)
    assert found is None or all(isinstance(name, str) for name in found)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF is the format of Linux")
def test_a_real_library_agrees_with_its_linker(tmp_path):
    compiler = find_compiler()
    library = tmp_path / "libx.so"
    source = tmp_path / "x.c"
    source.write_text("double cos(double); double f(double x) { return cos(x); }\n")
    subprocess.run(
        [compiler.cc, "-shared", "-fPIC", "-Wl,--no-as-needed", "-o", library, source, "-lm"], check=True
    )
    found = needed_libraries(library)
    assert found is not None
    assert "libm.so.6" in found


def test_a_script_is_no_elf_file(tmp_path):
    script = tmp_path / "x"
    script.write_text("#!/bin/sh\n")
    assert needed_libraries(script) is None
