"""Building for real: CMake, Ninja and compilers run; the engine is the one that `hottune build` made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, build_engine, find_engine, source_dir
from hottune.engine.executable import check_device, server_version
from hottune.engine.facts import EngineBuild
from hottune.engine.llama import compile_llama, finished_build
from hottune.engine.pin import load_pin
from hottune.engine.sources import checkout
from hottune.engine.toolchain import find_compiler
from hottune.errors import BuildFailedError
from hottune.progress import NoProgress

pytestmark = pytest.mark.real

#: Three steps that take as long as a test says, under llama.cpp's names.
PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(slow CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
foreach (n 1 2)
    add_custom_command(OUTPUT step${n}.txt DEPENDS ${CMAKE_SOURCE_DIR}/slow${n}.sh
                       COMMAND sh ${CMAKE_SOURCE_DIR}/slow${n}.sh && ${CMAKE_COMMAND} -E touch step${n}.txt)
endforeach()
add_custom_target(first DEPENDS step1.txt)
add_custom_target(slow DEPENDS step2.txt)
add_dependencies(slow first)
foreach (name llama-server llama-fit-params llama-bench)
    add_executable(${name} main.cpp)
    add_dependencies(${name} slow)
endforeach()
"""
MAIN = '#include <cstdio>\nint main() { puts("version: 0.6.0 (build 77, commit abc)"); }\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(PROJECT)
    (folder / "main.cpp").write_text(MAIN)
    for n in (1, 2):
        (folder / f"slow{n}.sh").write_text(f"echo {n} >> ${{0%/*}}/../ran\n")
    return folder


@pytest.fixture(scope="module")
def engine() -> EngineBuild:
    found = find_engine(BuildOptions(), cache_dir=cache_dir())
    if found is None:
        pytest.skip("there is no engine yet; make it with: hottune build")
    return found


class Recorder(NoProgress):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, float | None]] = []
        self.tasks: list[str] = []

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        self.tasks.append(task)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self.updates.append((done, total))


def compile_project(project: Path, folder: Path, progress: NoProgress) -> None:
    compile_llama(folder, checkout(project), find_compiler(), ("A=B",), jobs=2, progress=progress)


def test_a_build_reports_its_steps_keeps_its_log_and_is_stamped_last(project, tmp_path):
    progress = Recorder()
    compile_project(project, tmp_path / "build", progress)
    assert progress.tasks == ["Configuring llama.cpp", "Building llama.cpp"]
    done, total = progress.updates[-1]
    assert done == total
    assert done > 5
    log = (tmp_path / "build" / "build.log").read_text()
    assert "-DA=B" in log
    assert "Linking CXX executable" in log
    assert finished_build(tmp_path / "build", checkout(project)) == "b77"
    (project / "main.cpp").write_text(MAIN + "// edited\n")
    assert finished_build(tmp_path / "build", checkout(project)) is None


def test_an_error_of_the_compiler_is_shown_with_the_log(project, tmp_path):
    (project / "main.cpp").write_text("int main() { return nonsense; }\n")
    with pytest.raises(BuildFailedError, match="nonsense") as caught:
        compile_project(project, tmp_path / "build", NoProgress())
    assert str(tmp_path / "build" / "build.log") in caught.value.next_step
    assert finished_build(tmp_path / "build", checkout(project)) is None


def test_an_error_of_cmake_is_shown_with_its_reason(project, tmp_path):
    (project / "CMakeLists.txt").write_text(PROJECT + 'message(FATAL_ERROR "no such back-end")\n')
    with pytest.raises(BuildFailedError, match="no such back-end"):
        compile_project(project, tmp_path / "build", NoProgress())


def test_ctrl_c_ends_every_process_of_a_build_and_the_next_one_resumes(project, tmp_path):
    (project / "slow2.sh").write_text("echo 2 >> ${0%/*}/../ran\nexec sleep 300\n")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_build import compile_project
from hottune.progress import NoProgress
compile_project(Path({str(project)!r}), Path({str(tmp_path / "build")!r}), NoProgress())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True
    )
    ran = project.parent / "ran"
    wait_for(lambda: ran.exists() and ran.read_text() == "1\n2\n")
    family = psutil.Process(process.pid).children(recursive=True)
    assert any(child.name() == "sleep" for child in family)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) != 0
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []

    (project / "slow2.sh").write_text("echo 2 >> ${0%/*}/../ran\n")
    compile_project(project, tmp_path / "build", NoProgress())
    assert ran.read_text() == "1\n2\n2\n"  # the first step was not done again
    assert finished_build(tmp_path / "build", checkout(project)) == "b77"


def wait_for(condition, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_the_engine_is_the_pinned_build_and_sees_our_devices(engine):
    assert engine.llama_build == load_pin().build
    check = check_device(engine.llama_server, engine.device_library)
    assert check.hot, check.output
    assert check.virtual_gpu, check.output


def test_the_device_is_not_there_unless_it_is_asked_for(engine):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GGML_")}
    done = subprocess.run(
        [engine.llama_server, "--list-devices"], env=env, capture_output=True, text=True, check=True
    )
    assert "HOT" not in done.stdout
    assert "VGPU" not in done.stdout


def test_the_source_has_the_vocabularies_that_models_are_made_with(engine):
    folder = source_dir(BuildOptions(), cache_dir=cache_dir())
    assert (folder / "models" / "ggml-vocab-qwen2.gguf").stat().st_size > 10**6


def test_a_built_llama_cpp_gets_its_device_in_seconds_and_without_a_network(engine, tmp_path):
    version = server_version(engine.llama_server)
    assert version is not None
    assert version[0] == load_pin().build_number
    headers = source_dir(BuildOptions(), cache_dir=cache_dir())
    options = BuildOptions(llama_bin=engine.llama_server.parent, headers=headers)
    started = time.monotonic()
    made = build_engine(options, cache_dir=tmp_path)
    assert time.monotonic() - started < 120
    assert made.llama_server == engine.llama_server
    assert made.device_library.is_relative_to(tmp_path)
    assert check_device(made.llama_server, made.device_library).loads


def hottune(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environ}
    return subprocess.run(
        [sys.executable, "-m", "hottune.cli.app", *words], env=env, capture_output=True, text=True
    )


def test_build_as_json_is_nothing_but_the_build(engine):
    done = hottune("build", "--json")
    assert done.returncode == 0
    assert EngineBuild.model_validate(json.loads(done.stdout)) == engine


def test_no_compiler_on_the_path_has_its_own_exit_code(tmp_path):
    done = hottune("build", PATH=str(tmp_path), CXX="", HOTTUNE_CACHE=str(tmp_path))
    assert done.returncode == 20
    assert "no C++ compiler on PATH" in done.stderr


def test_a_wrong_archive_has_its_own_exit_code_and_stays(tmp_path):
    wrong = tmp_path / "own.tar.gz"
    wrong.write_bytes(b"not llama.cpp")
    done = hottune("build", "--sdist", str(wrong), "--json", HOTTUNE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 22
    assert json.loads(done.stdout)["error"]["type"] == "ChecksumError"
    assert wrong.exists()


def test_the_doctor_finds_the_engine_and_a_missing_compiler(engine, tmp_path):
    well = hottune("doctor", "--json")
    assert well.returncode == 0
    findings = json.loads(well.stdout)
    assert [b["device_loads"] for b in findings["builds"] if b["build"]["key"] == engine.key] == [True]
    ill = hottune("doctor", "--json", PATH=str(tmp_path), CXX="")
    assert ill.returncode == 20
    assert any("no C++ compiler" in problem for problem in json.loads(ill.stdout)["problems"])
