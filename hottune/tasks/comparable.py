"""What two results must have in common to be compared, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hottune.machine.facts import Gpu, Machine
from hottune.placement import INTERVAL_POLICIES, Placement
from hottune.report.schema import Arm, Report
from hottune.report.wording import NOTHING
from hottune.tasks.endpoint_compared import ChosenEndpoint
from hottune.tasks.fingerprint import RAM_TOLERANCE, fingerprint
from hottune.units import MIB, format_bytes
from hottune.workload.facts import Workload

#: Ceilings this near are one: what a card has free differs a little from day to day.
CEILING_TOLERANCE = 0.005
#: Fields of a placement that mean nothing without a cache.
_CACHE_FIELDS = frozenset(
    {
        "rebalance_interval",
        "policy",
        "shared_budget",
        "upload_mib",
        "hot_profile",
        "prefill_bypass",
        "stream_from",
    }
)
_NO_GPU = Gpu(index=0, name="none", vram_total_mib=0, vram_free_mib=0, virtual=True)


@dataclass(frozen=True)
class Chosen:
    """One arm of one result, as the user asked for it."""

    name: str  # as the user may say it: result:arm
    report: Report
    arm: Arm

    @property
    def ceiling_mib(self) -> float:
        """The arm's own ceiling in the device's benchmark, else the result's."""
        return self.arm.cell.ceiling_mib if self.arm.cell else self.report.ceiling_mib


#: What may be compared.
Compared = Chosen | ChosenEndpoint
#: What stands for what an endpoint does not tell.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """A setting with its value in each of the compared arms, in their order."""

    setting: str
    values: tuple[str, ...]


def obstacles(chosen: Sequence[Compared]) -> list[Difference]:
    """Return what speaks against comparing these: other machines, models, workloads or VRAM ceilings.

    What an endpoint does not tell is no obstacle: the comparison warns of it (`endpoint_compared`).
    """
    reports = [one.report if isinstance(one, Chosen) else None for one in chosen]
    machines = [one.report.machine if isinstance(one, Chosen) else one.result.machine for one in chosen]
    found = _differing([_machine(machine) if machine else None for machine in machines])
    models = [{"model": report.model.fingerprint} if report else None for report in reports]
    if _differing(models):
        found.append(Difference("model", tuple(_model(report) if report else UNKNOWN for report in reports)))
    found += _differing([_task(workload_of(one)) for one in chosen])
    ram = [machine.ram_total_mib if machine else None for machine in machines]
    if _apart(ram, RAM_TOLERANCE):
        sizes = tuple(UNKNOWN if size is None else format_bytes(size * MIB) for size in ram)
        found.append(Difference("memory", sizes))
    ceilings = _ceiling_sizes(chosen)
    if _apart(ceilings, CEILING_TOLERANCE):
        found.append(_ceilings(ceilings))
    return found


def differences(chosen: Sequence[Compared]) -> list[Difference]:
    """Return every setting that differs: first the obstacles, then engine and limits, then the placement."""
    found = obstacles(chosen)
    ceilings = _ceiling_sizes(chosen)
    if _apart(ceilings, 0) and _ceilings(ceilings) not in found:
        found.append(_ceilings(ceilings))
    around = _differing([_around(one.report) if isinstance(one, Chosen) else None for one in chosen])
    named = any(row.setting == "model" for row in found)
    found += [row for row in around if not (named and row.setting == "model name")]
    rows = _differing([_placement(one.arm.placement) if isinstance(one, Chosen) else None for one in chosen])
    found += [row for row in rows if not _usual_where_it_counts(row)]
    return found + _differing([one.around() if isinstance(one, ChosenEndpoint) else None for one in chosen])


def workload_of(one: Compared) -> Workload:
    """Return what was sent."""
    return one.report.workload if isinstance(one, Chosen) else one.result.workload


def _ceiling_sizes(chosen: Sequence[Compared]) -> list[float | None]:
    return [one.ceiling_mib if isinstance(one, Chosen) else None for one in chosen]


def _ceilings(sizes: Sequence[float | None]) -> Difference:
    shown = tuple(UNKNOWN if size is None else f"{size:,.0f} MiB" for size in sizes)
    return Difference("VRAM ceiling", shown)


def _apart(sizes: Sequence[float | None], tolerance: float) -> bool:
    """Tell whether known sizes differ by more than a share of the largest."""
    known = [size for size in sizes if size is not None]
    return bool(known) and max(known) - min(known) > tolerance * max(known)


def _differing(columns: Sequence[Mapping[str, str] | None]) -> list[Difference]:
    """Return the rows in which known columns differ; None is a column of which nothing is known."""
    known = [column for column in columns if column is not None]
    names = dict.fromkeys(name for column in known for name in column)
    return [
        Difference(
            name, tuple(UNKNOWN if column is None else column.get(name) or "none" for column in columns)
        )
        for name in names
        if len({column.get(name) or "none" for column in known}) > 1
    ]


def _machine(machine: Machine) -> dict[str, str]:
    gpus = machine.gpus or (_NO_GPU,)
    facts = fingerprint(machine, gpus[0])
    # Not an obstacle: whether a new driver is slower is a fair question. `_around` shows it.
    del facts["driver"]
    return {**facts, "GPU": " + ".join(fingerprint(machine, gpu)["GPU"] for gpu in gpus)}


def _task(work: Workload) -> dict[str, str]:
    """Return the workload with its hash."""
    last = work.requests[-1]
    return {
        "workload": f"{work.name}, {len(work.requests)} requests of which {work.warmup_requests} cold, "
        f"the last {last.prompt_tokens} in / {last.output_tokens} out, {work.parallel} at once, "
        f"seed {work.seed}, hash {work.sha256[:8]}",
    }


def _model(report: Report) -> str:
    """Return a model's name with what tells it from another of that name."""
    model = report.model
    return f"{model.name} ({model.shape.quant}, {format_bytes(model.size_bytes)}, {model.fingerprint[:8]})"


def _around(report: Report) -> dict[str, str]:
    engine = report.engine
    return {
        "model name": report.model.name,
        "llama.cpp": engine.llama_build,
        "engine source": engine.source,
        "patched": "yes" if engine.patched else "no",
        "back-end": engine.backend.value,
        "compiler": engine.compiler,
        "engine options": " ".join(engine.options),
        "hottune": report.hottune_version,
        "driver": ", ".join(gpu.driver for gpu in report.machine.gpus if gpu.driver),
        "kernel": report.machine.system,
        "governor": report.machine.cpu.governor,
        "PCIe now": ", ".join(gpu.pcie for gpu in report.machine.gpus if gpu.pcie),
        "kept free": f"{report.keep_free_mib:,.0f} MiB",
        "ballast": f"{report.ballast.held_mib:,.0f} MiB" if report.ballast else "",
    }


def _usual_where_it_counts(row: Difference) -> bool:
    """Tell whether a setting is the default wherever it means anything: a cache's, where an arm has none."""
    default = Placement.model_fields[row.setting].default
    return NOTHING in row.values and set(row.values) <= {NOTHING, _shown(default)}


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _placement(placement: Placement) -> dict[str, str]:
    """Return the placement's fields; those that mean nothing in it are a dash."""
    idle = set() if placement.hot_k else set(_CACHE_FIELDS)
    if placement.policy not in INTERVAL_POLICIES:
        idle.add("rebalance_interval")
    fields = {
        name: NOTHING if name in idle else _shown(value)
        for name, value in placement.model_dump(mode="json").items()
    }
    return fields | {"n_cpu_moe": "by --fit"} if placement.fit else fields
