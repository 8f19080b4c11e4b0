"""How well `hottune bench --endpoint` agrees with llama-server's own clock, request by request.

    python bench/endpoint_agreement.py [MODEL] [--workload document] [--scale 1] [--passes 3] [--chat]

A llama-server is started for MODEL (default: demo) and driven through its OpenAI route as any endpoint is.
It adds its own `timings` to the last chunk of each stream, so both clocks are of the same request. Printed is
how much longer the client says that prefill and decoding took, for each warm request, the median and the
worst of all, and how many milliseconds later the first token is. Other load delays the client: mind the load
that is printed. Ends with 1 when a median is not within 3 %.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, build_engine
from hottune.engine.launch import launch
from hottune.machine.probe import probe_machine
from hottune.models.resolve import resolve_model
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.tasks.endpoint import Wanted, access_to, measure_endpoint
from hottune.workload.endpoint_facts import EndpointSample
from hottune.workload.workloads import context_needed, load_workload

WITHIN = 0.03
_SPARE = 128  # tokens of context: a prompt's length is that asked for, give or take a few


def main() -> None:
    """Measure and print a row for each warm request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--workload", default="document")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--chat", action="store_true")
    options = parser.parse_args()
    engine = build_engine(BuildOptions(), cache_dir=cache_dir())
    model = resolve_model(options.model, cache_dir=cache_dir())
    workload = load_workload(options.workload, scale=options.scale)
    cores = probe_machine().cpu.physical_cores
    placement = Placement(
        n_cpu_moe=model.shape.n_layers,
        threads=options.threads or max(1, cores - 1),
        context=256 * -(-(context_needed(workload) + _SPARE) // 256),
    )
    with (
        TemporaryDirectory() as folder,
        launch(
            engine, model, placement, gpu=None, ceiling_mib=0, log_path=Path(folder) / "server.log"
        ) as server,
    ):
        wanted = Wanted(route="chat/completions" if options.chat else None)
        access = access_to(f"{server.base_url}/v1", wanted)
        result = measure_endpoint(access, workload, options.passes, wanted, NoProgress())
    load = os.getloadavg()[0]
    print(f"{workload.name} at scale {options.scale:g}, {placement.threads} threads, load {load:.1f}")
    print("| prompt | answer | prefill ms, server | client | decode ms, server | client |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    warm = [one for each in result.passes for one in each.requests if not one.warmup]
    for one in warm:
        print(row(one))
    bad = False
    for name, shares in (
        ("prefill", [prefill(one) for one in warm]),
        ("decode", [decode(one) for one in warm]),
    ):
        middle, worst = median(shares), max(shares, key=abs)
        bad |= abs(middle) > WITHIN
        print(f"{name}: client {middle:+.2%} (median of {len(shares)}), {worst:+.2%} (worst)")
    late = median(one.ttft_ms - one.server.prefill_ms for one in warm if one.server)
    fair = late / WITHIN
    print(f"first token: client {late:.1f} ms later (median): fair from {fair:,.0f} ms of prefill on")
    print(f"the way there and back: {result.round_trip_ms:.2f} ms")
    if bad:
        raise SystemExit(f"not within {WITHIN:.0%}")


def row(one: EndpointSample) -> str:
    """Return both clocks of one request."""
    assert one.server is not None, "llama-server tells its timings"
    return (
        f"| {one.processed_tokens} | {one.output_tokens} | {one.server.prefill_ms:,.1f} "
        f"| {prefill(one):+.2%} | {one.server.decode_ms:,.1f} | {decode(one):+.2%} |"
    )


def prefill(one: EndpointSample) -> float:
    """Return how much longer the client says that the prompt took."""
    assert one.server is not None
    return one.ttft_ms / one.server.prefill_ms - 1


def decode(one: EndpointSample) -> float:
    """Return how much longer the client says that the answer took after its first token."""
    assert one.server is not None
    return one.decode_ms / one.server.decode_ms - 1


if __name__ == "__main__":
    main()
