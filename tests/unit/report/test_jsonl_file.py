import io
import json
import statistics

import pandas as pd
import pytest
import report_builder as build

from hottune.report import Format, render
from hottune.report.jsonl_file import rows


def frame(report) -> pd.DataFrame:
    return pd.read_json(io.StringIO(render(report, Format.JSONL)), lines=True)


def test_pandas_reads_a_row_for_each_arm_and_test():
    found = frame(build.report())
    assert list(found.hottune_arm) == ["all-cpu", "all-cpu", "layers", "layers", "hot", "hot"]
    assert list(found.n_prompt[:2]) == [2930, 0]
    assert list(found.n_gen[:2]) == [0, 299], "the first token comes out of the prompt's last batch"
    assert list(found.n_depth[:2]) == [0, 2930]
    assert set(found.build_number) == {11434}


def test_an_arm_that_was_not_measured_has_no_row():
    assert frame(build.report()).query("hottune_arm == 'fit'").empty
    assert render(build.report(arms=[build.out_of_memory_arm()], winner=None), Format.JSONL) == ""


def test_a_sample_is_a_replicate_and_the_sums_are_those_of_its_warm_requests():
    def run(*prefill_ms: float):
        warm = [build.sample().model_copy(update={"prefill_ms": ms}) for ms in prefill_ms]
        cold = build.sample().model_copy(update={"prefill_ms": 1.0, "warmup": True})
        return build.measurement(requests=[cold, *warm])

    arm = build.arm("layers", build.placement(), [run(500.0, 1500.0), run(2000.0, 2000.0)])
    prompt = rows(build.report(arms=[arm]))[0]
    speeds = [2930 * 2 / 2.0, 2930 * 2 / 4.0]
    assert prompt["samples_ts"] == pytest.approx(speeds)
    assert prompt["samples_ns"] == [1_000_000_000, 2_000_000_000]
    assert prompt["avg_ts"] == pytest.approx(statistics.fmean(speeds))
    assert prompt["stddev_ts"] == pytest.approx(statistics.stdev(speeds))
    assert (prompt["avg_ns"], prompt["stddev_ns"]) == (1_500_000_000, 707_106_781)


def test_lengths_that_differ_have_rows_of_their_own():
    short = build.sample().model_copy(update={"prompt_tokens": 16, "output_tokens": 5})
    arm = build.arm("layers", build.placement(), [build.measurement(requests=[build.sample(), short])])
    tests = [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows(build.report(arms=[arm]))]
    assert tests == [(16, 0, 0), (2930, 0, 0), (0, 4, 16), (0, 299, 2930)]


def test_requests_at_once_are_the_servers_own_speeds():
    arm = build.arm("layers", build.placement(parallel=4), [build.measurement(prefill=4700.0, decode=55.0)])
    assert [row["avg_ts"] for row in rows(build.report(arms=[arm]))] == [4700.0, 55.0]


def test_a_line_is_one_line_whatever_a_name_holds():
    model = build.report().model.model_copy(update={"path": "a\nb.gguf"})
    lines = render(build.report(model=model), Format.JSONL).splitlines()
    assert {json.loads(line)["model_filename"] for line in lines} == {"a\nb.gguf"}
