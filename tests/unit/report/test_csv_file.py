from io import StringIO

import pandas as pd
import report_builder as build

from hottune.report import Format, render


def frame(report) -> pd.DataFrame:
    return pd.read_csv(StringIO(render(report, Format.CSV)))


def test_one_row_an_arm_with_its_numbers_and_verdicts():
    rows = frame(build.report()).set_index("arm")
    assert list(rows.index) == ["all-cpu", "layers", "fit", "hot"]
    assert rows.loc["hot", "hot_k"] == 22
    assert rows.loc["hot", "decode_tok_s"] == 61.0
    assert rows.loc["hot", "versus_decode_verdict"] == "faster"
    assert rows.loc["hot", "versus_turn_verdict"] == "can't tell"
    assert list(rows.index[rows["winner"]]) == ["hot"]


def test_a_failed_arm_has_its_outcome_and_empty_numbers():
    rows = frame(build.report()).set_index("arm")
    assert rows.loc["fit", "outcome"] == "not_engaged"
    assert pd.isna(rows.loc["fit", "decode_tok_s"])
    assert rows.loc["fit", "measured"] == 0


def test_newlines_and_commas_in_a_detail_stay_in_their_field():
    report = build.report(arms=[build.out_of_memory_arm()], winner=None)
    assert frame(report).loc[0, "detail"] == "CUDA0 | buffer of 900 MiB\nfailed"


def test_virtual_gpu_is_a_column():
    assert frame(build.virtual_report())["virtual_gpu"].all()
