"""A landscape that real servers measured answers with the nearest placement that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.search.modelled import OVERHEAD_MIB, modelled
from bench.search.recorded import Record, Recorded, Row, load
from hottune.placement import Placement


@pytest.fixture
def landscape(tmp_path: Path) -> Recorded:
    source = modelled()[0]
    rows = []
    for threads in (16, 8):
        for policy in ("lfru", "lru"):
            placement = source.space.hot(48, 2048, threads=threads, policy=policy)
            assert placement is not None
            rows.append(
                Row(
                    placement=placement,
                    prefill_tok_s=1000,
                    decode_tok_s=threads * (10 if policy == "lfru" else 9),
                    vram_mib=5000,
                    hit_rate=0.5,
                )
            )
    whole = source.space.layers(43, 2048, 16)
    rows.append(Row(placement=whole, prefill_tok_s=500, decode_tok_s=40, vram_mib=5000))
    record = Record(
        name="recorded",
        command="python -m bench.search.record",
        machine="none",
        shape=source.shape,
        ceiling_mib=source.ceiling_mib,
        overhead_mib=OVERHEAD_MIB,
        prompt_tokens=1000,
        output_tokens=101,
        requests=3,
        load_s=10,
        noise=0.03,
        rows=rows,
    )
    path = tmp_path / "one.json"
    path.write_text(record.model_dump_json())
    return load(path)


def asked(landscape: Recorded, **changes: object) -> Placement:
    return landscape.record.rows[0].placement.model_copy(update=changes)


def test_what_was_measured_answers_for_itself(landscape: Recorded) -> None:
    for row in landscape.record.rows:
        truth = landscape.truth(row.placement)
        assert truth is not None
        assert truth.decode_s == pytest.approx(100 / row.decode_tok_s)
        assert truth.prefill_s == pytest.approx(1000 / row.prefill_tok_s)


@pytest.mark.parametrize(
    ("changes", "decode_tok_s"),
    [({"threads": 9}, 80), ({"rebalance_interval": 200}, 160), ({"policy": "lru", "threads": 14}, 144)],
)
def test_what_was_not_measured_is_answered_by_the_nearest(
    landscape: Recorded, changes: dict[str, object], decode_tok_s: float
) -> None:
    truth = landscape.truth(asked(landscape, **changes))
    assert truth is not None
    assert truth.decode_s == pytest.approx(100 / decode_tok_s)


def test_a_placement_without_a_cache_is_answered_by_one_without(landscape: Recorded) -> None:
    truth = landscape.truth(landscape.space.layers(44, 2048, 8))
    assert truth is not None
    assert truth.decode_s == pytest.approx(100 / 40)
    assert truth.hit_rate is None


def test_what_does_not_fit_and_fit_itself_have_no_answer(landscape: Recorded) -> None:
    assert landscape.truth(landscape.space.layers(0, 2048)) is None
    assert landscape.truth(landscape.space.fit(2048)) is None


def test_its_space_has_the_settings_that_were_measured(landscape: Recorded) -> None:
    assert landscape.space.threads == (16, 8)
    assert landscape.space.ubatches == (2048,)
    assert landscape.grid() == [row.placement for row in landscape.record.rows]
