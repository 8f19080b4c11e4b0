"""The whole of `hottune run`, as named tasks in order: read `run` and you know the program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from hottune.engine.facts import Backend
from hottune.errors import BadSettingError
from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.report import save
from hottune.report.schema import ArmName, Report, Trial, WarningNote
from hottune.search.baselines import BASELINES
from hottune.search.confirm import LEAST_ROUNDS, Confirmed, candidates, confirm
from hottune.search.journal import Journal, Measure, sqlite_url
from hottune.search.lock import study_lock
from hottune.search.study import Budget, Study
from hottune.tasks import prepare
from hottune.tasks.measure import Bench, RealServers
from hottune.tasks.prepare import Plan
from hottune.tasks.result import argv_and_env, make_report
from hottune.tasks.settings import RunConfig
from hottune.tasks.show import Meter
from hottune.tasks.surroundings import surroundings

__all__ = ["Plan", "RunConfig", "Shown", "dry_run", "run"]

#: Hot placements that are measured even when the time budget is short: without one there is no answer.
LEAST_TRIALS = 2

Measuring = Callable[[Plan, Meter], Measure]


def run(config: RunConfig, ui: Progress) -> Report:
    """Find the fastest placement of a model under a VRAM ceiling and prove it; resumable at any point.

    Raises:
        HottuneError: what a user must know or decide (see hottune/errors.py). What a placement does wrong
            is an outcome, not an error.
        KeyboardInterrupt: everything measured so far is kept; the same call goes on from there.
    """
    plan = prepare.prepare(config, ui)  # resolve, build, probe, plan
    return run_plan(plan, ui)


def run_plan(plan: Plan, ui: Progress, measuring: Measuring | None = None) -> Report:
    """Do everything after planning: baseline, search, confirm, report.

    Args:
        plan: what to measure on what.
        ui: where progress goes.
        measuring: makes what measures a placement; None = real servers.
    """
    with opened(plan) as (plan, journal):
        announce(plan, journal, ui)
        meter = Meter(ui)
        measure = (measuring or real_servers)(plan, meter)
        study = Study(journal, plan.space, measure, meter.trial)
        clock = Clock(plan.config, journal)
        notes = noted_surroundings(journal)

        baseline(study, meter)
        search(plan, study, meter, clock)
        confirmed = confirm_arms(plan, study, meter, clock)
        return report(plan, study, confirmed, notes, ui)


# --- tasks ---


def baseline(study: Study, meter: Meter) -> None:
    """Measure all-CPU experts, the best layer offload, and `--fit`."""
    done = sum(1 for trial in study.journal.trials() if trial.arm)
    meter.stage("Baselines", max(3 * len(study.plan.ubatches), done), done)
    study.baselines()
    meter.finish()


def search(plan: Plan, study: Study, meter: Meter, clock: Clock) -> None:
    """Look for the best placement with the hot-expert cache.

    Here alone a server may serve one trial after another; baselines and replicates each have a fresh one.
    """
    wanted = plan.config.trials_wanted
    meter.stage("Search", wanted, len(study.searched()))
    with keeping_servers(study.measure):
        study.search(Budget(trials=wanted, quick=plan.config.quick, spent=clock.must_confirm))
    meter.finish()


def confirm_arms(plan: Plan, study: Study, meter: Meter, clock: Clock) -> Confirmed:
    """Measure the best of the search and the baselines again, interleaved, each in fresh servers."""
    again = candidates(study.journal.trials(), study.objective, plan.config.top_wanted)
    placements: dict[ArmName, Placement] = {arm: trial.placement for arm, trial in again.items()}
    rounds = plan.config.rounds
    if not placements:
        return Confirmed({})
    meter.stage("Confirm", rounds.most * len(placements))
    confirmed = confirm(
        study.journal, placements, rounds, study.measure, spent=clock.spent, watch=meter.replicate
    )
    meter.finish()
    return confirmed


def report(plan: Plan, study: Study, confirmed: Confirmed, notes: list[WarningNote], ui: Progress) -> Report:
    """Make the report and write its files."""
    trials, seconds = study.journal.trials(), study.journal.seconds()
    result = make_report(plan, trials, confirmed, seconds=seconds, notes=notes)
    try:
        paths = save(result, plan.config.reports_dir)
    except OSError as error:
        raise BadSettingError(
            f"The report cannot be written to {plan.config.reports_dir}.",
            str(error),
            "Give another folder with --reports; nothing will be measured again.",
        ) from error
    ui.say("Report: " + ", ".join(str(path) for path in paths))
    return result


# --- what the tasks stand on ---


@contextmanager
def opened(plan: Plan) -> Iterator[tuple[Plan, Journal]]:
    """Lock and open the plan's study; a study that is resumed keeps the ceiling it began with.

    Raises:
        StudyBusyError: another live process runs it.
        BadSettingError: a study of this name measured something else.
        StorageError: the storage cannot be used.
    """
    config = plan.config
    with study_lock(config.studies_dir / f"{plan.name}.lock"):
        url = config.storage or sqlite_url(config.studies_dir.absolute() / f"{plan.name}.db")
        journal = Journal(plan.name, url, config.objective, seed=config.seed)
        before = journal.noted("identity")
        if before is not None and before != plan.identity():
            changed = [key for key, value in plan.identity().items() if before.get(key) != value]
            raise BadSettingError(
                f"The study '{plan.name}' measured something else: {', '.join(changed)} differ.",
                "Numbers of different set-ups cannot be compared.",
                "Give this run another --study name.",
            )
        ceiling_mib = journal.noted("ceiling_mib")
        if ceiling_mib is not None and ceiling_mib != plan.ceiling_mib:
            plan = prepare.plan(config, plan.engine, plan.model, plan.machine, ceiling_mib=ceiling_mib)
        journal.note("identity", plan.identity())
        journal.note("ceiling_mib", plan.ceiling_mib)
        # Without the storage's URL: it may hold a password, and whoever reads this has the URL.
        journal.note("config", config.model_dump(mode="json", exclude={"storage"}))
        journal.note("machine", plan.machine.model_dump(mode="json"))
        journal.note("engine", plan.engine.model_dump(mode="json"))
        journal.note("model", plan.model.model_dump(mode="json"))
        yield plan, journal


def announce(plan: Plan, journal: Journal, ui: Progress) -> None:
    """Say what is about to be measured, and what is known already."""
    if plan.gpu.virtual:
        if plan.machine.gpus and plan.engine.backend is Backend.CPU:
            ui.say(
                "llama.cpp is built without GPU support: using hottune's virtual GPU; "
                "these numbers show the tool, not a gain."
            )
        else:
            ui.say(prepare.VIRTUAL_LINE)
    shape = plan.model.shape
    ui.say(
        f"{plan.model.name}: {shape.n_moe_layers} layers x {shape.n_experts} experts ({shape.quant}), "
        f"VRAM ceiling {plan.ceiling_mib:.0f} MiB on {plan.gpu.name}, workload {plan.workload.name}"
    )
    known = len(journal.trials())
    ui.say(f"Study '{plan.name}'" + (f": goes on, {known} trials are kept." if known else ": new."))


def noted_surroundings(journal: Journal) -> list[WarningNote]:
    """Look at what else goes on here; a warning of an earlier session stays with the study."""
    kept = {one["code"]: WarningNote.model_validate(one) for one in journal.noted("surroundings") or []}
    kept |= {one.code: one for one in surroundings()}
    journal.note("surroundings", [one.model_dump() for one in kept.values()])
    return list(kept.values())


def real_servers(plan: Plan, meter: Meter) -> RealServers:
    """Return what measures a placement in a fresh llama-server."""
    return RealServers(make_bench(plan, meter.note), meter.begin)


def keeping_servers(measure: Measure) -> AbstractContextManager[None]:
    """Let a real server stay up for the next placement where only live settings differ (`Bench.keeping`)."""
    return measure.bench.keeping() if isinstance(measure, RealServers) else nullcontext()


def make_bench(plan: Plan, note: Callable[[str], None]) -> Bench:
    """Return the bench of a plan: its engine, model, GPU, ceiling and workload."""
    return Bench(
        engine=plan.engine,
        model=plan.model,
        gpu=plan.gpu,
        ceiling_mib=plan.ceiling_mib,
        workload=plan.workload,
        log_dir=plan.config.cache_dir / "logs" / plan.name,
        port=plan.config.port,
        note=note,
    )


class Clock:
    """Watches the time budget of one session."""

    def __init__(self, config: RunConfig, journal: Journal) -> None:
        self._config = config
        self._journal = journal
        self._began = time.monotonic()

    def spent(self) -> bool:
        """Whether the budget is used up."""
        budget_s = self._config.budget_s
        return budget_s is not None and time.monotonic() - self._began >= budget_s

    def must_confirm(self) -> bool:
        """Whether what is left of the budget is needed for the replicates of baselines and candidates."""
        budget_s = self._config.budget_s
        if budget_s is None:
            return False
        trials = self._journal.trials()
        if sum(1 for trial in trials if trial.arm is None) < LEAST_TRIALS:
            return False
        # A replicate needs a fresh server; what was measured without loading one says nothing about that.
        seconds = [trial.seconds for trial in trials if not _reused(trial)]
        each_s = sum(seconds) / len(seconds)
        arms = len(BASELINES) + self._config.top_wanted
        servers = 1 + arms * min(LEAST_ROUNDS, self._config.rounds.most)
        return time.monotonic() - self._began + servers * each_s >= budget_s


def _reused(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measurement) and trial.outcome.reused_server


@dataclass(frozen=True)
class Shown:
    """A server that a run would start: why, and exactly how."""

    arm: str
    placement: Placement
    predicted_vram_mib: float | None
    argv: list[str]
    env: dict[str, str]


def dry_run(config: RunConfig) -> tuple[Plan, list[Shown]]:
    """Return the servers that a run would start first: baselines and grid. Starts and builds nothing."""
    plan = prepare.prepare_for_show(config)
    space = plan.space
    wanted: list[tuple[str, Placement]] = []
    for ubatch in space.ubatches:
        wanted.append(("all-cpu", space.all_cpu(ubatch)))
        fewest = space.fewest_cpu_layers(ubatch)
        if fewest < plan.model.shape.n_layers:
            wanted.append(("layers", space.layers(fewest, ubatch)))
        wanted.append(("fit", space.fit(ubatch)))
    wanted += [("hot", placement) for placement in space.grid(space.ubatches[0], quick=config.quick)]
    shown = []
    for arm, placement in wanted[: 3 * len(space.ubatches) + config.trials_wanted]:
        argv, env = argv_and_env(plan, placement, config.port or 8080)
        predicted = None if placement.fit else space.predicted_mib(placement)
        shown.append(Shown(arm, placement, predicted, argv, env))
    return plan, shown
