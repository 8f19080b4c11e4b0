"""From the machine's state at each measurement to warnings that say what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import planned
import pytest

from hottune.machine.clocks import GpuState
from hottune.machine.cooldown import Cooled
from hottune.outcomes import Crashed, DuringRun, MachineState, Measurement
from hottune.tasks.conditions import condition_notes, with_before
from hottune.tasks.prepare import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    made = planned.plan(tmp_path)
    return replace(made, gpu=planned.gpu().model_copy(update={"pcie_max": "gen4 x16"}))


def measured(plan: Plan, *, before: dict[str, Any] | None = None, **during: Any) -> Measurement:
    state = MachineState(during=DuringRun(**({"samples": 100} | during)), **(before or {}))
    return planned.measured(plan.space.all_cpu(64), 1.0).model_copy(update={"machine_state": state})


def notes(plan: Plan, *found: Measurement) -> dict[str, str]:
    return dict(condition_notes(plan, list(found)))


def test_a_quiet_machine_gives_no_warning(plan: Plan) -> None:
    quiet = measured(
        plan,
        before={"vram_used_mib": 400},
        throttled={"power limit": 0.04},
        pcie_generation=4,
        pcie_width=16,
        other_vram_growth_mib=0,
        other_cpu_percent=3,
        swap_growth_mib=0,
    )
    assert notes(plan, quiet, quiet) == {}


def test_measurements_of_older_versions_without_a_state_give_none(plan: Plan) -> None:
    assert notes(plan, planned.measured(plan.space.all_cpu(64), 1.0)) == {}
    assert notes(plan) == {}


def test_lowered_clocks_are_named_with_their_share_of_all_samples(plan: Plan) -> None:
    found = notes(
        plan,
        measured(plan, throttled={"power limit": 0.4, "too hot (driver)": 0.02}),
        measured(plan, samples=300),
    )
    assert "power limit, 10% of the time" in found["throttled"]
    assert "too hot" not in found["throttled"]


def test_a_server_that_began_before_the_card_was_ready_is_counted(plan: Plan) -> None:
    restless = measured(plan, before={"settled": False, "waited_s": 30})
    text = notes(plan, measured(plan), restless)["not-settled"]
    assert "Before 1 of 2 servers" in text
    assert "after 30 s of waiting" in text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (({"vram_used_mib": 400}, {}), ({"vram_used_mib": 900}, {})),
        (({"vram_used_mib": 900}, {}), ({"vram_used_mib": 400}, {})),
        (({}, {"other_vram_growth_mib": 0}), ({}, {"other_vram_growth_mib": 500})),
    ],
)
def test_another_tenant_is_noticed_between_servers_and_during_them(
    plan: Plan, first: tuple[dict[str, Any], ...], second: tuple[dict[str, Any], ...]
) -> None:
    found = [measured(plan, before=before, **during) for before, during in (first, second)]
    assert "500 MiB" in notes(plan, *found)["vram-drift"]


def test_other_load_is_that_of_the_worst_server(plan: Plan) -> None:
    found = notes(plan, measured(plan, other_cpu_percent=2), measured(plan, other_cpu_percent=31))
    assert "31 % of the processor while a server was measured" in found["other-load"]


def test_memory_that_went_to_swap_meanwhile_is_told(plan: Plan) -> None:
    assert "200 MiB more went to swap" in notes(plan, measured(plan, swap_growth_mib=200))["swap-grew"]


@pytest.mark.parametrize(
    ("links", "words"),
    [([(3, 16), (1, 16)], "ran at gen3 x16"), ([(4, 8)], "ran at gen4 x8"), ([(1, 4), (4, 16)], "")],
)
def test_a_link_that_never_reached_its_best_is_told(
    plan: Plan, links: list[tuple[int, int]], words: str
) -> None:
    found = notes(plan, *(measured(plan, pcie_generation=one, pcie_width=two) for one, two in links))
    assert words in found.get("pcie-link", "")
    assert bool(words) == ("pcie-link" in found)


@pytest.mark.parametrize(("governor", "warned"), [("", 0), ("performance", 0), ("powersave", 1)])
def test_a_saving_governor_is_told(plan: Plan, governor: str, warned: int) -> None:
    cpu = plan.machine.cpu.model_copy(update={"governor": governor})
    saving = replace(plan, machine=plan.machine.model_copy(update={"cpu": cpu}))
    assert len(notes(saving)) == warned


def test_how_the_card_was_before_is_added_to_what_was_seen_during(plan: Plan) -> None:
    state = GpuState(temperature_c=44, sm_clock_mhz=345, power_w=60, vram_used_mib=500)
    found = with_before(measured(plan, power_w=210.0), Cooled(state, waited_s=12.5, settled=False))
    assert isinstance(found, Measurement)
    kept = found.machine_state
    assert kept is not None
    assert (kept.temperature_c, kept.sm_clock_mhz, kept.power_w, kept.vram_used_mib) == (44, 345, 60, 500)
    assert (kept.waited_s, kept.settled) == (12.5, False)
    assert kept.during is not None
    assert kept.during.power_w == 210


def test_what_is_no_measurement_stays_as_it_is() -> None:
    crashed = Crashed(exit_code=1, detail="x")
    assert with_before(crashed, Cooled(GpuState())) is crashed
