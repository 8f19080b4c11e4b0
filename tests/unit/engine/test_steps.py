"""A build step leaves a complete log, reports live, and never leaves a process behind."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.engine.steps import error_lines, parse_ninja, require_success, run_step, stop_tree
from hottune.errors import BuildFailedError, NoSpaceError


def test_the_log_has_the_command_and_both_outputs(tmp_path):
    log = tmp_path / "logs" / "build.log"
    code = run_step(["sh", "-c", "echo out; echo err >&2; exit 3"], log=log)
    assert code == 3
    assert log.read_text() == "$ sh -c echo out; echo err >&2; exit 3\nout\nerr\n"


def test_every_line_is_reported_while_the_step_runs(tmp_path):
    seen = []
    run_step(["sh", "-c", "echo one; echo two"], log=tmp_path / "log", on_line=seen.append)
    assert seen == ["one", "two"]


def test_bytes_that_are_no_text_do_not_stop_a_build(tmp_path):
    seen = []
    code = run_step(["printf", r"\377\376\n"], log=tmp_path / "log", on_line=seen.append)
    assert (code, len(seen)) == (0, 1)


def test_added_variables_join_the_environment(tmp_path):
    seen = []
    run_step(
        ["sh", "-c", "echo $HOTTUNE_X $HOME"], log=tmp_path / "l", env={"HOTTUNE_X": "7"}, on_line=seen.append
    )
    assert seen == [f"7 {os.environ.get('HOME', '')}".strip()]


def interrupt(pids):
    def on_line(line):
        pids.extend(int(word) for word in line.split())
        raise KeyboardInterrupt

    return on_line


#: Starts a grandchild in a session of its own that ignores the polite signal, as a compiler might.
STUBBORN = """
import signal, subprocess, sys, time, os
inner = "import signal, time; signal.signal(2, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", inner], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def test_an_interrupt_ends_the_step_with_all_its_descendants(tmp_path):
    pids = []
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_step([sys.executable, "-c", STUBBORN], log=tmp_path / "log", on_line=interrupt(pids))
    assert time.monotonic() - started < 10
    assert len(pids) == 2
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_stopping_a_process_that_ended_already_is_harmless():
    process = subprocess.Popen(["true"], start_new_session=True, text=True)
    process.wait()
    stop_tree(process)
    assert process.returncode == 0


@given(
    done=st.integers(0, 10**6),
    total=st.integers(0, 10**6),
    what=st.text(st.characters(exclude_categories=["C", "Z"])),
)
def test_ninjas_status_lines_are_understood(done, total, what):
    assert parse_ninja(f"[{done}/{total}] {what}") == (done, total, what)


@pytest.mark.parametrize(
    "line", ["", "[1/2", "[a/b] x", "ninja: Entering directory", "FAILED: [1/2] x", "[1/2]x"]
)
def test_other_lines_are_no_status(line):
    assert parse_ninja(line) is None


def test_the_reason_of_a_compilers_failure_is_found_between_other_output():
    log = "[1/9] Building a\nFAILED: b.o\nb.cpp:3:1: error: 'x' was not declared\n    3 | x;\nninja: stopped"
    assert "b.cpp:3:1: error: 'x' was not declared" in error_lines(log)


def test_the_reason_of_cmakes_failure_stands_on_the_lines_after_its_headline():
    log = "-- ok\nCMake Error at CMakeLists.txt:3 (find_package):\n  Could not find Vulkan\n-- Incomplete"
    assert "  Could not find Vulkan" in error_lines(log)


def test_without_a_known_error_the_last_lines_are_shown():
    assert error_lines("\n".join(f"line {n}" for n in range(50)))[-1] == "line 49"


@given(st.text())
def test_any_log_gives_few_lines(text):
    assert len(error_lines(text)) <= 8


def test_a_failed_step_names_its_log_and_shows_only_its_own_errors(tmp_path):
    log = tmp_path / "build.log"
    run_step(["sh", "-c", "echo old error: one; exit 1"], log=log)
    code = run_step(["sh", "-c", "echo new error: two; exit 1"], log=log)
    with pytest.raises(BuildFailedError) as caught:
        require_success(code, step="Building llama.cpp", log=log)
    assert "new error: two" in str(caught.value)
    assert "old error" not in str(caught.value)
    assert str(log) in caught.value.next_step


def test_a_compiler_killed_for_memory_leads_to_fewer_jobs(tmp_path):
    log = tmp_path / "build.log"
    log.write_text("$ ninja\nc++: fatal error: Killed signal terminated program cc1plus\n")
    with pytest.raises(BuildFailedError, match="--jobs 1"):
        require_success(1, step="Building", log=log)


def test_a_full_disk_is_told_as_such(tmp_path):
    log = tmp_path / "build.log"
    log.write_text("$ ninja\nfatal error: error writing to x.o: No space left on device\n")
    with pytest.raises(NoSpaceError):
        require_success(1, step="Building", log=log)


def test_success_is_silent(tmp_path):
    require_success(0, step="Building", log=tmp_path / "never read")
