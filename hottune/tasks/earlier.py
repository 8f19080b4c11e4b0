"""What earlier studies recommend: the best cache of the same model on an equal machine, or threads alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hottune.errors import HottuneError
from hottune.machine.facts import Machine
from hottune.models.shape import ModelFile, MoeShape
from hottune.outcomes import Measurement
from hottune.placement import INTERVAL_POLICIES, Placement
from hottune.search.catalogue import Summary, summaries
from hottune.search.hints import Hints
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.storage import sqlite_url
from hottune.search.study import best_of_arms
from hottune.tasks.fingerprint import differences, fingerprint, ram_differs
from hottune.tasks.prepare import Plan

#: Files that are looked into, newest first: each takes a moment to read.
MOST_FILES = 20


@dataclass(frozen=True)
class Earlier:
    """The best cache that a study of an equal machine found."""

    study: Summary
    model: ModelFile
    placement: Placement
    workload: object  # its hash
    when: datetime


def hints_of_earlier(plan: Plan) -> Hints:
    """Return what studies in the plan's folder and storage found on a machine like this one.

    Of the same model, the study with the most in common counts: workload, then objective, then the nearest
    ceiling. Of other models only the newest study's threads do, for the rest depends on the model. A study
    that cannot be read is passed over: nothing measured depends on it.
    """
    found = list(_equal_machines(plan))
    same = [one for one in found if one.model.fingerprint == plan.model.fingerprint]
    if same:
        return _of_same_model(min(same, key=lambda one: _distance(one, plan)), plan)
    if found:
        newest = max(found, key=lambda one: (one.when, one.study.name))
        threads = newest.placement.threads
        return Hints(
            threads=threads,
            origin=(f"study {newest.study.name} of another model on this machine: {threads} threads",),
        )
    return Hints()


def _of_same_model(one: Earlier, plan: Plan) -> Hints:
    placement = one.placement
    same_work = one.workload == plan.workload.sha256
    sentence = f"study {one.study.name} ({one.study.ceiling_mib:.0f} MiB): {placement.label()}"
    return Hints(
        ubatch=placement.ubatch if same_work else None,  # prompts decide what a large one is worth
        threads=placement.threads,
        policy=placement.policy,
        interval=placement.rebalance_interval if placement.policy in INTERVAL_POLICIES else None,
        layer_share=layer_share(plan.model.shape, placement),
        origin=(f"{sentence}, {placement.threads} threads",),
    )


def layer_share(shape: MoeShape, placement: Placement) -> float:
    """Return the share of a placement's VRAM for experts that whole layers take, 0 to 1.

    That is what carries over to another ceiling; `n_cpu_moe` and `hot_k` do not.
    """
    whole = sum(shape.layer_expert_bytes[placement.n_cpu_moe :])
    cached = sum(shape.layer_expert_bytes[: placement.n_cpu_moe]) / shape.n_experts * placement.hot_k
    return round(whole / (whole + cached), 3) if whole + cached else 0.0


def _distance(one: Earlier, plan: Plan) -> tuple[bool, bool, float, str]:
    ratio = math.log(one.study.ceiling_mib / plan.ceiling_mib)
    other_work = one.workload != plan.workload.sha256
    return other_work, one.study.objective != plan.config.objective, abs(ratio), one.study.name


def _equal_machines(plan: Plan) -> Iterator[Earlier]:
    """Read the studies of machines that are equal to this one and have measured a cache."""
    here = fingerprint(plan.machine, plan.gpu)
    for url in _urls(plan):
        try:
            known = summaries([url])
        except (HottuneError, ValueError, KeyError):
            continue
        for one in known:
            if one.name == plan.name:
                continue
            try:
                found = _best_of(one, here, plan.machine.ram_total_mib)
            except (HottuneError, ValueError, KeyError, TypeError):  # of another version of hottune
                continue
            if found is not None:
                yield found


def _urls(plan: Plan) -> list[str]:
    def age(path: Path) -> tuple[float, str]:
        return -path.stat().st_mtime, path.name

    files = sorted(plan.config.studies_dir.absolute().glob("*.db"), key=age)[:MOST_FILES]
    given = [plan.config.storage] if plan.config.storage else []
    return list(dict.fromkeys([*given, *map(sqlite_url, files)]))


def _best_of(one: Summary, here: dict[str, str], ram_mib: float) -> Earlier | None:
    journal = Journal(one.name, one.storage, Objective(one.objective), settle=False)
    identity = journal.noted("identity")
    machine = Machine.model_validate(journal.noted("machine"))
    if differences(here, identity["machine"]) or ram_differs(ram_mib, machine.ram_total_mib):
        return None
    best = best_of_arms(journal.trials(), journal.objective).get("hot")
    if best is None or not isinstance(best.outcome, Measurement) or not best.placement.hot_k:
        return None
    model = ModelFile.model_validate(journal.noted("model"))
    return Earlier(one, model, best.placement, identity["workload"], best.started)
