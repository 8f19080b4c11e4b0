"""How the device's build folders are configured."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hottune.engine.device import cmake_command


def project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.20)\nproject(nothing NONE)\n")
    return folder


def test_a_folder_that_another_checkout_configured_is_configured_afresh(tmp_path: Path) -> None:
    one, other, build = project(tmp_path / "one"), project(tmp_path / "other"), tmp_path / "build"
    for source in (one, one, other, other, one):
        command = [str(part) for part in cmake_command(source, build)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert f"CMAKE_HOME_DIRECTORY:INTERNAL={one}" in (build / "CMakeCache.txt").read_text()


def test_the_same_checkout_keeps_what_it_configured(tmp_path: Path) -> None:
    source, build = project(tmp_path / "one"), tmp_path / "build"
    assert "--fresh" not in cmake_command(source, build)
    build.mkdir()
    (build / "CMakeCache.txt").write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={source}\n")
    assert "--fresh" not in cmake_command(source, build)
