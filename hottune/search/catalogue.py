"""Which studies there are in some storages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.study._frozen import FrozenStudy

from hottune.errors import StudyNotFoundError
from hottune.search.attributes import facts
from hottune.search.claims import is_done
from hottune.search.journal import CONFIRM, Journal
from hottune.search.objective import Objective
from hottune.search.storage import Storage, open_storage, storage_errors


@dataclass(frozen=True)
class Summary:
    """One study, in a line."""

    name: str
    model: str
    ceiling_mib: float
    objective: str
    trials: int  # placements that ended
    measured: int  # of these, measurements
    replicates: int  # fresh servers of the confirm stage that ended
    storage: str


def summaries(urls: Sequence[str]) -> list[Summary]:
    """Return every study of hottune's in the storages, by name; studies of others are left out.

    Raises:
        StorageError: a storage cannot be read.
    """
    found = []
    for url in urls:
        storage = open_storage(url)
        with storage_errors(url):
            studies = {one.study_name: one for one in storage.get_all_studies()}
            for name, one in studies.items():
                if not _is_ours(one):
                    continue
                known = facts(one)
                trials = _ended(name, storage)
                found.append(
                    Summary(
                        name=name,
                        model=str(json.loads(known["model"])["name"]),
                        ceiling_mib=float(json.loads(known["ceiling_mib"])),
                        objective=str(json.loads(known["config"])["objective"]),
                        trials=len(trials),
                        measured=sum(1 for trial in trials if trial.values is not None),
                        replicates=len(_ended(name + CONFIRM, storage)) if name + CONFIRM in studies else 0,
                        storage=url,
                    )
                )
    return sorted(found, key=lambda summary: summary.name)


def reopen(name: str, urls: Sequence[str]) -> Journal:
    """Return the journal of an existing study, to read it.

    Raises:
        StudyNotFoundError: no storage has it; the message names what there is.
        StorageError: a storage cannot be read.
    """
    one, url, storage = find(name, urls)
    objective = Objective(json.loads(facts(one)["config"])["objective"])
    return Journal(name, url, objective, settle=False, storage=storage)


def find(name: str, urls: Sequence[str]) -> tuple[FrozenStudy, str, Storage]:
    """Return an existing study as it is stored, and the storage that has it: its URL, and as it was opened.

    Raises:
        StudyNotFoundError: no storage has it; the message names what there is.
        StorageError: a storage cannot be read.
    """
    names: list[str] = []
    for url in urls:
        storage = open_storage(url)
        with storage_errors(url):
            there = {one.study_name: one for one in storage.get_all_studies() if _is_ours(one)}
        if name in there:
            return there[name], url, storage
        names += there
    near = difflib.get_close_matches(name, names, n=3) or names[:5]
    raise StudyNotFoundError(
        f"There is no study '{name}' here.",
        "Studies are kept in ./studies of the folder that hottune ran in, unless --storage was given.",
        f"Here: {', '.join(near)}." if near else "Begin one: hottune run demo",
    )


def names_in(url: str) -> list[str]:
    """Return the names of hottune's studies in a storage.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(url):
        return sorted(one.study_name for one in open_storage(url).get_all_studies() if _is_ours(one))


def _is_ours(study: FrozenStudy) -> bool:
    """Tell a study with its set-up from its confirm stage, and from those of other programs."""
    return "identity" in facts(study) and not study.study_name.endswith(CONFIRM)


def _ended(name: str, storage: optuna.storages.BaseStorage) -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name=name, storage=storage)
    return [trial for trial in study.get_trials(deepcopy=False) if is_done(trial)]
