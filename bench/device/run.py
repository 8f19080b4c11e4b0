"""The hot-expert device against static placements: every arm under equal VRAM ceilings, interleaved.

    python bench/device/run.py MODEL [--ceilings 10,17,25,35,50] [--ubatches 512,2048,3072] [--arms ..]
                               [--probe FILE.cpp] [--out FILE.json] [--add FILE.json]

A ceiling is what the all-cpu arm takes (measured first, at that ubatch) and so many per cent of the model's
expert bytes. With `--add`, cells that the file has are kept and only missing ones are measured, so that it
can be done in several sittings; with `--budget-s`, a sitting ends before so many seconds. The models are in
`bench/device/README.md`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from cells import ARMS, DEVICE_OVERHEAD_MIB, Cell, ceiling_mib, plan_cells
from probe import build_probe, measure_probe
from table import Result, Row, floor_ms, table, write

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, build_engine
from hottune.engine.facts import Backend
from hottune.machine.bandwidth import bandwidths
from hottune.machine.probe import probe_machine, virtual_gpu
from hottune.models.resolve import resolve_model
from hottune.outcomes import Measurement, Outcome
from hottune.placement import LARGEST_BYPASS, KvType, Placement
from hottune.report.schema import Arm, Replicate
from hottune.tasks.foresight import machine_bandwidths
from hottune.tasks.measure import Bench
from hottune.workload.workloads import load_workload, make_workload


def main() -> None:
    """Measure, write after every cell, print the table."""
    options = parse()
    with TemporaryDirectory() as folder:
        run = Run(options, Path(folder))
        run.measure()
    print(table(run.result))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ceilings", default="10,17,25,35,50", help="per cent of the expert bytes")
    parser.add_argument("--ubatches", default="512,2048,3072")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument(
        "--threads", default="", help="several: the cells once for each. Default: cores but one"
    )
    parser.add_argument("--requests", type=int, default=2, help="measured ones, after one to warm up")
    parser.add_argument("--rounds", type=int, default=1, help="fresh servers of each cell; the order turns")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks the requests, 0 to 1")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--kv", default="f16", choices=[one.value for one in KvType])
    parser.add_argument("--spec", default="none")
    parser.add_argument("--policy", default="lfru")
    parser.add_argument(
        "--stream", type=int, default=32, help="batches of so many tokens are streamed; 0: none"
    )
    parser.add_argument("--probe", type=Path, help="C++ source of the plug-in that serves as yardstick")
    parser.add_argument("--llama-bin", type=Path)
    parser.add_argument("--headers", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--backend", choices=[one.value for one in Backend])
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path("bench-device.json"))
    parser.add_argument("--add", type=Path, help="earlier result of this model and machine to go on with")
    return parser.parse_args()


class Run:
    """One sitting: what is fixed over all its cells."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.began = time.monotonic()
        engine = BuildOptions(
            llama_bin=options.llama_bin,
            headers=options.headers,
            source=options.source,
            backend=Backend(options.backend) if options.backend else None,
        )
        self.engine = build_engine(engine, cache_dir=cache_dir())
        self.model = resolve_model(options.model, cache_dir=cache_dir())
        self.machine = probe_machine()
        real = bool(self.machine.gpus) and self.engine.backend is not Backend.CPU
        self.gpu = self.machine.gpus[0] if real else virtual_gpu(65536)
        found = bandwidths(self.machine, cache_dir()) if real else None
        self.bench = Bench(
            engine=self.engine,
            model=self.model,
            gpu=self.gpu,
            ceiling_mib=self.gpu.vram_total_mib * 0.95,
            workload=self._workload(),
            log_dir=folder,
        )
        self.probe = None
        if options.probe and (headers := options.headers or options.source):
            self.probe = build_probe(options.probe, self.engine, headers, folder)
        earlier = Result.model_validate_json(options.add.read_text()) if options.add else None
        self.result = Result(
            commands=[*(earlier.commands if earlier else []), shlex.join(["python", *sys.argv])],
            machine=self.machine,
            engine=self.engine,
            model=self.model,
            workload=self.bench.workload,
            bandwidths=machine_bandwidths(found, None) if found else None,
            rows=earlier.rows if earlier else [],
        )

    def measure(self) -> None:
        """Measure the cells that the result lacks, as long as there is time."""
        options = self.options
        arms = [arm for arm in ARMS if arm in options.arms.split(",") and (arm != "probe" or self.probe)]
        overhead = 0 if self.gpu.virtual else DEVICE_OVERHEAD_MIB
        cells = plan_cells(
            self.model.shape, arms, numbers(options.ceilings), self._bases(), overhead_mib=overhead
        )
        known = {row.key for row in self.result.rows}
        wanted = [cell for cell in cells if cell.key not in known]
        slowest = 0.0
        orders = [wanted if turn % 2 == 0 else _turned(wanted) for turn in range(options.rounds)]
        for cell in chain.from_iterable(orders):
            if time.monotonic() - self.began + 1.2 * slowest > options.budget_s:
                print("time is up: the rest is for another sitting (--add)", file=sys.stderr)
                break
            begun = time.monotonic()
            self._measure(cell)
            slowest = max(slowest, time.monotonic() - begun)
            write(self.result, options.out)

    def _measure(self, cell: Cell) -> None:
        started = datetime.now(UTC)
        self.bench.ceiling_mib = self._ceiling(cell)
        hits = None
        if cell.arm == "probe" and self.probe:
            outcome, hits = measure_probe(self.bench, self.probe, cell.placement)
        else:
            outcome = self.bench.measure(cell.placement)
        known = {row.key: row for row in self.result.rows}
        before = known[cell.key].arm.replicates if cell.key in known else []
        position = sum(len(row.arm.replicates) for row in self.result.rows)
        replicates = [*before, Replicate(position=position, started=started, outcome=outcome)]
        row = self._row(cell, replicates, hits)
        known[cell.key] = row
        self.result = self.result.model_copy(update={"rows": list(known.values())})
        print(f"{cell.key}: {told(outcome, row.arm.hit_rate)}", file=sys.stderr, flush=True)

    def _row(self, cell: Cell, replicates: list[Replicate], hits: float | None) -> Row:
        found = [one.outcome for one in replicates if isinstance(one.outcome, Measurement)]
        last = replicates[-1].outcome
        arm = Arm(
            name=cell.arm, placement=cell.placement, argv=[], env={}, outcome=last.kind, replicates=replicates
        )
        if not found:
            return Row(
                key=cell.key,
                percent=cell.percent,
                ceiling_mib=self.bench.ceiling_mib,
                arm=arm.model_copy(update={"detail": getattr(last, "detail", "")}),
            )
        rates = [one.hit_rate for one in found if one.hit_rate is not None]
        arm = arm.model_copy(
            update={
                "prefill_tok_s": fmean(one.prefill_tok_s for one in found),
                "decode_tok_s": fmean(one.decode_tok_s for one in found),
                "ttft_ms": fmean(one.ttft_ms for one in found),
                "turn_s": fmean(one.turn_s for one in found),
                "vram_peak_mib": max(one.vram_peak_mib for one in found),
                "vram_source": found[0].vram_source,
                "hit_rate": fmean(rates) if rates else hits,
            }
        )
        return Row(
            key=cell.key,
            percent=cell.percent,
            ceiling_mib=self.bench.ceiling_mib,
            arm=arm,
            floor_ms=floor_ms(self.model.shape, found[-1], arm, self.result.bandwidths),
        )

    def _ceiling(self, cell: Cell) -> float:
        """Return the cell's ceiling, MiB; without one for all-cpu, whose peak it stands on."""
        whole_card = self.gpu.vram_total_mib * 0.95
        if cell.arm == "all-cpu":
            return whole_card
        base = next((row for row in self.result.rows if self._is_base(row, cell.placement)), None)
        peak = base.arm.vram_peak_mib if base else None
        return ceiling_mib(self.model.shape, cell.percent, peak) if peak else whole_card

    @staticmethod
    def _is_base(row: Row, of: Placement) -> bool:
        own = row.arm.placement
        return row.arm.name == "all-cpu" and own.ubatch == of.ubatch and own.context == of.context

    def _bases(self) -> list[Placement]:
        options = self.options
        threads = numbers(options.threads) or [max(1, self.machine.cpu.physical_cores - 1)]
        return [
            Placement(
                n_cpu_moe=self.model.shape.n_layers,
                policy=options.policy,
                stream_from=options.stream,
                ubatch=int(ubatch),
                batch=max(2048, int(ubatch)),
                threads=int(n),
                context=options.context,
                kv_type_k=options.kv,
                kv_type_v=options.kv,
                spec_type=options.spec,
                prefill_bypass=LARGEST_BYPASS if options.spec != "none" else 1,
            )
            for n in threads
            for ubatch in numbers(options.ubatches)
        ]

    def _workload(self):  # type: ignore[no-untyped-def]
        found = load_workload("document", scale=self.options.scale)
        first, *others = found.requests
        warm = first.model_copy(update={"output_tokens": max(1, first.output_tokens // 4)})
        texts = [others[index % len(others)] for index in range(self.options.requests)]
        return make_workload("document", [warm, *texts], seed=found.seed)


def told(outcome: Outcome, hits: float | None) -> str:
    """Return one line about what a cell ended as."""
    if not isinstance(outcome, Measurement):
        return f"{outcome.kind} {getattr(outcome, 'detail', '')}"
    rate = f", hits {hits:.1%}" if hits is not None else ""
    speed = f"decode {outcome.decode_tok_s:.1f} tok/s, prefill {outcome.prefill_tok_s:.0f} tok/s"
    return f"{speed}, {outcome.vram_peak_mib:.0f} MiB{rate}"


def numbers(text: str) -> list[float]:
    """Read `10,17.5`; an empty text is none."""
    return [float(word) for word in text.split(",") if word]


def _turned(cells: list[Cell]) -> list[Cell]:
    """Return the cells in the other direction, all-cpu still before what stands on it."""
    other = [cell for cell in cells if cell.arm != "all-cpu"]
    return [cell for cell in cells if cell.arm == "all-cpu"] + other[::-1]


if __name__ == "__main__":
    main()
