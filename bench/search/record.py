"""Record a landscape: measure a grid of placements on real servers and write it for `python -m bench.search`.

    python -m bench.search.record MODEL --vram SIZE --out bench/search/landscapes/NAME.json --name TEXT
        [--workload document] [--scale 0.4] [--shares 0,0.5] [--ubatches 512,2048] [--threads 15,8,4]
        [--budget-s 500] [--llama-bin DIR --headers SRC]

Where placements differ in live settings alone, one server measures them all. The file is written after every
server; with `--budget-s` the recording ends early and says what is missing. Five more measurements of the
last placement, one after the other, tell the noise.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

from bench.search.recorded import Record, Row
from hottune import workflow
from hottune.cli.common import cache_dir, make_progress
from hottune.engine.build import BuildOptions
from hottune.outcomes import Measurement
from hottune.placement import Placement, Policy
from hottune.progress import Progress
from hottune.search.space import Space
from hottune.tasks import prepare
from hottune.tasks.prepare import Plan
from hottune.tasks.settings import RunConfig
from hottune.tasks.show import Meter
from hottune.units import mib, parse_size

LIVE: tuple[tuple[Policy, int, bool], ...] = (
    ("lfru", 60, False),
    ("lfru", 16, False),
    ("lfru", 240, False),
    ("lru", 60, False),
    ("window", 60, False),
    ("lfru", 60, True),
)
REPEATS = 5


def main() -> None:
    """Measure the grid and write the record."""
    options = parse()
    progress = make_progress()
    plan = planned(options, progress)
    began = time.monotonic()
    rows: list[Row] = []
    loads: list[float] = []
    turns: list[float] = []
    meter = Meter(progress)
    measure = workflow.real_servers(plan, meter)
    told = measure.bench.note

    def note(line: str) -> None:
        if line.startswith("a fresh server"):
            progress.say(line)
        told(line)

    measure.bench.note = note
    wanted = list(placements(plan.space, numbers(options.shares, float), numbers(options.threads, int)))
    meter.stage("Recording", len(wanted))

    def keep(placement: Placement) -> None:
        outcome = measure(placement)
        meter.ended(placement.label() + f" t {placement.threads}", outcome)
        if not isinstance(outcome, Measurement):
            return
        if not outcome.reused_server:
            loads.append(outcome.load_s)
        turns.append(outcome.turn_s)
        rows.append(
            Row(
                placement=placement,
                prefill_tok_s=outcome.prefill_tok_s,
                decode_tok_s=outcome.decode_tok_s,
                vram_mib=outcome.vram_peak_mib,
                hit_rate=outcome.hit_rate,
            )
        )

    with workflow.keeping_servers(measure):
        for placement in wanted:
            if time.monotonic() - began > options.budget_s:
                progress.say(f"the time is up: {len(wanted) - len(rows)} placements are missing")
                break
            keep(placement)
            if rows:
                write(options, plan, rows, loads, noise=0.0)
        again = rows[-1].placement
        turns.clear()
        for _ in range(REPEATS):
            # Live settings must differ for a fresh start of the cache; the other one is not kept.
            measure(again.model_copy(update={"rebalance_interval": again.rebalance_interval + 1}))
            keep(again)
            rows.pop()
    write(options, plan, rows, loads, noise=stdev(turns) / fmean(turns))
    progress.say(f"{len(rows)} placements, noise {stdev(turns) / fmean(turns):.1%}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--vram", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--workload", default="document")
    parser.add_argument("--scale", type=float, default=0.4)
    parser.add_argument("--shares", default="0,0.5")
    parser.add_argument("--ubatches", default="512,2048")
    parser.add_argument("--threads", default="15,8,4")
    parser.add_argument("--budget-s", type=float, default=3600)
    parser.add_argument("--llama-bin", type=Path)
    parser.add_argument("--headers", type=Path)
    return parser.parse_args()


def numbers(text: str, kind: type) -> list:  # type: ignore[type-arg]
    """Read `0,0.5`."""
    return [kind(word) for word in text.split(",")]


def planned(options: argparse.Namespace, progress: Progress) -> Plan:
    """Return what `hottune run` would settle before its first server."""
    folder = cache_dir()
    config = RunConfig(
        model=options.model,
        cache_dir=folder,
        studies_dir=folder,
        reports_dir=folder,
        engine=BuildOptions(llama_bin=options.llama_bin, headers=options.headers),
        vram_mib=mib(parse_size(options.vram)),
        workload=options.workload,
        scale=options.scale,
        ubatches=tuple(numbers(options.ubatches, int)),
        ballast=False,
    )
    return prepare.prepare(config, progress)


def placements(space: Space, shares: list[float], threads: list[int]) -> Iterator[Placement]:
    """Yield the grid, ordered so that few servers are started: caches, then whole layers alone."""
    for ubatch, share, count in itertools.product(space.ubatches, shares, threads):
        for policy, interval, shared in LIVE:
            placement = space.hot(
                space.mixed(share, ubatch),
                ubatch,
                threads=count,
                policy=policy,
                interval=interval,
                shared=shared,
            )
            if placement is not None:
                yield placement
    for ubatch, count in itertools.product(space.ubatches, threads):
        yield space.layers(space.fewest_cpu_layers(ubatch), ubatch, count)


def write(options: argparse.Namespace, plan: Plan, rows: list[Row], loads: list[float], noise: float) -> None:
    """Write the record as it is now."""
    requests = plan.workload.requests
    warm = requests[plan.workload.warmup_requests]
    record = Record(
        name=options.name,
        command="python -m bench.search.record " + " ".join(sys.argv[1:]),
        machine=f"{plan.gpu.name}, {plan.machine.cpu.name}, {plan.machine.cpu.physical_cores} cores",
        shape=plan.model.shape,
        ceiling_mib=plan.ceiling_mib,
        overhead_mib=0.0 if plan.gpu.virtual else prepare.CONTEXT_OVERHEAD_MIB,
        prompt_tokens=warm.prompt_tokens,
        output_tokens=warm.output_tokens,
        requests=len(requests),
        load_s=fmean(loads) if loads else 0.0,
        noise=noise,
        rows=rows,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
