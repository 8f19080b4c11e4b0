"""The yardstick: a plug-in of one C++ file, built beside and measured in the same way as the other arms."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from hottune.engine import argv as arguments
from hottune.engine import loadlog, process
from hottune.engine.facts import EngineBuild
from hottune.engine.server import free_port
from hottune.machine.vram import VramSampler
from hottune.outcomes import Crashed, NotEngaged, Outcome
from hottune.placement import Placement
from hottune.tasks.measure import Bench
from hottune.workload.client import RequestFailed, drive
from hottune.workload.summary import measurement

#: The probe's own settings: tokens between rebalances, and the smallest batch that it streams experts for.
SETTINGS = {"HOT_INTERVAL": "60", "HOT_PP": "32"}
LOAD_LIMIT_S = 300.0
_HITS = re.compile(r"hot: hit ([0-9.]+) swaps \d+ calls (\d+)")


def build_probe(source: Path, engine: EngineBuild, headers: Path, folder: Path) -> Path:
    """Compile the probe against the engine's libraries and return the library.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    library, libraries = folder / "probe.so", engine.llama_server.parent
    argv = ["g++", "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-w"]
    argv += [f"-I{headers}/ggml/include", f"-I{headers}/ggml/src", "-o", str(library), str(source)]
    argv += [f"-L{libraries}", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
    subprocess.run(argv, check=True)
    return library


def measure_probe(bench: Bench, library: Path, placement: Placement) -> tuple[Outcome, float | None]:
    """Measure the probe with the placement's `hot_k` slots in a fresh server; return its hit rate, too."""
    log = bench.log_dir / f"probe-{time.monotonic_ns()}.log"
    with VramSampler(bench.gpu) as vram:
        try:
            with _serve(bench, library, placement, log) as (child, url, load_s):
                vram.watch(child.pid)
                samples = drive(url, bench.workload)
        except (RequestFailed, OSError) as error:
            return Crashed(exit_code=None, detail=f"probe: {error}"), None
        text = log.read_text(errors="replace")
        found = _HITS.findall(text)
        if not found or int(found[-1][1]) == 0:
            return NotEngaged(detail="the probe left no counters"), None
        outcome = measurement(
            samples,
            vram_peak_mib=vram.peak_mib,
            vram_source=vram.source,
            load_s=load_s,
            engagement=loadlog.parse(text).engagement(),
        )
        return outcome, float(found[-1][0])


@contextmanager
def _serve(
    bench: Bench, library: Path, placement: Placement, log: Path
) -> Iterator[tuple[process.Process, str, float]]:
    plain = placement.model_copy(update={"hot_k": 0, "stream_from": 0})
    shape, port = bench.model.shape, free_port()
    where = {"shape": shape, "gpu": bench.gpu, "ceiling_mib": bench.ceiling_mib}
    command = arguments.server_argv(bench.engine, bench.model.path, plain, port=port, **where)
    added = arguments.server_env(bench.engine, plain, stats_path=log.with_suffix(".json"), **where)
    added |= SETTINGS | {"GGML_BACKEND_PATH": str(library), "HOT_K": str(placement.hot_k)}
    started = time.monotonic()
    child = process.start(command, env=arguments.child_environment(added), log_path=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_healthy(url):
            if not child.alive() or time.monotonic() - started > LOAD_LIMIT_S:
                raise OSError(
                    f"llama-server did not come up: {loadlog.tail(log.read_text(errors='replace'), 3)}"
                )
            time.sleep(0.1)
        yield child, url, time.monotonic() - started
    finally:
        child.stop()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
