"""Studies by formula whose process is killed, again and again.

A study is a file, so a life of it is a process: forked (imports are paid once), killed with SIGKILL at a
random moment, and followed by the next one until the study is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.durability import landscape
from hottune import workflow
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report import load
from hottune.search.attributes import facts
from hottune.search.claims import Claims
from hottune.search.recorder import Recorder

#: A life ends within this time, at random: some 0 to 20 measurements.
LONGEST_LIFE_S = 2.0
PAUSE_S = 0.01
#: A life that takes longer than this hangs.
HANGS_S = 120.0


@dataclass
class Tally:
    """What the killed studies showed."""

    kills: int = 0
    studies: int = 0
    finished: int = 0  # measurements that the journal said it had stored
    faults: list[str] = field(default_factory=list)


def kill_studies(folder: Path, kills: int, seed: int, *, trials: int = 30) -> Tally:
    """Kill studies until there were so many kills; compare each with an undisturbed one.

    Args:
        folder: for all files; it must be empty.
        kills: with SIGKILL, in all.
        seed: of the moments; the n-th study has the seed n.
        trials: of a study.
    """
    chance = random.Random(seed)
    tally = Tally()
    while tally.kills < kills:
        number = tally.studies
        killed, undisturbed = folder / f"{number}-killed", folder / f"{number}-undisturbed"
        done = False
        while not done:
            moment = chance.uniform(0, LONGEST_LIFE_S) if tally.kills < kills else None
            done = live(killed, number, trials, moment)
            tally.kills += not done
            tally.faults += [f"study {number}, kill {tally.kills}: {fault}" for fault in faults_of(killed)]
        live(undisturbed, number, trials, None)
        tally.finished += len(_said_stored(killed))
        if (ours := result(killed)) != (theirs := result(undisturbed)):
            tally.faults.append(f"study {number}: the result differs: {first_difference(ours, theirs)}")
        tally.studies += 1
    return tally


def live(folder: Path, seed: int, trials: int, moment_s: float | None) -> bool:
    """Run a study in a process of its own; kill it at a moment. Return whether it came to its end.

    Raises:
        RuntimeError: it failed or hung.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _study(folder, seed, trials)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + (HANGS_S if moment_s is None else moment_s)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"the study in {folder} failed (status {status}); see above")
            return True
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if moment_s is None:
        raise RuntimeError(f"the study in {folder} hangs")
    return False


def _study(folder: Path, seed: int, trials: int) -> None:
    workflow.surroundings = list  # what else goes on on this machine is no part of the comparison
    plan = landscape.plan(folder, seed=seed, trials=trials)
    stored, inner = folder / "stored.jsonl", Recorder.record

    def told(recorder: Recorder, claims: Claims, attributes: Mapping[str, Any], *rest: Any) -> Any:
        ended = inner(recorder, claims, attributes, *rest)
        if ended is not None:
            _append(stored, {"outcome": facts(ended)["outcome"], "placement": attributes["placement"]})
        return ended

    Recorder.record = told  # type: ignore[method-assign]

    def counted(placement: Placement) -> int:
        with contextlib.closing(sqlite3.connect(_file(folder), timeout=60)) as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM trial_system_attributes WHERE key = 'hottune:outcome'"
            ).fetchone()
        return int(count)

    workflow.run_plan(
        plan, NoProgress(), lambda plan, meter: landscape.measuring(plan.ceiling_mib, PAUSE_S, counted)
    )


def _append(path: Path, record: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


# --- what must hold after every kill ---


def faults_of(folder: Path) -> list[str]:
    """Return what is wrong with a study whose process is dead: damage, and measurements that are lost."""
    file = _file(folder)
    if not file.exists():  # killed before it was made
        return []
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as connection:
        (check,) = connection.execute("PRAGMA integrity_check").fetchone()
        if check != "ok":
            return [f"the storage is damaged: {check}"]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        rows = (
            connection.execute(
                "SELECT a.value_json, b.value_json "
                "FROM trial_system_attributes a JOIN trial_system_attributes b USING (trial_id) "
                "WHERE a.key = 'hottune:placement' AND b.key = 'hottune:outcome'"
            ).fetchall()
            if "trial_system_attributes" in tables
            else []
        )
    kept = [(json.loads(placement), json.loads(outcome)) for placement, outcome in rows]
    lost = []
    for record in _said_stored(folder):
        if (one := (record["placement"], record["outcome"])) in kept:
            kept.remove(one)
        else:
            lost.append(f"a finished trial is lost: {one[0]}")
    return lost


def _said_stored(folder: Path) -> list[dict[str, str]]:
    path = folder / "stored.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole]


def _file(folder: Path) -> Path:
    return folder / "studies" / "formula.db"


# --- the result, without what may differ ---


def result(folder: Path) -> dict[str, Any]:
    """Return a study's report without clock times, and without numbers, in which lost trials leave gaps."""
    report = load(folder / "reports" / "formula.json").model_dump(mode="json")
    return _without(report, {"created", "seconds", "started", "number"})


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(one, names) for name, one in value.items() if name not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value


def first_difference(ours: Any, theirs: Any, where: str = "") -> str:
    """Name the first place where two results differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        pairs = [(f"{where}.{name}", ours[name], theirs[name]) for name in ours]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        return f"{where}: {str(ours)[:200]} is not {str(theirs)[:200]}"
    return next(first_difference(a, b, name) for name, a, b in pairs if a != b)
