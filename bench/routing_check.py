"""Replay and the bound against reality: device counters for hit rates, the clock for decode times.

    python bench/routing_check.py MODEL [--slots 16,32,64] [--llama-bin DIR --headers DIR] [--out FILE.json]

One server with the cache serves every policy and size in turn (caches change through the control socket and
begin empty); each run is traced, replayed, and compared with what the device counted. Two servers without a
cache, all experts in RAM and half of the layers in VRAM, and two of the caches calibrate the bound's
constants; the other caches' decode times are then predicted from their replays and compared with the
measured ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hottune.cli.common import cache_dir
from hottune.engine import control
from hottune.engine.build import BuildOptions, build_engine
from hottune.engine.launch import launch
from hottune.engine.replay_library import provide_replay_library
from hottune.machine.bandwidth import bandwidths
from hottune.machine.probe import probe_machine, virtual_gpu
from hottune.models.resolve import resolve_model
from hottune.placement import Placement, Policy
from hottune.routing.bound import Bandwidths, LayerLoad, Measured, TokenLoad, fit, predict, token_load
from hottune.routing.replay import Replay, ReplaySettings, Routing
from hottune.routing.trace import read_trace
from hottune.tasks.foresight import machine_bandwidths, with_constants
from hottune.workload.client import drive
from hottune.workload.workloads import load_workload

POLICIES: tuple[Policy, ...] = ("window", "lru", "lfru", "static")


@dataclass
class Run:
    """One placement, measured; with a cache also replayed."""

    name: str
    load: TokenLoad
    ms_per_token: float
    device_hit_rate: float | None = None
    replay_hit_rate: float | None = None
    device_uploads: int = 0
    replay_uploads: int = 0
    calibrates: bool = False


def main() -> None:
    """Measure, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--slots", default="16,32,64")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--llama-bin", type=Path)
    parser.add_argument("--headers", type=Path)
    parser.add_argument("--workload", default="chat")
    parser.add_argument("--scale", type=float, default=0.5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--hits-only", action="store_true", help="no servers without a cache, no times")
    parser.add_argument("--out", type=Path)
    check = Check(parser.parse_args())
    with TemporaryDirectory() as folder:
        runs = check.measure(Path(folder))
    table, results = compare(runs, check.start)
    print(table)
    if check.options.out:
        facts = {"model": check.model.name, "machine": check.machine.model_dump(mode="json")}
        check.options.out.write_text(json.dumps({**facts, **results}, indent=1))


class Check:
    """What stays the same over all servers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        engine = BuildOptions(llama_bin=options.llama_bin, headers=options.headers)
        self.engine = build_engine(engine, cache_dir=cache_dir())
        self.model = resolve_model(options.model, cache_dir=cache_dir())
        self.machine = probe_machine()
        self.gpu = self.machine.gpus[0] if self.machine.gpus else virtual_gpu(65536)
        self.ceiling = self.gpu.vram_total_mib * 0.9
        self.workload = load_workload(options.workload, scale=options.scale)
        self.threads = options.threads or max(1, self.machine.cpu.physical_cores - 1)
        self.start: Bandwidths | None = None
        if self.machine.gpus:
            self.start = machine_bandwidths(bandwidths(self.machine, cache_dir()), None)
        self.slots = [int(text) for text in options.slots.split(",")]

    def measure(self, folder: Path) -> list[Run]:
        """Return the two placements without a cache, then every cache."""
        n = self.model.shape.n_layers
        if self.options.hits_only:
            self.start = None
            return self._caches(folder)
        return [
            self._plain("all-cpu", n, folder),
            self._plain("layers", n // 2, folder),
            *self._caches(folder),
        ]

    def _placement(self, **fields: Any) -> Placement:
        longest = max(one.prompt_tokens + one.output_tokens for one in self.workload.requests)
        context = 256 * -(-(longest + 8) // 256)
        return Placement(threads=self.threads, context=context, **fields)

    def _serve(self, placement: Placement, log: Path) -> Any:
        return launch(
            self.engine,
            self.model,
            placement,
            gpu=self.gpu,
            ceiling_mib=self.ceiling,
            log_path=log,
        )

    def _plain(self, name: str, n_cpu_moe: int, folder: Path) -> Run:
        shape = self.model.shape
        placement = self._placement(n_cpu_moe=n_cpu_moe)
        with self._serve(placement, folder / f"{name}.log") as server:
            drive(server.base_url, self.workload)
            ms = _ms_per_token(drive(server.base_url, self.workload))
        print(f"{name}: {ms:.2f} ms a token", flush=True)
        all_missed = (0.0,) * shape.n_used + (1.0,)
        layers = tuple(
            LayerLoad(
                expert_bytes=n_bytes / shape.n_experts,
                n_used=shape.n_used,
                misses=all_missed if index < n_cpu_moe else (),
            )
            for index, n_bytes in enumerate(shape.layer_expert_bytes)
        )
        load = TokenLoad(dense_bytes=shape.dense_bytes, kv_bytes=self._kv_bytes(placement), layers=layers)
        return Run(name, load, ms, calibrates=True)

    def _kv_bytes(self, placement: Placement) -> float:
        return self.model.shape.kv_bytes(placement.context, placement.kv_type_k, placement.kv_type_v) / 2

    def _caches(self, folder: Path) -> list[Run]:
        shape, runs = self.model.shape, []
        base = self._placement(n_cpu_moe=shape.n_layers, hot_k=max(self.slots), policy="static")
        library = provide_replay_library(cache_dir())
        sizes = [n_bytes // shape.n_experts for n_bytes in shape.layer_expert_bytes]
        with self._serve(base, folder / "hot.log") as server:
            drive(server.base_url, self.workload)
            for slots in self.slots:
                for policy in self.options.policies.split(","):
                    name = f"{policy} {slots}"
                    server.apply(base.model_copy(update={"policy": policy, "hot_k": slots}))
                    socket, file = server._folder / "hot.sock", folder / f"{policy}-{slots}.hottrace"
                    control.request(socket, {"cmd": "set", "fetch": 0})  # how many, the clock decides
                    control.start_trace(socket, file)
                    ms = _ms_per_token(drive(server.base_url, self.workload))
                    control.stop_trace(socket)
                    counted = control.request(socket, {"cmd": "stats"})["layer"]
                    replay = Replay(library, Routing.from_trace(read_trace(file)), expert_bytes=sizes)
                    said = replay.run(ReplaySettings(policy=policy, slots=slots, slots_from_start=True))
                    load = token_load(
                        said,
                        expert_bytes=sizes,
                        dense_bytes=shape.dense_bytes,
                        kv_bytes=self._kv_bytes(base),
                    )
                    hits = sum(layer["hits"] for layer in counted)
                    run = Run(name, load, ms, hits / sum(one["hits"] + one["misses"] for one in counted))
                    run.replay_hit_rate = said.hit_rate
                    run.device_uploads = sum(one["uploads"] for one in counted)
                    run.replay_uploads = said.uploads
                    runs.append(run)
                    rates = f"device {run.device_hit_rate:.4f} replay {run.replay_hit_rate:.4f}"
                    print(f"{name}: {ms:.2f} ms a token, {rates}", flush=True)
        # The smallest and the largest cache of the first policy calibrate, nothing else does.
        first = self.options.policies.split(",")[0]
        for run in runs:
            run.calibrates = run.name in (f"{first} {self.slots[0]}", f"{first} {self.slots[-1]}")
        return runs


def compare(runs: list[Run], start: Bandwidths | None) -> tuple[str, dict[str, Any]]:
    """Return a table in Markdown, and the same as data."""
    constants, n_layers = None, len(runs[0].load.layers)
    if start is not None:
        calibrating = [
            Measured(load=run.load, ms_per_token=run.ms_per_token) for run in runs if run.calibrates
        ]
        constants = fit(calibrating, with_constants(start, n_layers)).bandwidths
    lines = [
        "| placement | hits | replayed | off by | uploads | replayed | ms a token | predicted | off by |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = []
    for run in runs:
        predicted = predict(run.load, constants).total_ms if constants else None
        row = {
            "placement": run.name,
            "device_hit_rate": run.device_hit_rate,
            "replay_hit_rate": run.replay_hit_rate,
            "device_uploads": run.device_uploads,
            "replay_uploads": run.replay_uploads,
            "ms_per_token": run.ms_per_token,
            "predicted_ms": predicted,
            "calibrates": run.calibrates,
        }
        rows.append(row)
        lines.append(f"| {' | '.join(_cells(run, predicted))} |")
    data = {
        "start": start.model_dump() if start else None,
        "constants": constants.model_dump() if constants else None,
        "rows": rows,
    }
    return "\n".join(lines), data


def _cells(run: Run, predicted: float | None) -> list[str]:
    cells = [run.name]
    if run.device_hit_rate is None or run.replay_hit_rate is None:
        cells += [""] * 5
    else:
        off = 100 * (run.replay_hit_rate - run.device_hit_rate)
        cells += [f"{100 * run.device_hit_rate:.2f} %", f"{100 * run.replay_hit_rate:.2f} %", f"{off:+.2f}"]
        cells += [f"{run.device_uploads:,}", f"{run.replay_uploads:,}"]
    cells.append(f"{run.ms_per_token:.2f}")
    if predicted is None:
        return [*cells, "", ""]
    off = "calibrates" if run.calibrates else f"{100 * (predicted / run.ms_per_token - 1):+.1f} %"
    return [*cells, f"{predicted:.2f}", off]


def _ms_per_token(samples: Any) -> float:
    return sum(one.decode_ms for one in samples) / sum(one.output_tokens for one in samples)


if __name__ == "__main__":
    main()
