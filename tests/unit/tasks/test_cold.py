"""The first request's numbers, apart from those of later ones."""

from __future__ import annotations

from datetime import UTC, datetime

import planned
import pytest

from hottune.placement import Placement
from hottune.report.schema import Arm, Replicate
from hottune.tasks.cold import with_cold_start

PLACEMENT = Placement(n_cpu_moe=8, threads=1)


def arm(*gaps_of_servers: list[float] | None) -> Arm:
    """Each server: gaps of its warm-up answer (None: it had none), then a warm request of 1 s."""
    replicates = []
    for gaps in gaps_of_servers:
        one = planned.measured(PLACEMENT, 1.0)
        if gaps is not None:
            cold = one.requests[0].model_copy(
                update={
                    "warmup": True,
                    "token_ms": gaps,
                    "output_tokens": len(gaps) + 1,
                    "decode_ms": sum(gaps),
                    "turn_s": 3.0,
                }
            )
            one = one.model_copy(update={"requests": [cold, *one.requests]})
        replicates.append(Replicate(position=0, started=datetime.now(UTC), outcome=one))
    return Arm(name="hot", placement=PLACEMENT, argv=[], env={}, outcome="measurement", replicates=replicates)


def test_the_first_hundred_tokens_are_told_apart_from_the_rest() -> None:
    row = with_cold_start(arm([20.0] * 100 + [10.0] * 100))
    assert row.cold_turn_s == 3.0
    assert row.cold_decode_tok_s == pytest.approx(200 / 3)
    assert row.cold_first_100_tok_s == pytest.approx(50)
    assert row.cold_later_tok_s == pytest.approx(100)


def test_servers_are_averaged() -> None:
    row = with_cold_start(arm([10.0] * 150, [20.0] * 150))
    assert row.cold_decode_tok_s == pytest.approx(75)
    assert row.cold_first_100_tok_s == pytest.approx(200 / 3)


def test_a_short_answer_has_no_rest_to_compare_with() -> None:
    row = with_cold_start(arm([10.0] * 100))
    assert row.cold_decode_tok_s == pytest.approx(100)
    assert (row.cold_first_100_tok_s, row.cold_later_tok_s) == (None, None)


def test_without_a_warm_up_request_there_is_no_cold_start() -> None:
    assert with_cold_start(arm(None)).cold_turn_s is None
