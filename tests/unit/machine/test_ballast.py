"""The helper process as hottune starts and ends it: real processes, with a stand-in for the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hottune.errors import BallastError
from hottune.machine import ballast
from hottune.machine.ballast import held, why_not
from hottune.machine.facts import Gpu
from hottune.machine.probe import virtual_gpu

GPU = Gpu(index=0, name="Test 80G", uuid="GPU-0", vram_total_mib=80 * 1024, vram_free_mib=79 * 1024)
HERE = str(Path(__file__).parent)

#: The holder with a fake card of 80 GiB, which `other` programs use with so many MiB.
HOLDER = """
import sys
sys.path.insert(0, {here!r})
import fake_cuda, fake_nvml
card = fake_nvml.FakeGpu(total=80 << 30, used=0, reserved=0, processes={others!r})
sys.modules["pynvml"] = fake_nvml.fake_nvml([card])
from hottune.machine import ballast_holder
library = fake_cuda.FakeCuda(card=card, context_bytes=500 << 20)
arguments = ["" if one == "GPU-0" else one for one in sys.argv[1:]]
raise SystemExit(ballast_holder.main(arguments, library=library))
"""


def holder(others: list[tuple[int, int]] | None = None) -> list[str]:
    return [sys.executable, "-c", HOLDER.format(here=HERE, others=others or [])]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def eventually(true: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_the_helper_holds_all_above_the_ceiling_until_the_block_ends() -> None:
    with held(GPU, 24 * 1024, command=holder()) as it:
        assert running(it.pid)
        assert it.facts.free_mib == 24 * 1024
        assert it.facts.held_mib == 56 * 1024
        it.require()
    assert not running(it.pid)


def test_the_helper_ends_with_an_error_in_the_block_too() -> None:
    with pytest.raises(KeyboardInterrupt), held(GPU, 24 * 1024, command=holder()) as it:
        raise KeyboardInterrupt
    assert not running(it.pid)


def test_a_refusal_is_an_error_that_says_what_to_do() -> None:
    with (
        pytest.raises(BallastError, match="process 4242") as caught,
        held(GPU, 24 * 1024, command=holder([(4242, 1 << 30)])),
    ):
        pass
    assert "--no-ballast" in caught.value.next_step
    assert "Test 80G" in caught.value.what


def test_a_helper_that_dies_at_once_is_an_error_with_its_last_words() -> None:
    command = [sys.executable, "-c", "raise RuntimeError('no such thing')"]
    with pytest.raises(BallastError, match="no such thing"), held(GPU, 1024, command=command):
        pass


def test_the_helper_is_ours_also_where_another_hottune_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoy = tmp_path / "hottune"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    no_such_card = GPU.model_copy(update={"index": 99, "uuid": "GPU-none"})
    with pytest.raises(BallastError, match="No ballast on") as caught, held(no_such_card, 1024):
        pass
    assert "--no-ballast" in caught.value.next_step


def test_a_helper_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballast, "FILL_LIMIT_S", 0.3)
    began = time.monotonic()
    with (
        pytest.raises(BallastError, match="in time"),
        held(GPU, 1024, command=[sys.executable, "-c", "import sys; sys.stdin.read()"]),
    ):
        pass
    assert time.monotonic() - began < 8


def test_a_ballast_that_is_lost_on_the_way_is_noticed() -> None:
    with held(GPU, 24 * 1024, command=holder()) as it:
        os.kill(it.pid, signal.SIGKILL)
        assert eventually(lambda: not running(it.pid), 5)
        with pytest.raises(BallastError, match="is gone"):
            it.require()


PARENT = """
import sys, time
sys.path.insert(0, {here!r})
from test_ballast import GPU, holder
from hottune.machine.ballast import held
with held(GPU, 24 * 1024, command=holder()) as it:
    print(it.pid, flush=True)
    {then}
"""


@pytest.fixture
def parent() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(then: str) -> subprocess.Popen[str]:
        code = PARENT.format(here=HERE, then=then)
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_kill_9_of_hottune_takes_the_ballast_with_it(
    parent: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = parent("time.sleep(600)")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert running(pid)
    process.send_signal(signal.SIGKILL)
    assert eventually(lambda: not running(pid), 2)


@pytest.mark.parametrize("by", ["pipe", "kernel"])
def test_either_tie_alone_ends_the_helper(by: str, tmp_path: Path) -> None:
    """A helper without the kernel's signal (`pipe`); one whose pipe never breaks (`kernel`)."""
    no_signal = "ballast_holder.die_with = lambda parent: None"
    code = HOLDER.format(here=HERE, others=[])
    if by == "pipe":
        code = code.replace("\nlibrary", f"\n{no_signal}\nlibrary")
    arguments = "'--gpu', '0', '--leave-mib', '24576', '--parent', str(os.getpid())"
    stdin = "subprocess.PIPE" if by == "pipe" else f"os.open({str(tmp_path / 'fifo')!r}, os.O_RDWR)"
    os.mkfifo(tmp_path / "fifo")
    script = (
        "import os, subprocess, sys, time\n"
        f"it = subprocess.Popen([sys.executable, '-c', {code!r}, {arguments}],"
        f" stdin={stdin}, stdout=subprocess.PIPE)\n"
        "it.stdout.readline(); print(it.pid, flush=True); time.sleep(600)\n"
    )
    keeper = os.open(tmp_path / "fifo", os.O_RDWR)  # somebody else keeps the pipe whole
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert running(pid)
        process.kill()
        assert eventually(lambda: not running(pid), 2)
    finally:
        process.kill()
        process.communicate()
        os.close(keeper)


def test_a_ballast_is_for_real_cards_that_are_clearly_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballast, "driver_is_here", lambda: True)
    assert why_not(GPU, 24 * 1024) == ""
    assert "less than 1024 MiB" in why_not(GPU, GPU.vram_free_mib - 1000)
    assert "NVML" in why_not(GPU.model_copy(update={"uuid": ""}), 24 * 1024)
    assert "virtual" in why_not(virtual_gpu(80 * 1024), 24 * 1024)
    monkeypatch.setattr(ballast, "driver_is_here", lambda: False)
    assert "CUDA driver" in why_not(GPU, 24 * 1024)
