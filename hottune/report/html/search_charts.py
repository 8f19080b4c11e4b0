"""Charts of the search: all trials by both speeds, and how the best so far went."""

from __future__ import annotations

from collections.abc import Sequence

from hottune.outcomes import Measurement
from hottune.report.html.bars import Bar, Group, bars
from hottune.report.html.markup import Cell
from hottune.report.html.svg import Figure
from hottune.report.html.xy import Flag, Line, Point, plot
from hottune.report.importance import BEST, FEW_PLACEMENTS, importance
from hottune.report.schema import Report, Trial
from hottune.report.wording import NOTHING, OUTCOME_WORDS, named, number, objective_axis, share

#: Letter of each outcome that is no measurement.
LETTERS = {
    "out_of_memory": "M",
    "timed_out": "T",
    "crashed": "C",
    "garbage": "G",
    "not_engaged": "E",
    "rejected": "R",
}
_BY = {"turn_s": "the turn", "decode_tok_s": "decode speed", "prefill_tok_s": "prefill speed"}


def scatter(report: Report) -> Figure | None:
    """Return prefill and decode speed of all trials, with the Pareto front."""
    found = _measured(report.trials)
    if not found:
        return None
    best = _front(report, found)
    points = [
        Point(
            run.prefill_tok_s,
            run.decode_tok_s,
            f"trial {trial.number}: {named(report, trial.placement)}: prefill {number(run.prefill_tok_s)}, "
            f"decode {number(run.decode_tok_s)} tok/s",
            "diamond" if trial.number in best else "square" if trial.origin == "baseline" else "circle",
            "p1" if trial.number in best else "p2" if trial.origin == "baseline" else "p0",
        )
        for trial, run in found
    ]
    edge = sorted((run.prefill_tok_s, run.decode_tok_s) for trial, run in found if trial.number in best)
    body, height = plot("prefill tok/s", "decode tok/s", points=points, lines=[Line(edge, "l1")])
    rows = [
        [
            Cell(str(trial.number), trial.number),
            Cell(named(report, trial.placement)),
            Cell(number(run.prefill_tok_s), run.prefill_tok_s),
            Cell(number(run.decode_tok_s), run.decode_tok_s),
            Cell("yes" if trial.number in best else "no"),
        ]
        for trial, run in found
    ]
    text = f"Prefill and decode speed of {len(found)} trials; {len(best)} of them are on the Pareto front."
    note = (
        "Up and right is better. Diamonds: the Pareto front, which no trial beats in both; squares: "
        "baselines; circles: the search. One server each, not yet measured again."
    )
    head = ["trial", "placement", "prefill tok/s", "decode tok/s", "on the front"]
    return Figure("Prefill against decode", text, height, body, head, rows, note)


def history(report: Report) -> Figure | None:
    """Return the objective over the trials, the best so far as a line, failures as letters."""
    if not report.trials:
        return None
    field, axis = objective_axis(report)
    points, flags, rows, steps = [], [], [], []
    best: float | None = None
    for trial in sorted(report.trials, key=lambda item: item.number):
        where = f"trial {trial.number}: {named(report, trial.placement)}"
        value: float | None = None
        if isinstance(trial.outcome, Measurement):
            value = getattr(trial.outcome, field)
            words = f"{where}: {number(value)} {axis}"
            plain = trial.origin == "baseline"
            points.append(
                Point(trial.number, value, words, *(("square", "p2") if plain else ("circle", "p0")))
            )
            if _allowed(report, trial.outcome):
                better = min if field == "turn_s" else max
                best = value if best is None else better(best, value)
        else:
            kind = trial.outcome.kind
            flags.append(Flag(trial.number, LETTERS[kind], f"{where}: {OUTCOME_WORDS[kind]}"))
        if best is not None:
            steps.append((float(trial.number), best))
        rows.append(
            [
                Cell(str(trial.number), trial.number),
                Cell(named(report, trial.placement)),
                Cell(trial.origin),
                Cell(OUTCOME_WORDS[trial.outcome.kind]),
                Cell(number(value), value),
                Cell(number(best) if best is not None else NOTHING, best),
            ]
        )
    body, height = plot("trial", axis, points=points, lines=[Line(steps, "l0", steps=True)], flags=flags)
    kinds = dict.fromkeys(trial.outcome.kind for trial in report.trials)
    failed = [f"{LETTERS[kind]} {OUTCOME_WORDS[kind]}" for kind in kinds if kind in LETTERS]
    text = f"{axis} of {len(points)} measured trials and the best so far; {len(flags)} trials failed."
    lower = "Lower" if field == "turn_s" else "Higher"
    note = f"{lower} is better. Line: best so far; squares: baselines; circles: the search."
    note += f" Failed: {', '.join(failed)}." if failed else ""
    head = ["trial", "placement", "origin", "outcome", axis, "best so far"]
    return Figure("Search history", text, height, body, head, rows, note)


def parameters(report: Report) -> Figure | None:
    """Return how much each setting sets the best trials apart; None where too little was tried for that."""
    found = importance(report)
    if not found.shares:
        return None
    groups = [Group(name, [Bar(part * 100, share(part))]) for name, part in found.shares.items()]
    rows = [[Cell(name), Cell(share(part), part)] for name, part in found.shares.items()]
    body, height = bars(groups, "% of what sets the best apart")
    text = f"Share of each of {len(rows)} settings in what sets the best trials apart, in percent, as bars."
    note = (
        f"What sets the best {BEST:.0%} of {found.n_placements} placements with a cache apart from all of "
        f"them, by {_BY[objective_axis(report)[0]]} (PED-ANOVA). It describes these few trials, which were "
        "chosen, not drawn evenly: it proves no cause, and tells nothing of what was not tried."
    )
    note += " Of so few, even the order is unsure." * (found.n_placements < FEW_PLACEMENTS)
    note += f" The same in all: {', '.join(found.constant)}." if found.constant else ""
    return Figure("Parameter importance", text, height, body, ["setting", "share"], rows, note)


def no_parameters(report: Report) -> list[str]:
    """Return why there is no parameter importance; nothing where there is one, or was no search."""
    found = importance(report)
    return [f"No parameter importance: {found.why_not}."] if report.trials and found.why_not else []


def _measured(trials: Sequence[Trial]) -> list[tuple[Trial, Measurement]]:
    return [(trial, trial.outcome) for trial in trials if isinstance(trial.outcome, Measurement)]


def _front(report: Report, found: Sequence[tuple[Trial, Measurement]]) -> set[int]:
    """Return the trials on the front: as the search told it, else of all that kept the limits."""
    if report.account and report.account.front:
        return set(report.account.front)
    kept = [(trial.number, run) for trial, run in found if _allowed(report, run)]
    return {one for one, run in kept if not any(_beats(other, run) for _, other in kept)}


def _beats(one: Measurement, other: Measurement) -> bool:
    """Tell whether one is as fast in both phases, and faster in one."""
    first, second = (one.prefill_tok_s, one.decode_tok_s), (other.prefill_tok_s, other.decode_tok_s)
    return first != second and first[0] >= second[0] and first[1] >= second[1]


def _allowed(report: Report, run: Measurement) -> bool:
    """Tell whether a measurement kept the report's limits: what it may recommend."""
    quick = report.min_prefill_tok_s is None or run.prefill_tok_s >= report.min_prefill_tok_s
    room = report.keep_free_mib <= 0 or run.vram_peak_mib + report.keep_free_mib <= report.ceiling_mib
    return quick and room
