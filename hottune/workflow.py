"""The whole of `hottune run`, as named tasks in order: read `run` and you know the program."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from hottune.engine.facts import Backend
from hottune.errors import BadSettingError
from hottune.machine.cooldown import LIMIT_S, QUICK_LIMIT_S
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.report import save
from hottune.report.schema import ArmName, Replicate, Report, WarningNote
from hottune.search.baselines import first_baselines
from hottune.search.confirm import HOT_ARMS, Confirmed, candidates, confirm, plan_key
from hottune.search.journal import Journal
from hottune.search.recorder import Measure, Say
from hottune.search.rivals import Rival, first_placement
from hottune.search.structure import Start, foreseen
from hottune.search.study import Budget, Study
from hottune.tasks import prepare, worker
from hottune.tasks.ballasted import as_ballasted, ballasted
from hottune.tasks.basis import Basis, note_basis
from hottune.tasks.clock import Clock
from hottune.tasks.commands import argv_and_env
from hottune.tasks.forecast import with_forecast
from hottune.tasks.measure import Bench, RealServers
from hottune.tasks.prepare import Plan
from hottune.tasks.quality import to_score
from hottune.tasks.roofline import noted_roofline
from hottune.tasks.settings import RunConfig
from hottune.tasks.show import Meter, study_meter
from hottune.tasks.stored import note_finished, report_of
from hottune.tasks.surroundings import surroundings
from hottune.tasks.warm import noted_hints

__all__ = ["Plan", "RunConfig", "Shown", "dry_run", "run"]

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
    with opened(plan, ui.say) as (plan, journal), ballasted(plan, ui) as plan:
        announce(plan, journal, ui)
        clock = Clock(plan.config, journal)
        meter = study_meter(plan, journal, clock.deadline, ui)
        measure = (measuring or real_servers)(plan, meter)
        note_basis(plan, journal)
        noted_surroundings(journal)
        hints = noted_hints(plan, journal, ui)
        roofline = noted_roofline(plan, journal, ui)
        plan = with_forecast(plan, roofline, hints.hit_curve())
        study = Study(journal, plan.space, measure, meter.trial, hints, rivals(plan))

        baseline(study, meter)
        search(plan, study, meter, clock)
        confirmed = confirm_arms(plan, study, meter, clock)
        return report(plan, study, confirmed, ui)


# --- tasks ---


def baseline(study: Study, meter: Meter) -> None:
    """Measure all-CPU experts, the best layer offload, `--fit`, and every other engine."""
    done = sum(1 for trial in study.journal.trials() if trial.arm)
    expected = 2 + len(study.plan.ubatches) + len(study.rivals)
    meter.stage("Baselines", max(expected, done), done)
    study.baselines()
    meter.finish()


def search(plan: Plan, study: Study, meter: Meter, clock: Clock) -> None:
    """Look for the best placement with the hot-expert cache.

    Here alone a server may serve one trial after another; baselines and replicates each have a fresh one.
    """
    wanted = plan.config.trials_wanted
    meter.stage("Search", wanted, len(study.searched()))
    budget = Budget(trials=wanted, quick=plan.config.quick, spent=clock.must_confirm)
    searching = True
    while searching:
        with keeping_servers(study.measure):
            study.search(budget)
        # The winner is chosen when all that is being measured is known; what a dead worker leaves is done.
        searching = study.journal.wait_for_others()
    meter.finish()


def confirm_arms(plan: Plan, study: Study, meter: Meter, clock: Clock) -> Confirmed:
    """Measure the best of the search and the baselines again, interleaved, each in fresh servers."""
    again = candidates(study.journal.trials(), study.objective, plan.config.top_wanted, study.journal.limits)
    placements: dict[ArmName, Placement] = {arm: trial.placement for arm, trial in again.items()}
    rounds = plan.config.rounds
    if not placements:
        return Confirmed({})
    meter.stage("Confirm", rounds.most * len(placements))
    with scoring(study, placements):
        confirmed = confirm(
            study.journal, placements, rounds, study.measure, spent=clock.spent, watch=meter.replicate
        )
    meter.finish()
    return confirmed


def report(
    plan: Plan,
    study: Study,
    confirmed: Confirmed,
    ui: Progress,
) -> Report:
    """Make the report of what is stored of the study, and write its files."""
    note_finished(study.journal, confirmed)
    result = report_of(study.journal, Basis.of(plan))
    try:
        paths = save(result, plan.config.reports_dir)
    except OSError as error:
        raise BadSettingError(
            f"The report cannot be written to {plan.config.reports_dir}.",
            str(error),
            "Give another folder with --reports; nothing will be measured again.",
        ) from error
    first = paths[0].relative_to(Path.cwd()) if paths[0].is_relative_to(Path.cwd()) else paths[0]
    ui.say(f"Report: {', '.join([str(first), *(path.suffix for path in paths[1:])])}")
    ui.say(f"Serve it: hottune serve {shlex.quote(str(first))}")
    return result


# --- what the tasks stand on ---


@contextmanager
def opened(plan: Plan, say: Say = lambda line: None) -> Iterator[tuple[Plan, Journal]]:
    """Lock and open the plan's study; a study that is resumed or joined keeps the ceiling it began with.

    Raises:
        StudyBusyError: another live process runs it.
        MachineDiffersError: it has measurements of another kind of machine.
        BadSettingError: a study of this name measured something else.
        StorageError: the storage cannot be used.
    """
    with worker.locked(plan):
        journal = worker.open_journal(plan, say)
        yield worker.join(plan, journal), journal


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
    if line := prepare.load_mode_line(plan):
        ui.say(line)
    if plan.config.worker:
        ui.say("Workers on one machine disturb each other, unless each has a GPU and cores of its own.")
    known = len(journal.trials())
    ui.say(f"Study '{plan.name}'" + (f": goes on, {known} trials are kept." if known else ": new."))


def noted_surroundings(journal: Journal) -> None:
    """Look at what else goes on here and keep it; a warning of an earlier session stays with the study."""
    kept = {one["code"]: WarningNote.model_validate(one) for one in journal.noted("surroundings") or []}
    kept |= {one.code: one for one in surroundings()}
    journal.note("surroundings", [one.model_dump() for one in kept.values()])


def real_servers(plan: Plan, meter: Meter) -> RealServers:
    """Return what measures a placement in a fresh llama-server."""
    bench = make_bench(plan, meter.note)
    bench.on_sample = meter.look
    return RealServers(bench, meter.begin)


def rivals(plan: Plan) -> tuple[Rival, ...]:
    """Return what the search must know of the other engines."""
    return tuple(
        Rival(
            name=fork.name,
            kind=fork.file.placement.kind,
            rebalance_interval=fork.file.placement.rebalance_interval,
            prefill_bypass=fork.file.placement.prefill_bypass,
            refused=bool(fork.facts.refused),
        )
        for fork in plan.forks
    )


def keeping_servers(measure: Measure) -> AbstractContextManager[None]:
    """Let a real server stay up for the next placement where only live settings differ (`Bench.keeping`)."""
    return measure.bench.keeping() if isinstance(measure, RealServers) else nullcontext()


def scoring(study: Study, placements: Mapping[ArmName, Placement]) -> AbstractContextManager[None]:
    """Let each arm's first replicate (the reference's first two) also tell its next tokens, once a study."""
    done: dict[ArmName, list[Replicate]] = {arm: [] for arm in placements}
    for arm, replicate in study.journal.replicates(plan_key(placements)).values():
        done[arm].append(replicate)
    measure = study.measure
    wanted = to_score(placements, done)
    return measure.bench.scoring(wanted) if isinstance(measure, RealServers) else nullcontext()


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
        ballast=plan.ballast,
        keep_free_mib=plan.config.keep_free_mib,
        cooldown_limit_s=QUICK_LIMIT_S if plan.config.quick else LIMIT_S,
        forks={fork.name: fork for fork in plan.forks},
    )


@dataclass(frozen=True)
class Shown:
    """A server that a run would start: why, and exactly how."""

    arm: str
    placement: Placement
    predicted_vram_mib: float | None
    argv: list[str]
    env: dict[str, str]


def dry_run(config: RunConfig) -> tuple[Plan, list[Shown]]:
    """Return the servers that a run would start first: baselines, other engines and grid.

    Starts and builds nothing.
    """
    plan = as_ballasted(prepare.prepare_for_show(config))
    space = plan.space
    start = Start(max(space.ubatches), space.base.threads)
    hot = foreseen(space, start, quick=config.quick)[: config.trials_wanted]
    static = first_baselines(space)
    plain = next((one for arm, one in static if arm == "layers"), static[0][1])
    beside = [
        (rival.name, first_placement(rival, space, plain)) for rival in rivals(plan) if not rival.refused
    ]
    shown = []
    for arm, placement in [*static, *beside, *((HOT_ARMS[0], one) for one in hot)]:
        argv, env = argv_and_env(plan, placement)
        predicted = None if placement.fit else space.predicted_mib(placement)
        shown.append(Shown(arm, placement, predicted, argv, env))
    return plan, shown
