"""The arms as `llama-bench -o jsonl` writes its tests: a line for each arm and length, prompt or generation.

Keys, their order and their types are those of llama-bench (`test::get_fields` in its source), so whatever
reads those reads these. What llama-bench has no word for has keys that begin with `hottune_`: llama.cpp's own
reader (scripts/compare-llama-bench.py) passes over keys that it does not know.

A sample is a fresh server: tokens of one length over the time they took in all its warm requests. A
generation follows its prompt, so its `n_depth` is the prompt's length, and `n_gen` the decode steps: the
first token comes out of the prompt's last batch.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from typing import Any

from hottune.outcomes import Measurement
from hottune.report.schema import Arm, Report
from hottune.report.wording import is_virtual, measurements

#: Prompt tokens, decode steps, depth: what one test of llama-bench is.
Test = tuple[int, int, int]


class JsonlRenderer:
    """Lines that llama-bench could have written."""

    def render(self, report: Report) -> str:
        """Return a JSON object a line; arms without a measurement have none."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(report))


def rows(report: Report) -> list[dict[str, Any]]:
    """Return one row for each arm and test."""
    return [
        _run(report) | _arm(arm) | _test(arm, test, samples) | _own(report, arm)
        for arm in report.arms
        for test, samples in _samples(arm).items()
    ]


def _samples(arm: Arm) -> dict[Test, list[float]]:
    """Return tokens a second by test, one for each replicate that is a measurement."""
    found: dict[Test, list[float]] = defaultdict(list)
    for run in measurements(arm):
        for test, speed in sorted(_speeds(run, arm.placement.parallel).items(), key=lambda item: item[0][1]):
            found[test].append(speed)
    return dict(sorted(found.items(), key=lambda item: (item[0][1] > 0, item[0])))


def _speeds(run: Measurement, parallel: int) -> dict[Test, float]:
    requests = [one for one in run.requests if not one.warmup] or run.requests
    if parallel > 1:  # speeds of requests that run at once do not add up: the server's own count
        n_prompt = round(statistics.fmean(one.prompt_tokens for one in requests))
        n_gen = round(statistics.fmean(one.output_tokens for one in requests)) - 1
        return {(n_prompt, 0, 0): run.prefill_tok_s, (0, n_gen, n_prompt): run.decode_tok_s}
    took: dict[Test, list[tuple[int, float]]] = defaultdict(list)
    for one in requests:
        steps = one.output_tokens - 1
        took[one.prompt_tokens, 0, 0].append((one.prompt_tokens, one.prefill_ms))
        took[0, steps, one.prompt_tokens].append((steps, one.decode_ms))
    return {
        test: 1000 * sum(count for count, _ in parts) / sum(ms for _, ms in parts)
        for test, parts in took.items()
        if sum(count for count, _ in parts) > 0 and sum(ms for _, ms in parts) > 0
    }


def _run(report: Report) -> dict[str, Any]:
    engine, model = report.engine, report.model
    number = re.search(r"\d+", engine.llama_build)
    return {
        "build_commit": engine.llama_build,
        "build_number": int(number[0]) if number else 0,
        "cpu_info": report.machine.cpu.name,
        "gpu_info": ", ".join(gpu.name for gpu in report.machine.gpus),
        "backends": engine.backend.value.upper(),
        "model_filename": str(model.path),
        "model_type": f"{model.shape.architecture} {model.shape.quant}",
        "model_size": model.size_bytes,
        "model_n_params": model.shape.n_params,
    }


def _arm(arm: Arm) -> dict[str, Any]:
    where = arm.placement
    return {
        "n_batch": where.batch,
        "n_ubatch": where.ubatch,
        "n_threads": where.threads,
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 50,
        "type_k": where.kv_type_k.value,
        "type_v": where.kv_type_v.value,
        "n_gpu_layers": -1 if where.fit else 99,
        "n_cpu_moe": where.n_cpu_moe,
        "split_mode": "layer",
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": -1,
        "devices": "auto",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": where.load_mode.value,
        "lazy_mode": "auto",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": "--no-repack" not in arm.argv,
        "fit_target": 0,
        "fit_min_ctx": 0,
    }


def _test(arm: Arm, test: Test, speeds: list[float]) -> dict[str, Any]:
    n_prompt, n_gen, depth = test
    began = min(one.started for one in arm.replicates)
    took_ns = [round((n_prompt + n_gen) * 1e9 / speed) for speed in speeds]
    several = len(speeds) > 1
    return {
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": depth,
        "test_time": f"{began:%Y-%m-%dT%H:%M:%SZ}",
        "avg_ns": round(statistics.fmean(took_ns)),
        "stddev_ns": round(statistics.stdev(took_ns)) if several else 0,
        "avg_ts": statistics.fmean(speeds),
        "stddev_ts": statistics.stdev(speeds) if several else 0.0,
        "samples_ns": took_ns,
        "samples_ts": speeds,
    }


def _own(report: Report, arm: Arm) -> dict[str, Any]:
    return {
        "hottune_study": report.study,
        "hottune_arm": arm.name,
        "hottune_placement": arm.placement.label(),
        "hottune_hot_k": arm.placement.hot_k,
        "hottune_virtual_gpu": is_virtual(report),
    }
