"""From confirmed replicates to a Report: means, changes with intervals, the recommendation, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import fmean

from hottune.engine.argv import Serving, shell_command
from hottune.errors import NothingMeasuredError
from hottune.outcomes import Measurement
from hottune.report.schema import (
    METRICS,
    Arm,
    ArmName,
    Confirmation,
    Replicate,
    Report,
    Roofline,
    Trial,
    WarningNote,
    Winner,
)
from hottune.search.baselines import BASELINES
from hottune.search.confirm import HOT_ARMS, Confirmed, candidates, contest
from hottune.search.objective import Objective
from hottune.stats import Contest, NoteCode, first_run_slower, note, outliers
from hottune.tasks.account import account
from hottune.tasks.against import against_engines
from hottune.tasks.basis import Basis
from hottune.tasks.changes import compared
from hottune.tasks.cold import with_cold_start
from hottune.tasks.commands import argv_and_env
from hottune.tasks.conditions import condition_notes
from hottune.tasks.limited import Replicates, eligible, limit_notes
from hottune.tasks.quality import with_quality
from hottune.tasks.roofline import with_bound
from hottune.units import MIB, format_bytes


def make_report(
    basis: Basis,
    trials: list[Trial],
    confirmed: Confirmed,
    *,
    created: datetime,
    seconds: float,
    notes: list[WarningNote],
    roofline: Roofline | None = None,
    began_with: Sequence[str] = (),
) -> Report:
    """Put everything that was found out into the result schema.

    Of a study whose confirm stage was interrupted, nothing is recommended.

    Raises:
        NothingMeasuredError: no arm has a measurement; of an interrupted study: no trial has.
    """
    objective = basis.config.objective
    searched = candidates(trials, objective, basis.config.top_wanted, basis.limits)
    unfinished = confirmed.ended == "interrupted"
    engines = [fork.name for fork in basis.forks]
    names: tuple[ArmName, ...] = (*BASELINES, *engines, *HOT_ARMS)
    arms = [arm for name in names if (arm := _arm(basis, name, trials, searched, confirmed))]
    measured = {arm.name: measurements(arm.replicates) for arm in arms if arm.outcome == "measurement"}
    if not measured and not (unfinished and searched):
        raise NothingMeasuredError(
            f"No placement of {basis.model.name} could be measured.",
            "; ".join(f"{arm.name}: {arm.outcome} ({arm.detail})" for arm in arms)[:800],
            f"The outcomes are in the study '{basis.study}': hottune studies show {basis.study}",
        )
    replicates = {arm.name: arm.replicates for arm in arms if arm.name in measured}
    contests = {metric: contest(replicates, Objective(metric), confirmed.level) for metric in METRICS}
    allowed = eligible(replicates, basis.limits)
    decides = contest(allowed, Objective(objective.metric), confirmed.level)
    best = decides.best_baseline or contests[objective.metric].best_baseline
    rows = with_quality(compared(arms, contests, best, measured, engines))
    machine = roofline.bandwidths if roofline else None
    rows = [with_bound(with_cold_start(arm), basis.model.shape, basis.workload, machine) for arm in rows]
    winner = None if unfinished else _winner(basis, rows, decides)
    if winner is not None:
        rows, faster = against_engines(rows, replicates, winner.arm, objective.metric, confirmed.level)
        winner = winner.model_copy(update={"faster_engines": faster})
    found = [*_warnings(basis, rows), *_limits(replicates, basis)]
    if unfinished:
        found.append(_unfinished(basis, trials, confirmed))
    return Report(
        hottune_version=basis.hottune_version,
        created=created,
        command=basis.config.command,
        study=basis.study,
        objective=objective.describe(basis.workload.name),
        ceiling_mib=basis.ceiling_mib,
        ballast=basis.ballast,
        model=basis.model,
        machine=basis.seen_machine,
        engine=basis.engine,
        other_engines=[fork.facts for fork in basis.forks],
        workload=basis.workload,
        arms=rows,
        winner=winner,
        confirmation=_confirmation(confirmed),
        trials=trials,
        account=account(basis.memory, trials, objective),
        warnings=[*notes, *found],
        roofline=roofline,
        min_prefill_tok_s=basis.limits.min_prefill_tok_s,
        keep_free_mib=basis.limits.headroom_mib,
        began_with=list(began_with),
        seconds=seconds,
    )


def measurements(replicates: list[Replicate]) -> list[Measurement]:
    """Return the outcomes that are measurements."""
    return [one.outcome for one in replicates if isinstance(one.outcome, Measurement)]


def _arm(
    basis: Basis,
    name: ArmName,
    trials: list[Trial],
    searched: Mapping[ArmName, Trial],
    confirmed: Confirmed,
) -> Arm | None:
    """Make the row of an arm, not yet compared; None when the arm was never tried."""
    attempts = [trial for trial in trials if (trial.arm or "hot") == name]
    trial = searched.get(name) or (attempts[-1] if attempts else None)
    if trial is None:
        return None
    placement = confirmed.placements.get(name, trial.placement)
    argv, env = argv_and_env(basis, placement)
    replicates = confirmed.replicates.get(name, [])
    found = measurements(replicates)
    row = Arm(
        name=name, placement=placement, argv=argv, env=env, outcome="measurement", replicates=replicates
    )
    if isinstance(trial.outcome, Measurement):
        row = row.model_copy(
            update={
                "search_decode_tok_s": trial.outcome.decode_tok_s,
                "search_turn_s": trial.outcome.turn_s,
            }
        )
    if not found:
        ended = next((one.outcome for one in reversed(replicates)), trial.outcome)
        if isinstance(ended, Measurement):  # the stage was cut short before this arm's turn
            detail = f"not measured again; in the search, {_speeds(ended)}"
            return row.model_copy(update={"outcome": "not_confirmed", "detail": detail})
        return row.model_copy(update={"outcome": ended.kind, "detail": ended.detail})
    hits = [one.hit_rate for one in found if one.hit_rate is not None]
    return row.model_copy(
        update={
            "prefill_tok_s": fmean(one.prefill_tok_s for one in found),
            "decode_tok_s": fmean(one.decode_tok_s for one in found),
            "ttft_ms": fmean(one.ttft_ms for one in found),
            "turn_s": fmean(one.turn_s for one in found),
            "vram_peak_mib": max(one.vram_peak_mib for one in found),
            "vram_source": found[0].vram_source,
            "hit_rate": fmean(hits) if hits else None,
        }
    )


def _speeds(found: Measurement) -> str:
    return (
        f"decode {found.decode_tok_s:.4g} tok/s, prefill {found.prefill_tok_s:.4g} tok/s, "
        f"turn {found.turn_s:.3g} s"
    )


def _confirmation(confirmed: Confirmed) -> Confirmation | None:
    rounds = max((len(found) for found in confirmed.replicates.values()), default=0)
    return Confirmation(rounds=rounds, level=confirmed.level, ended=confirmed.ended) if rounds else None


def _winner(basis: Basis, rows: list[Arm], decides: Contest) -> Winner:
    by_name: dict[str, Arm] = {row.name: row for row in rows if row.outcome == "measurement"}
    advice = decides.advise()
    if advice is None:
        assert decides.best_candidate is not None  # something was measured, and it was no baseline
        chosen = by_name[decides.best_candidate]
        reason = f"{chosen.name}: no baseline could be measured"
    else:
        chosen, reason = by_name[advice.arm], advice.reason
    argv, env = argv_and_env(basis.without_ballast, chosen.placement, Serving())
    return Winner(arm=chosen.name, reason=reason, command=shell_command(argv, env))


def _limits(replicates: Replicates, basis: Basis) -> list[WarningNote]:
    return [WarningNote(code=code, text=text) for code, text in limit_notes(replicates, basis.limits)]


def _unfinished(basis: Basis, trials: list[Trial], confirmed: Confirmed) -> WarningNote:
    again = sum(map(len, confirmed.replicates.values()))
    done = f"{len(trials)} trials are known, {again or 'no'} servers of the confirm stage"
    code, text = note(NoteCode.UNFINISHED, done=done, study=basis.study)
    return WarningNote(code=code, text=text)


def _warnings(basis: Basis, rows: list[Arm]) -> list[WarningNote]:
    """Return the warnings that the numbers themselves give rise to."""
    found: list[tuple[str, str]] = []
    if basis.gpu.virtual:
        found.append(note(NoteCode.VIRTUAL_GPU))
    if basis.ballast:
        held = format_bytes(basis.ballast.held_mib * MIB)
        found.append(note(NoteCode.BALLAST, held=held, gpu=basis.gpu.name))
    model = basis.model
    if model.inflated is not None:
        found.append(note(NoteCode.INFLATED_MODEL, model=model.name, how=model.inflated.sentence))
    elif model.synthetic:
        found.append(note(NoteCode.SYNTHETIC_MODEL, model=model.name))
    arms = [row for row in rows if row.outcome == "measurement"]
    least = min((len(measurements(row.replicates)) for row in arms), default=0)
    if arms and least < 3:
        found.append(note(NoteCode.FEW_REPLICATES, n=least))
    if any(row.vram_source == "device-change" for row in arms):
        found.append(note(NoteCode.VRAM_BY_DEVICE_CHANGE, gpu=basis.gpu.name))
    for row in arms:
        turns = [one.turn_s for one in measurements(row.replicates)]
        excess = first_run_slower(turns)
        if excess is not None:
            found.append(note(NoteCode.FIRST_RUN_SLOWER, arm=row.name, percent=round(excess * 100)))
        elif far := outliers(turns):
            found.append(note(NoteCode.OUTLIERS, arm=row.name, count=len(far), total=len(turns)))
        if not basis.gpu.virtual and any(
            one.engagement.pinned is False for one in measurements(row.replicates)
        ):
            found.append(note(NoteCode.UNPINNED_WEIGHTS, arm=row.name))
    found += condition_notes(basis, [one for row in arms for one in measurements(row.replicates)])
    return [WarningNote(code=code, text=text) for code, text in found]
