"""`hottune compare`: results, arms of them, or endpoints, each against the first."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hottune.cli import common
from hottune.cli.found import found_result, is_file
from hottune.cli.options import Json, StoredIn
from hottune.errors import BadSettingError, NotComparableError, RegressionError
from hottune.report.endpoint import EndpointResult
from hottune.report.schema import Metric

if TYPE_CHECKING:
    from hottune.report.schema import Report
    from hottune.tasks.comparable import Compared

#: The arm behind the last colon; `#2` is the second row of that name (tables of the device's benchmark).
_ARM = re.compile(r"(?P<result>.+):(?P<arm>[a-z][a-z0-9_+-]*)(?P<number>#[1-9]\d*)?")


def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT[:ARM]|URL...",
            help="Studies' names, .db files, result files (.json), or addresses of OpenAI-compatible servers "
            "(measured now); the first is what the others are compared with. Without :ARM the recommended "
            "arm is taken.",
        ),
    ],
    all_arms: Annotated[
        bool, typer.Option("--all-arms", help="Every measured arm of results without :ARM.")
    ] = False,
    allow_different: Annotated[
        bool,
        typer.Option(
            "--allow-different", help="Compare other machines, models, workloads or ceilings, with a warning."
        ),
    ] = False,
    fail_below: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO",
            help="Exit code 62 when an arm is surely slower than so many times the first, like 0.97.",
        ),
    ] = None,
    metric: Annotated[Metric, typer.Option(help="What --fail-below looks at.")] = "turn",
    passes: Annotated[
        int, typer.Option(min=1, help="Of the workload over each server whose address is given.")
    ] = 3,
    storage: StoredIn = None,
    json_output: Json = False,
) -> None:
    """Compare results with each other: the settings that differ, and each speed against the first."""
    with common.handled(json_output):
        from hottune.cli.compare_endpoints import with_endpoints
        from hottune.tasks.comparison import compare as compare_arms
        from hottune.tasks.gate import judge

        if fail_below is not None and not 0 < fail_below < float("inf"):
            raise BadSettingError(f"--fail-below {fail_below:g} is no ratio: it must be above 0, like 0.97.")
        chosen = with_endpoints(
            results,
            partial(_chosen, all_arms=all_arms, storage=storage),
            passes,
            allow_different=allow_different,
        )
        if len(chosen) < 2:
            raise BadSettingError(
                "There is only one arm here; a comparison needs two.",
                next_step="Name another result, or give --all-arms.",
            )
        found = compare_arms(chosen, allow_different=allow_different)
        judged = [] if fail_below is None else judge(found, metric, fail_below)
        if json_output:
            common.emit_json({**found.model_dump(mode="json"), "fail_below": judged})
        else:
            from hottune.cli.compare_view import text

            sys.stdout.write(text(found, judged))
            sys.stdout.flush()
    if failed := [one for one in judged if one.failed]:
        # Not as JSON a second time: the document above says it.
        with common.handled():
            raise RegressionError(
                f"Slower than --fail-below allows. {' '.join(one.why for one in failed)}",
                next_step="The settings that differ stand in the comparison.",
            )


def _chosen(argument: str, *, all_arms: bool, storage: str | None) -> list[Compared]:
    """Return the arms that an argument means.

    Raises:
        StudyNotFoundError, BadResultError: see `found_result`.
        BadSettingError: the result has no such arm, or several of that name.
        NotComparableError: no arm is named, and the result recommends none or measured none.
    """
    from hottune.tasks.comparable import Chosen
    from hottune.tasks.endpoint_compared import ChosenEndpoint

    said, wanted = _split(argument)
    report = found_result(said, storage)
    if isinstance(report, EndpointResult):
        if wanted is not None:
            raise BadSettingError(
                f"{said} is of an endpoint, which has no arms.", next_step=f"Leave ':{wanted}' out."
            )
        return [ChosenEndpoint(report.label, report)]
    name = Path(said).stem if is_file(said) else said
    names = _row_names(report)
    rows = {row: Chosen(f"{name}:{row}", report, one) for row, one in zip(names, report.arms, strict=True)}
    if wanted is None and all_arms:
        measured: list[Compared] = [one for one in rows.values() if one.arm.outcome == "measurement"]
        if not measured:
            raise NotComparableError(
                f"No arm of {said} was measured.", next_step="`hottune report` says why."
            )
        return measured
    if wanted is None and report.winner is None:
        raise NotComparableError(
            f"{said} recommends no arm.",
            "It is a benchmark, or nothing could be measured.",
            f"Name one, as RESULT:ARM, or give --all-arms. Its arms: {', '.join(names)}.",
        )
    arm = wanted or (report.winner.arm if report.winner else "")
    if arm not in rows:
        several = [row for row in names if row.startswith(f"{arm}#")]
        labels = [f"{row} ({rows[row].arm.placement.label()})" for row in several or names]
        raise BadSettingError(
            f"{said} has {'several arms' if several else 'no arm'} named '{arm}'.",
            next_step=f"Name one of: {', '.join(labels)}.",
        )
    return [rows[arm]]


def _split(argument: str) -> tuple[str, str | None]:
    """Return the result and the arm named behind a colon; a file whose own name has one comes first."""
    match = _ARM.fullmatch(argument)
    if match is None or is_file(argument):
        return argument, None
    return match["result"], match["arm"] + (match["number"] or "")


def _row_names(report: Report) -> list[str]:
    """Return each arm's name, numbered where a result has several of that name."""
    names: list[str] = [arm.name for arm in report.arms]
    return [
        name if names.count(name) == 1 else f"{name}#{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]
