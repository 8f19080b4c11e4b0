"""Waiting until a card is about as it was before the first server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hottune.machine.clocks import GpuState
from hottune.machine.cooldown import Cooldown
from hottune.machine.facts import Gpu
from hottune.machine.probe import virtual_gpu

GPU = Gpu(index=0, name="card", vram_total_mib=24000, vram_free_mib=23000)


class Card:
    """States one after another; sleeping moves the clock on."""

    def __init__(self, *states: GpuState) -> None:
        self.states = list(states)
        self.clock = 0.0

    def look(self, gpu: Gpu) -> GpuState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def cooldown(self) -> Cooldown:
        return Cooldown(GPU, limit_s=30, look=self.look, sleep=self.sleep, now=lambda: self.clock)


def state(celsius: float | None = 60, busy: float | None = 0, *why: str) -> GpuState:
    return GpuState(temperature_c=celsius, utilisation_percent=busy, throttled_by=why)


def test_the_first_server_waits_for_nothing_whatever_the_card_is_doing() -> None:
    found = Card(state(90, 100, "power limit")).cooldown().wait()
    assert (found.waited_s, found.settled) == (0, True)


@pytest.mark.parametrize(
    ("now", "waits"),
    [
        (state(75), False),
        (state(76), True),
        (state(70, 5), False),
        (state(70, 6), True),
        (state(70, 0, "power limit"), True),
        (state(None, None), False),
    ],
)
def test_a_card_is_waited_for_while_it_is_hotter_busier_or_throttled(now: GpuState, waits: bool) -> None:
    card = Card(state(70), now, now, state(71))
    cooldown = card.cooldown()
    cooldown.wait()
    found = cooldown.wait()
    assert found.settled
    assert found.waited_s == (1.0 if waits else 0.0)
    assert found.state == (state(71) if waits else now)


def test_a_card_that_is_cool_enough_need_not_be_as_cold_as_at_first() -> None:
    card = Card(state(25), state(60))
    cooldown = card.cooldown()
    cooldown.wait()
    assert cooldown.wait().waited_s == 0


def test_what_a_desktop_or_a_power_limit_did_from_the_start_is_not_waited_for() -> None:
    card = Card(state(60, 30, "power limit"), state(60, 30, "power limit"))
    cooldown = card.cooldown()
    cooldown.wait()
    assert cooldown.wait().waited_s == 0


def test_waiting_ends_and_says_that_the_card_was_not_ready() -> None:
    card = Card(state(40), state(90))
    cooldown = card.cooldown()
    cooldown.wait()
    found = cooldown.wait()
    assert (found.settled, found.waited_s) == (False, 30)


def test_the_virtual_gpu_is_always_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep: Callable[[float], None] = slept.append
    cooldown = Cooldown(virtual_gpu(64), sleep=sleep)
    assert cooldown.wait().settled
    assert cooldown.wait().settled
    assert slept == []
