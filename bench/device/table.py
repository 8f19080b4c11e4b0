"""The result as Markdown: what ran on what, a row for each cell, and what it comes down to."""

from __future__ import annotations

from collections.abc import Callable

from bench.device.compare import STATIC, best, decode, prefill
from hottune.outcomes import HotStats, Measurement
from hottune.report.markdown import bullets, table
from hottune.report.schema import Against, Arm, Report
from hottune.report.setup import setup
from hottune.report.wording import is_virtual
from hottune.units import mib

NOTHING = "–"
#: An interval whose ends are further apart tells nothing (two replicates); it stays in the result file.
WIDE = 2.0
REUSED = "\\* measured in the server of the cell before, its settings changed while it ran: no replicate."
PHASES = ("submit", "cold", "wait", "swap")
_GB = 1e9
_SETUP = ("GPU", "CPU and RAM", "Model", "Experts", "KV and context", "Workload", "llama.cpp", "hottune")

HEAD = [
    "ceiling",
    "arm",
    "ubatch",
    "placement",
    "n",
    "decode tok/s",
    "× static",
    "prefill tok/s",
    "× static",
    "× same ubatch",
    "TTFT ms",
    "VRAM MiB",
    "of MiB",
    "hit rate",
    "slots",
    "ring MiB",
    "working MiB, VRAM + host",
    "uploaded GB",
    "fetched GB",
    *(f"{phase} µs" for phase in PHASES),
    "of bound",
]


def markdown(report: Report) -> str:
    """Return the whole page."""
    threads = report.arms[0].placement.threads if report.arms else 0
    main = [arm for arm in report.arms if arm.placement.threads == threads]
    others = [arm for arm in report.arms if arm.placement.threads != threads]
    blocks = ["**Virtual GPU: these numbers show that it works, not that it is fast.**"] * is_virtual(report)
    blocks += [bullets([f"{label}: {value}" for label, value in _setup(report)])]
    blocks += [f"```sh\n{report.command}\n```", table(HEAD, [row(arm) for arm in main], right_from=4)]
    blocks += [REUSED] * any(_reused(arm) for arm in report.arms)
    blocks += [summary(main), _threads(main, others), _failures(report)]
    blocks += [bullets([note.text for note in report.warnings if note.code != "virtual-gpu"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _setup(report: Report) -> list[tuple[str, str]]:
    return [(label, value) for label, value in setup(report) if label in _SETUP]


def row(arm: Arm) -> list[str]:
    """Return the cells of a row; what was not measured or not counted is a dash."""
    cell, place = arm.cell, arm.placement
    assert cell is not None
    head = [_percent(arm), arm.name, str(place.ubatch), _placement(arm)]
    if arm.outcome != "measurement":
        return [*head, arm.outcome.replace("_", " "), *[NOTHING] * (len(HEAD) - len(head) - 1)]
    found = [one.outcome for one in arm.replicates if isinstance(one.outcome, Measurement)]
    hot = found[0].engagement.hot
    streamed = hot.stream_bytes if hot else 0
    return [
        *head,
        f"{len(found)}{'*' * _reused(arm)}",
        _number(arm.decode_tok_s, 2),
        _times(cell.decode),
        _number(arm.prefill_tok_s, 0),
        _times(cell.prefill),
        _times(cell.prefill_same_ubatch),
        _number(arm.ttft_ms, 0),
        _number(arm.vram_peak_mib, 0),
        NOTHING if cell.ceiling_percent is None else _number(cell.ceiling_mib, 0),
        NOTHING if arm.hit_rate is None else f"{100 * arm.hit_rate:.1f} %",
        str(hot.slots) if hot else NOTHING,
        _number(mib(hot.stream_buffer_bytes), 0) if hot else NOTHING,
        f"{mib(hot.working_vram_bytes):.1f} + {mib(hot.working_host_bytes):.1f}" if hot else NOTHING,
        _number((hot.uploaded_bytes + streamed) / _GB, 2) if hot else NOTHING,
        _number(hot.fetched_bytes / _GB, 2) if hot else NOTHING,
        *(_phase(hot, phase) for phase in PHASES),
        NOTHING if cell.bound_share is None else f"{100 * cell.bound_share:.0f} %",
    ]


def _reused(arm: Arm) -> bool:
    return any(isinstance(one.outcome, Measurement) and one.outcome.reused_server for one in arm.replicates)


def summary(arms: list[Arm]) -> str:
    """Return for each ceiling the best static speeds, and every other arm's best as multiples of them."""
    names = [name for name in dict.fromkeys(arm.name for arm in arms) if name not in STATIC]
    percents = {arm.cell.ceiling_percent for arm in arms if arm.cell}
    lines = []
    for percent in sorted(one for one in percents if one is not None):
        here = [arm for arm in arms if arm.cell and arm.cell.ceiling_percent in (None, percent)]
        line = [f"{percent:g} %"]
        for read, digits in ((decode, 2), (prefill, 0)):
            static = best((arm for arm in here if arm.name in STATIC), read)
            line.append(f"{_speed(static, read, digits)} ({static.name})" if static else NOTHING)
            for name in names:
                mine = best((arm for arm in here if arm.name == name), read)
                if mine is None or mine.cell is None:
                    line.append(NOTHING)
                    continue
                against = mine.cell.decode if read is decode else mine.cell.prefill
                line.append(f"{_speed(mine, read, digits)} = {_times(against)}")
        lines.append(line)
    head = ["ceiling"]
    for what in ("decode", "prefill"):
        head += [f"{what}, best static", *(f"{what}, {name} × static" for name in names)]
    return table(head, lines, right_from=1) if lines and names else ""


def _speed(arm: Arm, read: Callable[[Arm | Measurement], float], digits: int) -> str:
    return f"{_number(read(arm), digits)} ub {arm.placement.ubatch}"


def _threads(main: list[Arm], others: list[Arm]) -> str:
    """Return the rows of other numbers of threads, each kind beside the main table's."""
    if not others:
        return ""
    kinds = {_kind(arm) for arm in others}
    lines = [
        [arm.name, _percent(arm), *(_number(value, digits) for value, digits in _speeds(arm))]
        for arm in sorted([*main, *others], key=lambda arm: (arm.name, arm.placement.threads))
        if _kind(arm) in kinds
    ]
    return table(["arm", "ceiling", "threads", "decode tok/s", "prefill tok/s"], lines, right_from=1)


def _kind(arm: Arm) -> tuple[str, str, int]:
    return arm.name, _percent(arm), arm.placement.ubatch


def _speeds(arm: Arm) -> list[tuple[float | None, int]]:
    return [(arm.placement.threads, 0), (arm.decode_tok_s, 2), (arm.prefill_tok_s, 0)]


def _failures(report: Report) -> str:
    bad = [arm for arm in report.arms if arm.outcome != "measurement"]
    return bullets([f"{arm.name} {_percent(arm)} ub {arm.placement.ubatch}: {arm.detail}" for arm in bad])


def _placement(arm: Arm) -> str:
    place = arm.placement
    if place.fit:
        return "--fit"
    return f"ncmoe {place.n_cpu_moe}" + (f" + {place.hot_k}" if place.hot_k else "")


def _percent(arm: Arm) -> str:
    percent = arm.cell.ceiling_percent if arm.cell else None
    return NOTHING if percent is None else f"{percent:g} %"


def _phase(hot: HotStats | None, phase: str) -> str:
    return _number(hot.time_us.get(phase), 1) if hot else NOTHING


def _times(against: Against | None) -> str:
    if against is None:
        return NOTHING
    change = against.change
    if change.low is None or change.high is None or change.high > WIDE * change.low:
        return f"{change.ratio:.2f}"
    return f"{change.ratio:.2f} ({change.low:.2f} to {change.high:.2f})"


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"
