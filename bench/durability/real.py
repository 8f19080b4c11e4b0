"""`hottune run demo` with its real llama-servers, killed again and again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil

from bench.durability.lives import Tally
from hottune.cli.common import cache_dir

ROOT = Path(__file__).parents[2]
STUDY = "killed"
RUN = ("run", "demo", "--backend", "cpu", "--scale", "0.3", "--trials", "3", "--replicates", "2")
#: A life ends within this time, at random; the first seconds are imports.
SHORTEST_LIFE_S, LONGEST_LIFE_S = 2.0, 20.0
#: A server must be gone so soon after its hottune was killed.
ORPHAN_S = 5.0
HANGS_S = 600.0

#: Outcomes by Optuna's number of the trial.
Stored = dict[int, str]


def kill_demo(folder: Path, kills: int, seed: int) -> Tally:
    """Kill runs of the demo until there were so many kills; run what is killed to its end.

    Args:
        folder: for all files; it must be empty.
        kills: with SIGKILL, in all.
        seed: of the moments.
    """
    chance = random.Random(seed)
    tally = Tally()
    while tally.kills < kills:
        here = folder / str(tally.studies)
        here.mkdir()
        kept: Stored = {}
        done = False
        while not done:
            wanted = tally.kills < kills
            moment_s = chance.uniform(SHORTEST_LIFE_S, LONGEST_LIFE_S) if wanted else HANGS_S
            done, faults = _live(here, moment_s, kept)
            tally.kills += not done
            tally.faults += [f"study {tally.studies}, kill {tally.kills}: {fault}" for fault in faults]
            print(f"kill {tally.kills}: {len(kept)} measurements stored", file=sys.stderr, flush=True)
        tally.faults += [f"study {tally.studies}: {fault}" for fault in _twice(here)]
        tally.finished += len(kept)
        tally.studies += 1
    return tally


def _live(folder: Path, moment_s: float, kept: Stored) -> tuple[bool, list[str]]:
    """Run the demo and kill it at a moment; return whether it came to its end, and what is wrong."""
    said = folder / "said.txt"
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hottune.cli.app", *RUN, "--study", STUDY],
            cwd=folder,
            env={**os.environ, "HOTTUNE_CACHE": str(cache_dir()), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        code = process.wait(timeout=moment_s)
    except subprocess.TimeoutExpired:
        # Stopped first, so that no server can be started between counting them and the kill.
        process.send_signal(signal.SIGSTOP)
        servers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        return False, _orphans(servers) + _lost(folder, said, kept)
    failed = [] if code == 0 else [f"it ended with {code}: {said.read_text()[-500:]}"]
    return True, failed + _lost(folder, said, kept)


def _orphans(servers: list[psutil.Process]) -> list[str]:
    _, alive = psutil.wait_procs(servers, timeout=ORPHAN_S)
    return [
        f"{one.name()} (process {one.pid}) outlived its hottune by {ORPHAN_S:.0f} s"
        for one in alive
        if one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    ]


def _lost(folder: Path, said: Path, kept: Stored) -> list[str]:
    """Check the storage, what earlier lives had stored, and what this one showed as measured."""
    file = folder / "studies" / f"{STUDY}.db"
    if not file.exists():
        return []
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as connection:
        (check,) = connection.execute("PRAGMA integrity_check").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "trial_system_attributes" not in tables:
            return [] if check == "ok" else [f"the storage is damaged: {check}"]
        rows = connection.execute(
            "SELECT s.study_name, t.number, t.trial_id, a.value_json FROM trials t "
            "JOIN studies s USING (study_id) JOIN trial_system_attributes a USING (trial_id) "
            "WHERE a.key = 'hottune:outcome'"
        ).fetchall()
    stored = {trial_id: outcome for _, _, trial_id, outcome in rows}
    numbers = {number for name, number, _, _ in rows if name == STUDY}
    shown = {int(number) for number in re.findall(r"^ *#(\d+) ", said.read_text(), re.MULTILINE)}
    faults = [] if check == "ok" else [f"the storage is damaged: {check}"]
    faults += [f"trial {one} was stored, and is lost" for one in kept if stored.get(one) != kept[one]]
    faults += [f"trial #{number} was shown as measured, and is not stored" for number in shown - numbers]
    kept.update(stored)
    return faults


def _twice(folder: Path) -> list[str]:
    report = json.loads((folder / "reports" / f"{STUDY}.json").read_text())
    seen = [json.dumps(trial["placement"], sort_keys=True) for trial in report["trials"]]
    return [f"measured twice in the search: {one}" for one in set(seen) if seen.count(one) > 1]
