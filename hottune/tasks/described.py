"""What a user of a dashboard is told of a study: its main facts, and how to read its trials."""

from __future__ import annotations

from hottune.search.journal import CONFIRM, Journal
from hottune.search.objective import Objective
from hottune.tasks.prepare import Plan
from hottune.units import MIB, format_bytes

#: Parameters of the search, in the order of `Space.sample`, with units.
_PARAMETERS = """\
| parameter | meaning |
| --- | --- |
| `ubatch` | physical batch, tokens (`-ub`) |
| `n_cpu_moe` | layers, counted from the first, whose experts stay in RAM |
| `cache_share` | share of the VRAM left over that the hot-expert cache gets |
| `threads` | CPU threads (`-t`), where several are tried |
| `shared_budget` | one cache budget over all layers |
| `policy` | which experts are kept |
| `rebalance_interval` | tokens between rebalances (`window`), or four half-lives of a use (`lfru`) |
| `prefill_bypass` | largest batch, tokens, that goes through the cache |
"""


def describe(plan: Plan, journal: Journal) -> None:
    """Store what a dashboard shows of the whole study."""
    ceiling = format_bytes(plan.ceiling_mib * MIB)
    facts: dict[str, str | float] = {
        "model": plan.model.name,
        "gpu": plan.gpu.name,
        "vram_ceiling_mib": plan.ceiling_mib,
        "objective": plan.config.objective.describe(plan.workload.name),
        "llama.cpp": f"{plan.engine.llama_build} ({plan.engine.backend})",
        "command": plan.config.command,
    }
    head = f"# {plan.model.name} below {ceiling} of VRAM\n\n`{plan.config.command}` on {plan.gpu.name}.\n\n"
    better = "lower is better" if plan.config.objective is Objective.TURN else "higher is better"
    search = (
        f"{head}This is the search; the value is {facts['objective']}, {better}. Fresh servers of the best "
        f"and of every baseline follow in **{journal.name}{CONFIRM}**, and only those decide.\n\n"
        "A trial with an `arm` is a baseline; its user attributes say what it was: `n_cpu_moe` (unless "
        "llama.cpp's fit placed it), `hot_k`, `ubatch`, `threads`. They can be ticked in the parallel "
        "coordinates, which show no parameter that a trial lacks. "
        "A failed trial has no value; `result` and its note say why.\n\n"
        f"{_PARAMETERS}\n"
        "hottune reads its studies by name: do not rename or delete one that is to go on."
    )
    confirm = (
        f"{head}Replicates: each trial is a fresh server of the arm in `arm`, in interleaved order "
        "(`position`). Rounds are compared with each other: the report says what is faster, not the best "
        f"trial here.\n\nThe search is in **{journal.name}**."
    )
    journal.describe(facts, search, confirm)
