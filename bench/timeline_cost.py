"""What looking at a server costs its speed: one server, requests with and without the timeline's sampler.

    python bench/timeline_cost.py [MODEL] [--k 16] [--tokens 1500] [--pairs 20] [--intervals 0.25 0.05]

Requests go in pairs, with and without, without and with, to one server with a warm cache. For each interval
a line has the ratio of decode speeds (with / without, above 1: faster with) with its 95 % interval, and the
time that one look takes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, build_engine
from hottune.engine.facts import Backend
from hottune.engine.server import Server, launch
from hottune.machine.probe import probe_machine, virtual_gpu
from hottune.machine.vram import VramSampler
from hottune.models.resolve import resolve_model
from hottune.placement import Placement
from hottune.stats import paired_change
from hottune.tasks.timeline import TimelineSampler
from hottune.workload.client import drive
from hottune.workload.workloads import load_workload


def main() -> None:
    """Measure each interval and print its line."""
    options = parse()
    engine = build_engine(BuildOptions(), cache_dir=cache_dir())
    model = resolve_model(options.model, cache_dir=cache_dir())
    machine = probe_machine()
    real = bool(machine.gpus) and engine.backend is not Backend.CPU
    gpu = machine.gpus[0] if real else virtual_gpu(65536)
    placement = Placement(
        n_cpu_moe=model.shape.n_layers,
        hot_k=options.k,
        threads=options.threads or max(1, machine.cpu.physical_cores - 1),
        context=256 * -(-(options.tokens + 256) // 256),
    )
    with (
        TemporaryDirectory() as folder,
        VramSampler(gpu) as vram,
        launch(
            engine,
            model,
            placement,
            gpu=gpu,
            ceiling_mib=gpu.vram_total_mib * 0.95,
            log_path=Path(folder) / "server.log",
        ) as server,
    ):
        vram.watch(server.pid)
        looks = []
        for _ in range(100):
            began = time.perf_counter()
            server.glance()
            looks.append(time.perf_counter() - began)
        print(f"idle server: a look takes {sorted(looks)[50] * 1e3:.2f} ms (median)")
        decode_tok_s(server, options.tokens, vram, None)
        for interval_s in options.intervals:
            pairs = []
            for number in range(options.pairs):
                order = (interval_s, None) if number % 2 == 0 else (None, interval_s)
                found = {one: decode_tok_s(server, options.tokens, vram, one) for one in order}
                pairs.append((found[interval_s], found[None]))
            change = paired_change([one for one, _ in pairs], [other for _, other in pairs])
            speed = sum(other for _, other in pairs) / len(pairs)
            print(
                f"every {interval_s:g} s: {change.ratio:.4f} ({change.low:.4f} to {change.high:.4f}), "
                f"{len(pairs)} pairs at {speed:.0f} tok/s",
                flush=True,
            )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--k", type=int, default=16, help="experts of each layer in the cache")
    parser.add_argument("--tokens", type=int, default=1500, help="of each answer")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--intervals", type=float, nargs="+", default=[0.25, 0.05])
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def decode_tok_s(server: Server, tokens: int, vram: VramSampler, interval_s: float | None) -> float:
    """Return the decode speed of one request, with looks or without."""
    workload = load_workload("chat")
    request = workload.requests[0].model_copy(update={"output_tokens": tokens})
    one = workload.model_copy(update={"requests": (request,), "warmup_requests": 0})
    if interval_s is None:
        (sample,) = drive(server.base_url, one)
    else:
        with TimelineSampler(server.glance, lambda: vram.last_mib, interval_s=interval_s) as sampler:
            (sample,) = drive(server.base_url, one, on_progress=lambda _: sampler.begin())
    return (sample.output_tokens - 1) / sample.decode_ms * 1e3


if __name__ == "__main__":
    main()
