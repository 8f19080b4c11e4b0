"""How long `hottune report` takes on a large study, and how fast a browser opens the page.

    python -m bench.report_speed [--trials 2000]

Makes a study by formula, then starts `hottune report STUDY --format ...` for every format
in a folder that has nothing but the study, each in a process of its own. No server, no engine, no model.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import optuna

from bench import made_up
from bench.durability import landscape
from hottune import workflow
from hottune.outcomes import Measurement, Outcome, RequestSample
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report import Format
from hottune.search.entries import Planned, attributes_of
from hottune.search.storage import open_storage
from hottune.tasks.prepare import Plan

ROOT = Path(__file__).parents[2]
LIMIT_S, HTML_LIMIT_BYTES, OPEN_LIMIT_MS = 10.0, 6_000_000, 1000.0
#: What a real measurement keeps: requests, and tokens of each.
REQUESTS, TOKENS = 4, 200


def placements(plan: Plan) -> Iterator[Placement]:
    """Return different placements without end: caches of every size, rebalanced at every interval."""
    base = plan.space.all_cpu(plan.space.ubatches[0])
    most = landscape.SHAPE.n_experts // 3
    for number in count():
        yield base.model_copy(
            update={"hot_k": 1 + number % most, "rebalance_interval": 8 + number // most, "ubatch": 64}
        )


def measured(placement: Placement, turn_s: float) -> Measurement:
    """Return a measurement as large as a real one: every token of every request has its time."""
    small = landscape.measured(placement, turn_s, 400.0)
    requests = [
        RequestSample(
            workload="chat",
            warmup=number == 0,
            prompt_tokens=1000 + number,
            output_tokens=TOKENS,
            prefill_ms=300.0,
            decode_ms=1000 * turn_s,
            ttft_ms=310.0,
            turn_s=turn_s + 0.3,
            token_ms=[round(5 * turn_s + place % 7 / 10, 2) for place in range(TOKENS)],
            text_sha256="e" * 64,
        )
        for number in range(REQUESTS)
    ]
    hot = made_up.hot_stats(placement, 3000, 1000)
    if hot is not None:
        hot = hot.model_copy(update={"layer_hit_rate": [0.75] * placement.n_cpu_moe})
    engagement = small.engagement.model_copy(update={"hot": hot})
    return small.model_copy(update={"requests": requests, "engagement": engagement})


def make_study(folder: Path, n_trials: int) -> str:
    """Run a study by formula to its end, add slower trials until there are so many, and return its name."""
    plan = landscape.plan(folder, trials=10, study="large", warm_start=False)
    turn = landscape.measuring(plan.ceiling_mib, 0.0)

    def measure(placement: Placement) -> Outcome:
        found = turn(placement)
        return measured(placement, found.turn_s) if isinstance(found, Measurement) else found

    workflow.run_plan(plan, NoProgress(), lambda plan, meter: measure)
    with workflow.opened(plan) as (opened, journal):
        n_more = n_trials - len(journal.trials())
    storage = open_storage(journal.url)
    study = storage.get_study_id_from_name(journal.name)
    for number, placement in enumerate(islice(placements(opened), n_more)):
        # Slower than all that was confirmed, so what is recommended stays.
        outcome = measured(placement, 3.0 + number % 100 / 10)
        attributes = attributes_of(Planned(placement, "sampler"))
        attributes |= {"outcome": outcome.model_dump_json(), "seconds": 20.0, "worker": "formula"}
        done = optuna.trial.create_trial(value=outcome.turn_s, user_attrs=attributes)
        storage.create_new_trial(study, template_trial=done)
    return journal.name


def report(folder: Path, study: str, format: Format, out: Path) -> tuple[float, float]:
    """Render the study in a process of its own; return the seconds that it took, and those of the CPU."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOTTUNE_CACHE": str(folder / "no-cache")}
    argv = [sys.executable, "-m", "hottune.cli.app", "report", study, "--format", format.value]
    began, before = time.monotonic(), os.times()
    subprocess.run(
        [*argv, "--output", str(out)], cwd=folder, env=environment, check=True, capture_output=True
    )
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - began, cpu_s


def open_ms(page: Path) -> float | None:
    """Return the milliseconds until a browser has loaded the page; None without a browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return None
    script = (
        "<script>addEventListener('load', () => setTimeout(() => { const found = "
        "performance.getEntriesByType('navigation')[0]; "
        "document.body.dataset.took = found.loadEventEnd.toFixed(0); }, 0));</script>"
    )
    # The page's own policy allows inline scripts alone, which this is.
    timed = page.with_name("timed.html")
    timed.write_text(
        page.read_text(encoding="utf-8").replace("</main>", f"</main>{script}"), encoding="utf-8"
    )
    argv = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    argv += [f"--user-data-dir={page.parent / 'profile'}", "--timeout=20000", "--dump-dom", timed.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'data-took="(\d+)"', done.stdout)
    return float(found[1]) if found else None


def main() -> int:
    """Print a table; the exit status tells whether every goal was reached."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trials", type=int, default=2000)
    wanted = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        study = make_study(folder, wanted.trials)
        shutil.rmtree(folder / "reports", ignore_errors=True)
        size = (folder / "studies" / f"{study}.db").stat().st_size
        took_s = time.monotonic() - began
        print(f"Study of {wanted.trials} trials, {size / 1e6:.0f} MB, made in {took_s:.0f} s\n")
        print("| format | seconds | of CPU | MB |\n| --- | ---: | ---: | ---: |")
        good = True
        for format in Format:
            out = folder / f"out.{format.value}"
            took_s, cpu_s = report(folder, study, format, out)
            size = out.stat().st_size
            print(f"| {format.value} | {took_s:.1f} | {cpu_s:.1f} | {size / 1e6:.2f} |", flush=True)
            good &= took_s <= LIMIT_S
        page = (folder / "out.html").rename(folder / "page.html")
        good &= page.stat().st_size <= HTML_LIMIT_BYTES
        took_ms = open_ms(page)
        if took_ms is None:
            print("\nNo browser here: how fast the page opens was not measured.")
        else:
            print(f"\nA browser loads the page in {took_ms:.0f} ms.")
            good &= took_ms <= OPEN_LIMIT_MS
        said = "reached" if good else "MISSED"
        print(f"Goals ({LIMIT_S:.0f} s a format, HTML of 6 MB, opened in 1 s): {said}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
