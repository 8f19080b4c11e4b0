"""The machine around the measurements: recorded with each, and judged over all of them."""

from __future__ import annotations

from hottune.machine.cooldown import Cooled
from hottune.machine.probe import link
from hottune.outcomes import DuringRun, MachineState, Measurement, Outcome
from hottune.stats import NoteCode, note
from hottune.tasks.basis import Basis
from hottune.tasks.prepare import Plan
from hottune.units import MIB, format_bytes

#: Share of the time with lowered clocks from which on it is worth a warning.
THROTTLED_SHARE = 0.05
#: CPU of others, percent of all cores, from which on decoding on the CPU feels it.
OTHER_CPU_PERCENT = 10.0
VRAM_DRIFT_MIB = 128.0
SWAP_GREW_MIB = 16.0


def with_before(outcome: Outcome, before: Cooled) -> Outcome:
    """Add how the GPU was before the server to what was measured in it."""
    if not isinstance(outcome, Measurement):
        return outcome
    state = before.state
    known = MachineState(
        waited_s=before.waited_s,
        settled=before.settled,
        temperature_c=state.temperature_c,
        sm_clock_mhz=state.sm_clock_mhz,
        power_w=state.power_w,
        utilisation_percent=state.utilisation_percent,
        vram_used_mib=state.vram_used_mib,
        throttled_by=state.throttled_by,
        during=outcome.machine_state.during if outcome.machine_state else None,
    )
    return outcome.model_copy(update={"machine_state": known})


def condition_notes(plan: Plan | Basis, found: list[Measurement]) -> list[tuple[str, str]]:
    """Return warnings about the machine while these were measured, in the order in which they were."""
    states = [one.machine_state for one in found if one.machine_state is not None]
    during = [state.during for state in states if state.during is not None]
    notes = [*_gpu_notes(plan, states, during), *_host_notes(during)]
    governor = plan.machine.cpu.governor
    if governor not in ("", "performance"):
        notes.append(note(NoteCode.CPU_GOVERNOR, governor=governor))
    return notes


def _gpu_notes(
    plan: Plan | Basis, states: list[MachineState], during: list[DuringRun]
) -> list[tuple[str, str]]:
    notes = []
    device = plan.gpu.name
    if throttled := _throttled(during):
        notes.append(note(NoteCode.THROTTLED, device=device, reason=throttled))
    if restless := [state.waited_s for state in states if not state.settled]:
        facts = {"count": len(restless), "total": len(states), "limit_s": round(max(restless))}
        notes.append(note(NoteCode.NOT_SETTLED, device=device, **facts))
    drift_mib = _vram_drift_mib(states, during)
    if drift_mib > VRAM_DRIFT_MIB:
        notes.append(note(NoteCode.VRAM_DRIFT, device=device, amount=format_bytes(drift_mib * MIB)))
    links = [
        (one.pcie_generation, one.pcie_width) for one in during if one.pcie_generation and one.pcie_width
    ]
    if links and plan.gpu.pcie_max:
        best = link(max(generation for generation, _ in links), max(width for _, width in links))
        if best != plan.gpu.pcie_max:
            notes.append(note(NoteCode.PCIE_LINK, device=device, link=best, best=plan.gpu.pcie_max))
    return notes


def _throttled(during: list[DuringRun]) -> str:
    """Return what held clocks down, with its share of all samples: 'power limit, 12 % of the time'."""
    samples = max(1, sum(one.samples for one in during))
    shares: dict[str, float] = {}
    for one in during:
        for reason, share in one.throttled.items():
            shares[reason] = shares.get(reason, 0.0) + share * one.samples / samples
    worst = sorted(shares.items(), key=lambda item: -item[1])
    return "; ".join(f"{why}, {share:.0%} of the time" for why, share in worst if share >= THROTTLED_SHARE)


def _vram_drift_mib(states: list[MachineState], during: list[DuringRun]) -> float:
    """Return how far others' VRAM strayed: between servers on the whole card, and while one was driven."""
    before = [state.vram_used_mib for state in states if state.vram_used_mib is not None]
    between = max(before) - min(before) if before else 0.0
    return max([between, *(one.other_vram_growth_mib or 0.0 for one in during)])


def _host_notes(during: list[DuringRun]) -> list[tuple[str, str]]:
    notes = []
    busy = max((one.other_cpu_percent or 0.0 for one in during), default=0.0)
    if busy > OTHER_CPU_PERCENT:
        facts = {"percent": round(busy), "device": "processor", "when": "while a server was measured"}
        notes.append(note(NoteCode.OTHER_LOAD, **facts))
    grown_mib = max((one.swap_growth_mib or 0.0 for one in during), default=0.0)
    if grown_mib > SWAP_GREW_MIB:
        notes.append(note(NoteCode.SWAP_GREW, amount=format_bytes(grown_mib * MIB)))
    return notes
