"""What the helper process takes, and when it refuses; the driver and NVML are stand-ins that share a card."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import fake_cuda
import fake_nvml as fake
import pytest

from hottune.machine import ballast_holder
from hottune.machine.ballast_holder import Refused, fill
from hottune.machine.cuda_driver import CudaUnavailable, opened
from hottune.units import MIB, mib

CONTEXT = 500 * MIB + 300 * 1024  # no multiple of a page


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake.FakeGpu:
    gpu = fake.FakeGpu(total=80 * fake.GIB, used=600 * MIB, reserved=600 * MIB)
    monkeypatch.setitem(sys.modules, "pynvml", fake.fake_nvml([gpu]))
    monkeypatch.setattr(ballast_holder, "STILL_S", 0.0)
    monkeypatch.setattr(ballast_holder, "die_with", lambda parent: None)
    return gpu


def free_mib(card: fake.FakeGpu) -> float:
    return mib(card.total - card.used)


def filled(card: fake.FakeGpu, leave_mib: float, **driver: Any) -> tuple[float, fake_cuda.FakeCuda]:
    """Return what is free while the ballast is held, and the driver afterwards."""
    library = fake_cuda.FakeCuda(card=card, context_bytes=CONTEXT, **driver)
    with ExitStack() as ending:
        cuda = ending.enter_context(opened(library=library))
        fill(cuda, ending, lambda: free_mib(card), leave_mib, still_s=0)
        held = free_mib(card)
    return held, library


@pytest.mark.parametrize("leave_mib", [24 * 1024, 12345, 70 * 1024])
def test_what_stays_free_is_the_ceiling_to_a_page_and_never_less(
    card: fake.FakeGpu, leave_mib: float
) -> None:
    held_free, library = filled(card, leave_mib)
    assert leave_mib <= held_free < leave_mib + ballast_holder.PAGE_MIB
    assert library.held == []
    assert card.used == 600 * MIB, "all is given back"


def test_a_ceiling_that_the_own_context_already_breaks_is_refused(card: fake.FakeGpu) -> None:
    with pytest.raises(Refused, match="beside the ballast's own CUDA context"):
        filled(card, free_mib(card) - 100)
    assert card.used == 600 * MIB


@pytest.mark.parametrize(("change", "word"), [(200 * MIB, "took 200"), (-200 * MIB, "gave back 200")])
def test_somebody_else_at_work_on_the_card_is_noticed(card: fake.FakeGpu, change: int, word: str) -> None:
    library = fake_cuda.FakeCuda(card=card, context_bytes=CONTEXT)
    questions = 0

    def asked() -> float:
        nonlocal questions
        questions += 1
        if questions == 5:
            card.used += change
        return free_mib(card)

    with pytest.raises(Refused, match=word), ExitStack() as ending:
        fill(ending.enter_context(opened(library=library)), ending, asked, 24 * 1024, still_s=0)
    assert card.used == 600 * MIB + change, "what was taken is given back"


def test_somebody_who_comes_when_all_is_taken_is_noticed(card: fake.FakeGpu) -> None:
    library = fake_cuda.FakeCuda(card=card, context_bytes=CONTEXT)

    def asked() -> float:
        if free_mib(card) < 24 * 1024 + 2:
            card.used += 50 * MIB  # the first time is only just too little to be sure
        return free_mib(card)

    with pytest.raises(Refused), ExitStack() as ending:
        fill(ending.enter_context(opened(library=library)), ending, asked, 24 * 1024, still_s=0)


def test_a_driver_that_refuses_gives_everything_back(card: fake.FakeGpu) -> None:
    with pytest.raises(CudaUnavailable, match="cuMemAlloc_v2"):
        filled(card, 1024, fails="cuMemAlloc_v2")
    assert card.used == 600 * MIB


def run_holder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], card: fake.FakeGpu, **driver: Any
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))  # ends at once
    arguments = ["--gpu", "0", "--leave-mib", "24576", "--parent", str(os.getppid())]
    library = fake_cuda.FakeCuda(card=card, context_bytes=CONTEXT, **driver)
    code = ballast_holder.main(arguments, library=library)
    return code, json.loads(capsys.readouterr().out)


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], card: fake.FakeGpu) -> Run:
    return lambda **driver: run_holder(monkeypatch, capsys, card, **driver)


def test_what_is_held_counts_the_context(run: Run, card: fake.FakeGpu) -> None:
    before = free_mib(card)
    code, said = run()
    assert code == 0
    assert 24576 <= said["free_mib"] < 24578
    assert said["held_mib"] == before - said["free_mib"]
    assert card.used == 600 * MIB


@pytest.mark.parametrize("used", [400 * MIB, None])
def test_other_computing_programs_are_not_starved(run: Run, card: fake.FakeGpu, used: int | None) -> None:
    card.processes = [(4242, used)]
    code, said = run()
    assert code == 3
    assert "4242" in said["refused"]


def test_a_desktop_is_let_be(run: Run, card: fake.FakeGpu) -> None:
    card.drawing = [(7, 400 * MIB)]
    card.processes = [(7, 400 * MIB), (8, 30 * MIB)]  # 7 does both
    card.used += 430 * MIB
    assert run()[0] == 0


def test_programs_that_the_driver_hides_are_not_starved_either(run: Run, card: fake.FakeGpu) -> None:
    card.used += 900 * MIB
    code, said = run()
    assert code == 3
    assert "900 MiB are held by programs" in said["refused"]


def test_an_older_driver_that_cannot_tell_its_reserve_is_believed(run: Run, card: fake.FakeGpu) -> None:
    card.reserved = None
    assert run()[0] == 0


def test_no_cuda_is_a_refusal_with_its_reason(run: Run) -> None:
    code, said = run(fails="cuInit", code=100)
    assert (code, "cuInit failed" in said["refused"]) == (3, True)
