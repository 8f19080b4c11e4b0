"""A process as one of the workers of a study: its name, its locks, and whether it may join."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from hottune.errors import BadSettingError, MachineDiffersError
from hottune.machine.facts import Machine
from hottune.placement import LoadMode
from hottune.search.journal import Journal
from hottune.search.lock import study_lock
from hottune.search.recorder import Say
from hottune.search.storage import sqlite_path, sqlite_url
from hottune.tasks import prepare
from hottune.tasks.described import describe
from hottune.tasks.fingerprint import differences, ram_differs
from hottune.tasks.prepare import Plan

#: How long a worker that finds a study without its set-up waits for whoever has just made it, seconds.
SETUP_WAIT_S = 15.0


def worker_name(plan: Plan) -> str:
    """Return the name under which this process works: the one given, else host and GPU."""
    if plan.config.worker:
        return plan.config.worker
    return socket.gethostname() + ("" if plan.gpu.virtual else f"-gpu{plan.gpu.index}")


def storage_url(plan: Plan) -> str:
    """Return the storage that was asked for, else the study's own SQLite file."""
    return plan.config.storage or sqlite_url(plan.config.studies_dir.absolute() / f"{plan.name}.db")


def _beside(plan: Plan, ending: str) -> Path:
    """Return a file of this worker beside the study: beside its SQLite file, else in the studies' folder."""
    file = sqlite_path(storage_url(plan))
    folder = plan.config.studies_dir if file is None else file.parent
    parts = [plan.name]
    if not plan.gpu.virtual:
        parts.append(f"gpu{plan.gpu.index}")
    if plan.config.worker:
        parts.append(re.sub(r"[^\w+-]+", "-", plan.config.worker))
    return folder / (".".join(parts) + ending)


@contextlib.contextmanager
def locked(plan: Plan) -> Iterator[None]:
    """Let no other process of this machine work as this worker, nor measure on the same real GPU.

    Raises:
        StudyBusyError: another live process does.
        StorageError: a lock file cannot be made.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(study_lock(_beside(plan, ".lock"), f"The study '{plan.name}'"))
        if not plan.gpu.virtual:
            name = plan.gpu.uuid or f"gpu{plan.gpu.index}"
            path = plan.config.cache_dir / "locks" / f"{name}.lock"
            held.enter_context(study_lock(path, f"{plan.gpu.name} (GPU {plan.gpu.index})"))
        yield


def open_journal(plan: Plan, say: Say) -> Journal:
    """Open the plan's study as its worker.

    Raises:
        StorageError: the storage cannot be used.
    """
    return Journal(
        plan.name,
        storage_url(plan),
        plan.config.objective,
        seed=plan.config.seed,
        limits=plan.limits,
        worker=worker_name(plan),
        unsaved_path=_beside(plan, ".unsaved.jsonl"),
        say=say,
    )


def join(plan: Plan, journal: Journal) -> Plan:
    """Note the set-up in a new study; in one that exists, check that this set-up is the same.

    Returns:
        The plan, under the ceiling and with the load mode that the study began with.

    Raises:
        MachineDiffersError: the study's measurements are of another kind of machine.
        BadSettingError: the study measured something else.
    """
    if journal.shared and not journal.created:
        _wait_for_setup(journal)
    before = journal.noted("identity")
    if before is not None:
        _check(plan, journal, before)
    ceiling_mib = journal.noted("ceiling_mib")
    noted_mode = journal.noted("load_mode")
    load_mode = plan.space.base.load_mode if noted_mode is None else LoadMode(noted_mode)
    moved = ceiling_mib is not None and ceiling_mib != plan.ceiling_mib
    if moved or load_mode != plan.space.base.load_mode:
        plan = prepare.plan(
            plan.config,
            plan.engine,
            plan.model,
            plan.machine,
            ceiling_mib=ceiling_mib,
            load_mode=load_mode,
            forks=plan.forks,
        )
    journal.limits = plan.limits  # of the ceiling that the study began with
    journal.note("ceiling_mib", plan.ceiling_mib)
    journal.note("load_mode", str(load_mode))
    # Without the storage's URL: it may hold a password, and whoever reads this has the URL.
    journal.note("config", plan.config.model_dump(mode="json", exclude={"storage", "worker"}))
    if before is None or not journal.shared:
        journal.note("machine", plan.machine.model_dump(mode="json"))
    journal.note("engine", plan.engine.model_dump(mode="json"))
    journal.note("model", plan.model.model_dump(mode="json"))
    journal.note("identity", plan.identity())  # last: with it, all of the above are there
    describe(plan, journal)
    return plan


def _wait_for_setup(journal: Journal) -> None:
    """Wait until whoever made the study has noted its set-up; after a while, take it for dead."""
    deadline = time.monotonic() + SETUP_WAIT_S
    while journal.noted("identity") is None and time.monotonic() < deadline:
        time.sleep(0.2)


def _check(plan: Plan, journal: Journal, before: dict[str, object]) -> None:
    now = plan.identity()
    changed = [key for key, value in now.items() if before.get(key) != value]
    if set(changed) - {"machine"}:
        raise BadSettingError(
            f"The study '{plan.name}' measured something else: {', '.join(changed)} differ.",
            "Numbers of different set-ups cannot be compared.",
            "Give this run another --study name.",
        )
    here, there = now["machine"], before.get("machine")
    assert isinstance(here, dict)
    differing = differences(here, there if isinstance(there, dict) else {}) if changed else []
    if journal.shared:
        theirs = Machine.model_validate(journal.noted("machine"))
        differing += ram_differs(plan.machine.ram_total_mib, theirs.ram_total_mib)
    if differing:
        raise MachineDiffersError(
            f"This machine cannot join the study '{plan.name}': {'; '.join(differing)}.",
            "Numbers of machines that differ cannot be compared.",
            "Give this machine a --study name of its own.",
        )
