from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hottune.engine import process

#: A parent and a child in one group, both deaf to SIGTERM; both write their pid.
STUBBORN_TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"])
print(os.getpid(), flush=True)
time.sleep(600)
"""


def running(pid: int) -> bool:
    """Tell whether a process runs (a zombie, dead but not yet reaped, does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def eventually(true: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def start(code: str, tmp_path: Path) -> process.ChildProcess:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    return process.start([sys.executable, str(script)], env=os.environ, log_path=tmp_path / "logs" / "x.log")


def pids_in(log: Path, n: int) -> list[int]:
    assert eventually(lambda: log.exists() and len(log.read_text().split()) >= n)
    return [int(word) for word in log.read_text().split()]


def test_both_outputs_end_up_in_the_log_file(tmp_path: Path) -> None:
    child = start("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    assert child.wait(10) == 0
    assert sorted(child.log_path.read_text().split()) == ["err", "out"]
    assert child.stop() == 0


def test_the_environment_is_exactly_the_given_one(tmp_path: Path) -> None:
    child = process.start(["/usr/bin/env"], env={"ONLY": "this"}, log_path=tmp_path / "x.log")
    assert child.wait(10) == 0
    assert child.log_path.read_text() == "ONLY=this\n"
    child.stop()


def test_an_exit_status_is_told_as_it_was(tmp_path: Path) -> None:
    child = start("raise SystemExit(7)", tmp_path)
    assert child.wait(10) == 7
    assert not child.alive()
    assert child.stop() == 7


def test_a_death_by_signal_is_a_negative_status(tmp_path: Path) -> None:
    child = start("import os; os.abort()", tmp_path)
    assert child.wait(10) == -signal.SIGABRT
    child.stop()


def test_a_program_may_end_cleanly_on_sigterm(tmp_path: Path) -> None:
    child = start(
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("counters written", flush=True), sys.exit(0)))
        print("up", flush=True)
        time.sleep(600)
        """,
        tmp_path,
    )
    assert eventually(lambda: "up" in child.log_path.read_text())
    assert child.stop() == 0
    assert "counters written" in child.log_path.read_text()


def test_stopping_kills_a_whole_tree_that_is_deaf_to_sigterm(tmp_path: Path) -> None:
    child = start(STUBBORN_TREE, tmp_path)
    pids = pids_in(child.log_path, 2)
    assert all(running(pid) for pid in pids)
    assert child.stop(grace_s=0.2) == -signal.SIGKILL
    assert eventually(lambda: not any(running(pid) for pid in pids))


def test_what_a_dead_program_left_behind_is_killed_too(tmp_path: Path) -> None:
    child = start(
        """
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
        """,
        tmp_path,
    )
    (orphan,) = pids_in(child.log_path, 1)
    assert child.wait(10) == 0
    assert running(orphan)
    child.stop()
    assert eventually(lambda: not running(orphan))


def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    child = start("import time; time.sleep(600)", tmp_path)
    assert child.stop() == child.stop() == -signal.SIGTERM


def test_a_missing_program_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        process.start([str(tmp_path / "nope")], env={}, log_path=tmp_path / "x.log")


def test_a_child_survives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    """The kernel's parent-death signal means the forking thread, so that thread must not be the caller's."""
    children: list[process.ChildProcess] = []
    thread = threading.Thread(target=lambda: children.append(start("import time; time.sleep(600)", tmp_path)))
    thread.start()
    thread.join()
    try:
        time.sleep(0.3)
        assert children[0].alive()
    finally:
        children[0].stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_kill_9_of_the_parent_leaves_no_server_behind(tmp_path: Path) -> None:
    """The child ignores SIGTERM and SIGHUP; only the kernel can end it."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys, time
            from pathlib import Path
            from hottune.engine import process
            code = (
                "import signal, time\\n"
                "for deaf_to in (signal.SIGTERM, signal.SIGHUP): signal.signal(deaf_to, signal.SIG_IGN)\\n"
                "print('up', flush=True); time.sleep(600)"
            )
            log = Path({str(tmp_path / "child.log")!r})
            child = process.start([sys.executable, "-c", code], env=os.environ, log_path=log)
            while "up" not in log.read_text():
                time.sleep(0.01)
            print(child.pid, flush=True)
            time.sleep(600)
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert running(child_pid)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert eventually(lambda: not running(child_pid), within_s=5)
    finally:
        parent.kill()
        if parent.stdout is not None:
            parent.stdout.close()
