"""What the device's settings do to speed: one server, changed in turn through the control socket.

    python bench/live_settings.py MODEL fetch=0 fetch=1 k=42,fetch=-1 --k 20 --ubatch 3072 [--threads 15]

Each SETTING is what the socket takes (docs/engine.md), with commas between several; what is not named stays
as the one before left it. For each, a short request to get used to it and two documents of 2,930 tokens in
and 300 out; a line has the speeds of one and what the device counted meanwhile. `--k 0` is a server without
the device, which takes no settings; `--n-cpu-moe 0` then has everything in VRAM. Texts are drawn, and differ
with what was cached in their last bits and then altogether: compare hit rates before speeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from one_server import one_server

from hottune.cli.common import cache_dir
from hottune.engine import control
from hottune.engine.build import BuildOptions, build_engine
from hottune.engine.server import Server
from hottune.machine.probe import probe_machine
from hottune.models.resolve import resolve_model
from hottune.outcomes import RequestSample
from hottune.placement import Placement
from hottune.workload.client import drive
from hottune.workload.facts import Workload
from hottune.workload.workloads import context_needed, load_workload

WARM_TOKENS = (600, 64)  # in and out


def main() -> None:
    """Measure each setting and print a line for each request."""
    options = parse()
    engine = build_engine(
        BuildOptions(llama_bin=options.llama_bin, headers=options.headers), cache_dir=cache_dir()
    )
    model = resolve_model(options.model, cache_dir=cache_dir())
    machine = probe_machine()
    workload = load_workload("document", scale=options.scale)
    placement = Placement(
        n_cpu_moe=model.shape.n_layers if options.n_cpu_moe is None else options.n_cpu_moe,
        hot_k=options.k,
        stream_from=options.stream if options.k else 0,
        ubatch=options.ubatch,
        batch=max(2048, options.ubatch),
        threads=options.threads or max(1, machine.cpu.physical_cores - 1),
        context=256 * -(-context_needed(workload) // 256),
    )
    warm, *documents = requests(workload, options.scale)
    with one_server(engine, model, placement, machine) as server:
        for setting in options.settings or [""]:
            if setting:
                control.request(_socket(server), {"cmd": "set", **changes(setting)})
            drive(server.base_url, warm)
            for document in documents:
                if options.k:
                    control.reset(_socket(server))
                (sample,) = drive(server.base_url, document)
                counted = control.request(_socket(server), {"cmd": "stats"}) if options.k else None
                print(line(setting or placement.label(), sample, counted), flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("settings", nargs="*", metavar="SETTING")
    parser.add_argument("--k", type=int, default=16, help="slots of each layer at start; 0: no device")
    parser.add_argument("--n-cpu-moe", type=int, help="default: all layers")
    parser.add_argument("--ubatch", type=int, default=2048)
    parser.add_argument(
        "--stream", type=int, default=32, help="batches of so many tokens are streamed; 0: none"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks the requests, 0 to 1")
    parser.add_argument("--llama-bin", type=Path)
    parser.add_argument("--headers", type=Path)
    return parser.parse_intermixed_args()


def changes(setting: str) -> dict[str, Any]:
    """Read `k=42,policy=lru` as what the control socket takes."""
    pairs = (word.split("=", 1) for word in setting.split(","))
    return {key: int(value) if value.lstrip("-").isdigit() else value for key, value in pairs}


def requests(workload: Workload, scale: float) -> list[Workload]:
    """Return a short request to warm up with, then each document by itself."""
    first, *others = workload.requests
    n_in, n_out = (max(1, round(n * scale)) for n in WARM_TOKENS)
    short = first.model_copy(update={"prompt_tokens": n_in, "output_tokens": n_out})
    return [
        workload.model_copy(update={"requests": (one,), "warmup_requests": 0}) for one in (short, *others[:2])
    ]


def line(name: str, sample: RequestSample, counted: dict[str, Any] | None) -> str:
    """Return one line about a request."""
    prefill = sample.prompt_tokens / sample.prefill_ms * 1e3
    decode = (sample.output_tokens - 1) / sample.decode_ms * 1e3
    text = f"{name:24} prefill {prefill:7.0f} tok/s  decode {decode:6.1f} tok/s"
    if counted is None:
        return text
    tokens = max(1, counted["tokens"])
    hits = counted["hits"] / max(1, counted["hits"] + counted["misses"])
    times = json.dumps({phase: round(us) for phase, us in counted["time_us"].items()})
    return (
        f"{text}  hits {hits:.1%}  slots {counted['slots']}  "
        f"uploaded {counted['uploaded_bytes'] / tokens / 1e6:.0f} MB/token, "
        f"fetched {counted['fetched_bytes'] / tokens / 1e6:.0f}  us a block {times}"
    )


def _socket(server: Server) -> Path:
    return server._folder / "hot.sock"


if __name__ == "__main__":
    main()
