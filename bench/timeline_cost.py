"""What looking at a server costs its speed: answers of one server, in turn with and without looks.

    python bench/timeline_cost.py [MODEL] [--k 16] [--tokens 600] [--pairs 60] [--interval 0.25]

Answers go in pairs, with and without, without and with, to one server with a warm cache. Printed are what a
look takes while the server is idle, and two ratios (with / without) with their 95 % intervals: decode speed,
and the server's CPU time a token, which other load on a busy machine blurs less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import fmean, median

import psutil
from one_server import one_server

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, build_engine
from hottune.engine.control import Glance
from hottune.engine.server import Server
from hottune.machine.probe import probe_machine
from hottune.models.resolve import resolve_model
from hottune.placement import Placement
from hottune.stats import paired_change
from hottune.tasks.timeline import TimelineSampler
from hottune.workload.client import drive
from hottune.workload.workloads import load_workload


def main() -> None:
    """Measure and print."""
    options = parse()
    engine = build_engine(BuildOptions(), cache_dir=cache_dir())
    model = resolve_model(options.model, cache_dir=cache_dir())
    machine = probe_machine()
    placement = Placement(
        n_cpu_moe=model.shape.n_layers,
        hot_k=options.k,
        threads=options.threads or max(1, machine.cpu.physical_cores - 1),
        context=256 * -(-(options.tokens + 256) // 256),
    )
    with one_server(engine, model, placement, machine) as server:
        print(
            f"idle server: a look takes {median(seconds_of(server.glance) for _ in range(200)) * 1e3:.2f} ms"
        )
        glance = (lambda: None) if options.ask_nobody else server.glance
        answer(server, options.tokens, None, glance)
        runs: list[dict[float | None, tuple[float, float]]] = []
        for number in range(options.pairs):
            order = (options.interval, None) if number % 2 == 0 else (None, options.interval)
            runs.append({one: answer(server, options.tokens, one, glance) for one in order})
    for name, place in (("decode speed", 0), ("CPU time a token", 1)):
        looked, plain = [run[options.interval][place] for run in runs], [run[None][place] for run in runs]
        change = paired_change(looked, plain)
        print(
            f"{name}, a look every {options.interval:g} s: {change.ratio:.4f} ({change.low:.4f} to "
            f"{change.high:.4f}), {len(runs)} pairs, {fmean(plain):.4g} without"
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--k", type=int, default=16, help="experts of each layer in the cache")
    parser.add_argument("--tokens", type=int, default=600, help="of each answer")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--interval", type=float, default=0.25, help="seconds between looks")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--ask-nobody", action="store_true", help="a control: the sampler runs, but asks no server"
    )
    return parser.parse_args()


def seconds_of(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def answer(
    server: Server, tokens: int, interval_s: float | None, glance: Callable[[], Glance | None]
) -> tuple[float, float]:
    """Return decode speed (tok/s) and the server's CPU time a token (ms) of one answer; None: no looks."""
    workload = load_workload("chat")
    request = workload.requests[0].model_copy(update={"output_tokens": tokens})
    one = workload.model_copy(update={"requests": (request,), "warmup_requests": 0})
    before = sum(psutil.Process(server.pid).cpu_times()[:2])
    if interval_s is None:
        (sample,) = drive(server.base_url, one)
    else:
        with TimelineSampler(glance, lambda: None, interval_s=interval_s) as sampler:
            (sample,) = drive(server.base_url, one, on_progress=lambda _: sampler.begin())
    spent = sum(psutil.Process(server.pid).cpu_times()[:2]) - before
    return (sample.output_tokens - 1) / sample.decode_ms * 1e3, spent * 1e3 / sample.output_tokens


if __name__ == "__main__":
    main()
