"""Results compared with each other: each against the first, by what their fresh servers measured.

Arms of one result were measured in the same rounds and are compared pair by pair, as the report does. Arms of
different results share no round: see `hottune.stats.unpaired`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hottune.errors import NotComparableError
from hottune.outcomes import Measurement
from hottune.report.schema import METRICS, Change, Metric
from hottune.report.wording import VIRTUAL_GPU, is_virtual
from hottune.search.objective import Objective
from hottune.stats import FIXED_LEVEL, Contest, PairedChange, holm_changes, unpaired_change
from hottune.tasks.changes import as_change
from hottune.tasks.comparable import Chosen, Compared, Difference, differences, obstacles
from hottune.tasks.endpoint_compared import ChosenEndpoint, endpoint_cautions

Fact = Literal["kld_to_all_cpu", "vram_peak_mib", "hit_rate"]
FACTS: tuple[Fact, ...] = ("kld_to_all_cpu", "vram_peak_mib", "hit_rate")

UNPAIRED = (
    "{who}: measured in another run than A, so nothing could be paired: what differed between the runs as a "
    "whole (heat, other load, another day) is not in the intervals. Where you can, measure both in one run."
)
_LIKE_FOR_LIKE = ("context", "kv_type_k", "kv_type_v", "load_mode", "parallel")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Caution(_Model):
    """Something that makes the comparison weaker."""

    code: str = Field(
        description="not-alike, not-like-for-like, same-measurements, shared-measurements, virtual-gpu, "
        "unpaired; of endpoints: client-timed, one-server, unchecked-model, unknown-machine, loopback, "
        "no-turn, and the codes of their own warnings"
    )
    text: str


class ComparedArm(_Model):
    """One of the compared arms, with the means that its result has."""

    letter: str = Field(description="A, B, ...: what tables call it")
    name: str = Field(description="result:arm")
    placement: str = Field(description="the placement's short name; what an endpoint says of itself")
    timed: Literal["server", "client"] = Field(
        default="server", description="whose clock prefill and decode are by; client: an endpoint"
    )
    replicates: int = Field(description="fresh servers that were measured; passes over an endpoint")
    decode_tok_s: float | None
    prefill_tok_s: float | None
    turn_s: float | None
    kld_to_all_cpu: float | None = Field(description="nats a position, from its own result's all-cpu")
    vram_peak_mib: float | None
    hit_rate: float | None


class Setting(_Model):
    """A setting that differs, with its value in each arm, in the arms' order."""

    setting: str
    values: list[str]


class AgainstFirst(_Model):
    """An arm's speeds as multiples of the first arm's: above 1 it is faster (turn: as speed)."""

    letter: str
    paired: bool = Field(description="both are of one result, and compared round by round")
    changes: dict[Metric, Change]


class Comparison(_Model):
    """Everything that `hottune compare` found out."""

    arms: list[ComparedArm]
    obstacles: list[Setting] = Field(description="differences that only --allow-different lets pass")
    differences: list[Setting] = Field(description="all settings that differ, obstacles first")
    against_first: list[AgainstFirst]
    warnings: list[Caution]


def compare(chosen: Sequence[Compared], *, allow_different: bool = False) -> Comparison:
    """Compare each arm with the first.

    Verdicts of more than one comparison are by Holm's method over all of them, metric by metric.

    Raises:
        NotComparableError: an arm was not measured; or machine, model, workload or ceiling differ and
            `allow_different` is not set.
    """
    for one in chosen:
        if isinstance(one, Chosen) and one.arm.outcome != "measurement":
            raise NotComparableError(
                f"{one.name} has no speed to compare: it ended as {one.arm.outcome.replace('_', ' ')}.",
                one.arm.detail,
                "Name another arm of that result, as RESULT:ARM.",
            )
    arms = [_compared(letter_of(place), one) for place, one in enumerate(chosen)]
    against = require_alike(chosen, allow_different=allow_different)
    other = differences(chosen)
    paired = [_paired(one, chosen[0]) for one in chosen[1:]]
    by_metric: dict[Metric, dict[str, Change]] = {}
    for metric in METRICS:
        found = {
            arm.letter: change
            for arm, one, pair in zip(arms[1:], chosen[1:], paired, strict=True)
            if (change := _change(one, chosen[0], metric, paired=pair)) is not None
        }
        judged = holm_changes(list(found.values()), level=max(_level(one) for one in chosen))
        by_metric[metric] = {letter: as_change(item) for letter, item in zip(found, judged, strict=True)}
    rows = [
        AgainstFirst(
            letter=arm.letter,
            paired=pair,
            changes={
                metric: by_metric[metric][arm.letter] for metric in METRICS if arm.letter in by_metric[metric]
            },
        )
        for arm, pair in zip(arms[1:], paired, strict=True)
    ]
    return Comparison(
        arms=arms,
        obstacles=_settings(against),
        differences=_settings(other),
        against_first=rows,
        warnings=_warnings(chosen, against, other, paired),
    )


def require_alike(chosen: Sequence[Compared], *, allow_different: bool) -> list[Difference]:
    """Return the obstacles to a comparison.

    Raises:
        NotComparableError: there are some, and `allow_different` is not set.
    """
    against = obstacles(chosen)
    if against and not allow_different:
        raise NotComparableError(
            f"These results are not alike: {said(against, [one.name for one in chosen])}.",
            "Their speeds would differ for that reason alone, whatever the settings.",
            "Compare results of one machine, model, workload and ceiling; or give --allow-different.",
        )
    return against


def letter_of(place: int) -> str:
    """Return A, B, ..., Z, then A2, B2, ..."""
    return chr(ord("A") + place % 26) + (str(place // 26 + 1) if place >= 26 else "")


def said(found: Sequence[Difference], names: Sequence[str]) -> str:
    """Return differences as a clause: `VRAM ceiling 5,850 MiB (A) but 8,650 MiB (B)`."""
    lines = []
    for row in found:
        parts = [f"{value} ({who})" for value, who in _grouped(row.values, names)]
        lines.append(f"{row.setting} {(' but ' if len(parts) == 2 else ' / ').join(parts)}")
    return "; ".join(lines)


def _grouped(values: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    who: dict[str, list[str]] = {}
    for value, name in zip(values, names, strict=True):
        who.setdefault(value, []).append(name)
    return [(value, ", ".join(found)) for value, found in who.items()]


def _settings(found: Sequence[Difference]) -> list[Setting]:
    return [Setting(setting=row.setting, values=list(row.values)) for row in found]


def _paired(one: Compared, first: Compared) -> bool:
    return isinstance(one, Chosen) and isinstance(first, Chosen) and one.report == first.report


def _compared(letter: str, one: Compared) -> ComparedArm:
    if isinstance(one, ChosenEndpoint):
        return ComparedArm(
            letter=letter,
            name=one.name,
            placement=one.described,
            timed="client",
            replicates=len(one.result.passes),
            decode_tok_s=one.result.mean("decode"),
            prefill_tok_s=one.result.mean("prefill"),
            turn_s=one.result.mean("turn"),
            kld_to_all_cpu=None,
            vram_peak_mib=None,
            hit_rate=None,
        )
    arm = one.arm
    return ComparedArm(
        letter=letter,
        name=one.name,
        placement=arm.placement.label(),
        replicates=sum(1 for value in _values(one, "turn") if value is not None),
        decode_tok_s=arm.decode_tok_s,
        prefill_tok_s=arm.prefill_tok_s,
        turn_s=arm.turn_s,
        kld_to_all_cpu=arm.kld_to_all_cpu,
        vram_peak_mib=arm.vram_peak_mib,
        hit_rate=arm.hit_rate,
    )


def _level(one: Compared) -> float:
    """The result's confidence level: wider where its stage looked at intervals to decide when to stop."""
    confirmation = one.report.confirmation if isinstance(one, Chosen) else None
    return confirmation.level if confirmation else FIXED_LEVEL


def _values(one: Compared, metric: Metric) -> list[float | None]:
    if isinstance(one, ChosenEndpoint):
        return [*one.result.values(metric)]
    objective = Objective(metric)
    return [
        objective.measured(item.outcome) if isinstance(item.outcome, Measurement) else None
        for item in one.arm.replicates
    ]


def _change(one: Compared, first: Compared, metric: Metric, *, paired: bool) -> PairedChange | None:
    """Compare two arms in one metric; None when a side has no value of it."""
    these, those = _values(one, metric), _values(first, metric)
    higher = metric != "turn"
    level = max(_level(one), _level(first))
    if paired:
        contest = Contest({"this": these, "first": those}, ["first"], ["this"], higher, level)
        if (change := contest.change("this", "first")) is not None:
            return change
    a, b = ([value for value in side if value is not None] for side in (these, those))
    return unpaired_change(a, b, level=level, higher_is_better=higher) if a and b else None


def _warnings(
    chosen: Sequence[Compared],
    against: Sequence[Difference],
    other: Sequence[Difference],
    paired: Sequence[bool],
) -> list[Caution]:
    letters = [letter_of(place) for place in range(len(chosen))]
    notes = []
    for letter, one in zip(letters[1:], chosen[1:], strict=True):
        mine, firsts = _measured(one), _measured(chosen[0])
        shared = sum(item in firsts for item in mine)
        if shared and shared == len(mine) == len(firsts):
            text = f"{letter}: the very same measurements as A, so the ratio is 1 and tells nothing."
            notes.append(Caution(code="same-measurements", text=text))
        elif shared:
            text = (
                f"{letter}: {shared} of its {len(mine)} servers are A's own (a study that went "
                "on), so the two are nearer to each other than separate measurements would be."
            )
            notes.append(Caution(code="shared-measurements", text=text))
    if against:
        text = f"Not alike, and so no fair comparison of the settings: {said(against, letters)}."
        notes.append(Caution(code="not-alike", text=text))
    if loose := [row for row in other if row.setting in _LIKE_FOR_LIKE]:
        text = f"Part of the difference may be this, not the placement: {said(loose, letters)}."
        notes.append(Caution(code="not-like-for-like", text=text))
    if any(isinstance(one, Chosen) and is_virtual(one.report) for one in chosen):
        notes.append(Caution(code="virtual-gpu", text=VIRTUAL_GPU))
    notes += [Caution(code=code, text=text) for code, text in endpoint_cautions(chosen, letters)]
    if apart := [letter for letter, pair in zip(letters[1:], paired, strict=True) if not pair]:
        notes.append(Caution(code="unpaired", text=UNPAIRED.format(who=", ".join(apart))))
    return notes


def _measured(one: Compared) -> Sequence[object]:
    return one.arm.replicates if isinstance(one, Chosen) else one.result.passes
