from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hottune.errors import StudyBusyError
from hottune.search.lock import study_lock

HOLDER = """
import sys, time
from pathlib import Path
from hottune.search.lock import study_lock
with study_lock(Path(sys.argv[1]), 'mine'):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_study_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(StudyBusyError, match=rf"'mine'.*{holder.pid}"),
            study_lock(path, "The study 'mine'"),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]
    with study_lock(path, "The study 'mine'"):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_lock_is_free_again_after_its_block(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "mine.lock"
    for _ in range(2):
        with study_lock(path, "The study 'mine'"):
            assert path.exists()
