"""Journal: every placement tried, kept in an Optuna storage the moment it is known.

Two Optuna studies share one storage: `<name>` holds the search (baselines included), `<name>/confirm` the
replicates. A trial's placement, outcome and times are user attributes; only measurements have a value, all
other outcomes are failed trials, so that no sampler ever sees a made-up score.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import optuna
import sqlalchemy.event
import sqlalchemy.exc
from optuna.trial import FrozenTrial, TrialState

from hottune.errors import StorageError
from hottune.outcomes import OUTCOME_ADAPTER, Measurement, Outcome, OutOfMemory, Rejected
from hottune.placement import Placement
from hottune.report.schema import ArmName, Replicate, Trial
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.space import Space

CONFIRM = "/confirm"
SQLITE_WAIT_S = 60
#: Trials that TPE wants to see before it models: those of the structured plan count.
STARTUP_TRIALS = 6

Measure = Callable[[Placement], Outcome]
Origin = Literal["baseline", "grid", "sampler"]


@dataclass(frozen=True)
class Planned:
    """A placement that is to be measured, and why."""

    placement: Placement
    origin: Origin
    arm: ArmName | None = None


def sqlite_url(path: Path) -> str:
    """Return the storage URL of a SQLite file."""
    return f"sqlite:///{path}"


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what storages raise into `StorageError`."""
    shown = url.split("@")[-1]  # never show a password
    hint = "Check the path or URL, its permissions and the free disk space; --storage chooses another one."
    try:
        yield
    except ImportError as error:
        message = f"The driver for the storage {shown} is not installed."
        raise StorageError(
            message, str(error), "For PostgreSQL: pip install 'hottune[postgresql]'."
        ) from error
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(
            f"The storage {shown} failed.", str(error.__cause__ or error)[:500], hint
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(f"The storage {shown} cannot be used.", reason[:500], hint) from error


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Open an Optuna storage; a SQLite file is made with its folder and set to write-ahead logging.

    Raises:
        StorageError: it cannot be opened.
    """
    with storage_errors(url):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if not url.startswith("sqlite:///"):
            return optuna.storages.RDBStorage(_with_driver(url))
        path = Path(url.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=SQLITE_WAIT_S)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SQLITE_WAIT_S}})
        # With a write-ahead log this survives any killed process, and costs no disk flush for each attribute.
        sqlalchemy.event.listen(storage.engine, "connect", _relax)
        storage.engine.dispose()
        return storage


def _with_driver(url: str) -> str:
    """Name psycopg2 for a plain PostgreSQL URL where it is the driver that is installed."""
    plain = "postgresql://"
    if url.startswith(plain) and importlib.util.find_spec("psycopg") is None:
        return "postgresql+psycopg2://" + url.removeprefix(plain)
    return url


def _relax(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


class Journal:
    """What has been tried in one study, and the only way to try more."""

    def __init__(
        self,
        name: str,
        url: str,
        objective: Objective,
        *,
        seed: int = 0,
        settle: bool = True,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Open or create the study.

        Args:
            name: of the study.
            url: of the Optuna storage.
            objective: what is optimised.
            seed: of the sampler.
            settle: end trials that an earlier process left running. False only to read: another process
                may be at work.
            limits: what a placement must keep; the sampler learns them as constraints.

        Raises:
            StorageError: the storage cannot be used.
        """
        self.name = name
        self.url = url
        self.objective = objective
        self.limits = limits
        self._ended: dict[int, Trial] = {}
        storage = open_storage(url)
        with storage_errors(url):
            self._search = self._open(storage, name)
            # Another seed for every session, or a resumed study would draw its first samples again.
            seed += len(self._search.trials)
            self._tpe = optuna.samplers.TPESampler(
                seed=seed, multivariate=False, n_startup_trials=STARTUP_TRIALS
            )
            self._random = optuna.samplers.RandomSampler(seed=seed)
            self._confirm = self._open(storage, name + CONFIRM)
            if settle:
                self._settle()

    def _open(self, storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
        return optuna.create_study(
            storage=storage, study_name=name, directions=self.objective.directions, load_if_exists=True
        )

    def _settle(self) -> None:
        """End trials that a killed process left running or waiting; `unfinished` finds them again."""
        for study in (self._search, self._confirm):
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
                if frozen.state is TrialState.WAITING:
                    study.ask()
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                study.tell(frozen.number, state=TrialState.FAIL, skip_if_finished=True)

    # --- provenance ---

    def note(self, key: str, value: object) -> None:
        """Keep plain data beside the study: the configuration, the machine, the engine."""
        with storage_errors(self.url):
            self._search.set_user_attr(key, json.dumps(value))

    def noted(self, key: str) -> Any:
        """Return what `note` kept, or None."""
        with storage_errors(self.url):
            text = self._search.user_attrs.get(key)
        return None if text is None else json.loads(text)

    # --- search ---

    def trials(self) -> list[Trial]:
        """Return everything that ended, in order, without the placements that were skipped unmeasured."""
        with storage_errors(self.url):
            frozen = self._search.get_trials(deepcopy=False)
        for one in frozen:
            # What ended never changes, and reading hundreds of outcomes again for each trial takes long.
            if one.number not in self._ended and one.state.is_finished() and "outcome" in one.user_attrs:
                self._ended[one.number] = _trial(one)
        return [self._ended[number] for number in sorted(self._ended)]

    def history(self) -> list[tuple[Placement, Outcome]]:
        """Return placement and outcome of everything measured: search and confirm."""
        done = [(trial.placement, trial.outcome) for trial in self.trials()]
        with storage_errors(self.url):
            frozen = self._confirm.get_trials(deepcopy=False)
        return done + [
            (_placement(one), OUTCOME_ADAPTER.validate_json(one.user_attrs["outcome"]))
            for one in frozen
            if "outcome" in one.user_attrs
        ]

    def unfinished(self) -> list[Planned]:
        """Return the placements that were begun, never ended, and not measured since."""
        measured = {trial.placement for trial in self.trials()}
        with storage_errors(self.url):
            frozen = self._search.get_trials(deepcopy=False)
        begun = [
            Planned(_placement(one), one.user_attrs["origin"], one.user_attrs["arm"])
            for one in frozen
            if "placement" in one.user_attrs and "outcome" not in one.user_attrs
        ]
        return list(dict.fromkeys(planned for planned in begun if planned.placement not in measured))

    def try_placement(self, planned: Planned, space: Space, measure: Measure) -> Trial:
        """Measure one planned placement and journal what it ended as."""
        with storage_errors(self.url):
            self._search.enqueue_trial(space.parameters(planned.placement), user_attrs=_attributes(planned))
            trial = self._search.ask()
            if space.parameters(planned.placement):
                space.sample(trial)  # so that the sampler learns from it
        return self._finish(trial, planned.placement, measure)

    def try_sample(
        self,
        space: Space,
        measure: Measure,
        *,
        at_random: bool = False,
        fixed: Mapping[str, int | float | str] | None = None,
    ) -> Trial | None:
        """Let the sampler choose a placement and measure it; None when it chose nothing new.

        Args:
            space: to choose from.
            measure: measures it.
            at_random: choose without looking at what was best so far.
            fixed: parameters that it may not choose, with their values.
        """
        known = {trial.placement: trial for trial in self.trials()}
        with storage_errors(self.url):
            sampler: optuna.samplers.BaseSampler = self._random if at_random else self._tpe
            if fixed:
                with warnings.catch_warnings():  # Optuna calls it experimental
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    sampler = optuna.samplers.PartialFixedSampler(dict(fixed), sampler)
            self._search.sampler = sampler
            trial = self._search.ask()
            placement = space.sample(trial)
            if placement is None or placement in known:
                trial.set_user_attr("skip", "no room" if placement is None else "measured before")
                self._search.tell(trial, state=TrialState.FAIL)
                return None
            for key, value in _attributes(Planned(placement, "sampler")).items():
                trial.set_user_attr(key, value)
        return self._finish(trial, placement, measure)

    def _finish(self, trial: optuna.Trial, placement: Placement, measure: Measure) -> Trial:
        self._measure_into(self._search, trial, placement, measure)
        with storage_errors(self.url):
            return _trial(self._search.get_trials(deepcopy=False)[trial.number])

    def _measure_into(
        self, study: optuna.Study, trial: optuna.Trial, placement: Placement, measure: Measure
    ) -> None:
        """Measure and store; when interrupted, end the trial without an outcome, so that it is done again."""
        began = time.monotonic()
        try:
            outcome = measure(placement)
        except BaseException:
            with contextlib.suppress(StorageError), storage_errors(self.url):
                study.tell(trial, state=TrialState.FAIL)
            raise
        with storage_errors(self.url):
            trial.set_user_attr("seconds", time.monotonic() - began)
            trial.set_user_attr("outcome", outcome.model_dump_json())
            for key, value in constraints(outcome, self.limits).items():
                trial.set_constraint(key, value)
            if isinstance(outcome, Measurement):
                study.tell(trial, self.objective.values(outcome))
            elif isinstance(outcome, OutOfMemory | Rejected):
                # Infeasible, not bad: TPE learns from the constraint; there is no value to learn from.
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, state=TrialState.FAIL)

    # --- confirm ---

    def replicates(self, key: str) -> dict[int, tuple[ArmName, Replicate]]:
        """Return the finished replicates of one confirm plan, by position."""
        with storage_errors(self.url):
            frozen = self._confirm.get_trials(deepcopy=False)
        return {
            one.user_attrs["position"]: (one.user_attrs["arm"], _replicate(one))
            for one in frozen
            if one.user_attrs.get("plan") == key and "outcome" in one.user_attrs
        }

    def try_replicate(
        self, key: str, position: int, arm: ArmName, placement: Placement, measure: Measure
    ) -> Replicate:
        """Measure one replicate of an arm at its position in the interleaved order and journal it."""
        with storage_errors(self.url):
            trial = self._confirm.ask()
            attributes = _attributes(Planned(placement, "baseline", arm)) | {
                "plan": key,
                "position": position,
            }
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
        self._measure_into(self._confirm, trial, placement, measure)
        with storage_errors(self.url):
            return _replicate(self._confirm.get_trials(deepcopy=False)[trial.number])

    def seconds(self) -> float:
        """Return the time spent in servers so far, all sessions together."""
        with storage_errors(self.url):
            frozen = [*self._search.get_trials(deepcopy=False), *self._confirm.get_trials(deepcopy=False)]
        return float(sum(one.user_attrs.get("seconds", 0.0) for one in frozen))


def constraints(outcome: Outcome, limits: Limits) -> dict[str, float]:
    """Return what Optuna's samplers take as constraints: above 0 is infeasible.

    "memory" is 1 for what ran out of memory or broke the ceiling, whatever the size (how much it would have
    needed is not known). The others are those of the limits, for measurements.
    """
    if isinstance(outcome, Measurement):
        return {"memory": 0.0, **limits.violations(outcome)}
    return {"memory": 1.0} if isinstance(outcome, OutOfMemory | Rejected) else {}


def _attributes(planned: Planned) -> dict[str, Any]:
    return {
        "placement": planned.placement.model_dump_json(),
        "origin": planned.origin,
        "arm": planned.arm,
        "started": datetime.now(UTC).isoformat(),
    }


def _placement(frozen: FrozenTrial) -> Placement:
    return Placement.model_validate_json(frozen.user_attrs["placement"])


def _trial(frozen: FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    return Trial(
        number=frozen.number,
        arm=cast("ArmName | None", attributes["arm"]),
        origin=cast(Origin, attributes["origin"]),
        placement=_placement(frozen),
        outcome=OUTCOME_ADAPTER.validate_json(attributes["outcome"]),
        started=datetime.fromisoformat(attributes["started"]),
        seconds=attributes["seconds"],
    )


def _replicate(frozen: FrozenTrial) -> Replicate:
    return Replicate(
        position=frozen.user_attrs["position"],
        started=datetime.fromisoformat(frozen.user_attrs["started"]),
        outcome=OUTCOME_ADAPTER.validate_json(frozen.user_attrs["outcome"]),
    )
