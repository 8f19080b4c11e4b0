"""The bound, against times worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.routing.bound import Bandwidths, LayerLoad, Measured, TokenLoad, fit, predict, token_load
from hottune.routing.replay import LayerReplay, ReplayResult, ReplaySettings

MACHINE = Bandwidths(cpu=50, hbm=1000, pcie_h2d=25, cpu_overlapped=40, pcie_overlapped=20)
MB = 1e6


def load(*misses: float, layers: int = 1, n_used: int = 2, uploaded: float = 0) -> TokenLoad:
    layer = LayerLoad(expert_bytes=5 * MB, n_used=n_used, misses=misses)
    return TokenLoad(dense_bytes=1000 * MB, layers=(layer,) * layers, uploaded_bytes=uploaded)


def test_dense_weights_and_kv_pass_the_gpu_once() -> None:
    token = TokenLoad(dense_bytes=1000 * MB, kv_bytes=500 * MB, layers=())
    assert predict(token, MACHINE).total_ms == pytest.approx(1.5)


def test_a_layer_in_vram_costs_its_bytes_and_no_hand_over() -> None:
    machine = MACHINE.model_copy(update={"t_sync_us": 100, "t_cpu_fixed_us": 100})
    assert predict(load(), machine).total_ms == pytest.approx(1 + 2 * 0.005)


def test_the_slower_side_of_a_layer_counts() -> None:
    assert predict(load(1, 0, 0), MACHINE).experts_ms == pytest.approx(2 * 0.005)
    assert predict(load(0, 1, 0), MACHINE).experts_ms == pytest.approx(0.1)
    assert predict(load(0, 0, 1), MACHINE).experts_ms == pytest.approx(0.2)


def test_the_mean_is_taken_outside_the_maximum() -> None:
    even = LayerLoad(expert_bytes=5 * MB, n_used=40, misses=(1, 0, 0, 0, 1))
    mean = LayerLoad(expert_bytes=5 * MB, n_used=40, misses=(0, 0, 1))
    spread, narrow = (
        predict(TokenLoad(dense_bytes=0, layers=(layer,)), MACHINE).experts_ms for layer in (even, mean)
    )
    assert spread == pytest.approx((40 * 0.005 + 0.4) / 2)
    assert narrow == pytest.approx(0.2)
    assert spread > narrow


def test_fixed_times_come_once_a_token_once_a_layer_and_once_a_layer_with_misses() -> None:
    machine = MACHINE.model_copy(update={"t_sync_us": 10, "t_cpu_fixed_us": 20, "t_token_fixed_us": 300})
    said = predict(load(1, 3, 0, layers=4), machine)
    assert said.fixed_ms == pytest.approx(0.3)
    assert said.sync_ms == pytest.approx(0.04)
    assert said.experts_ms == pytest.approx(4 * (0.25 * 0.01 + 0.75 * 0.12))
    assert said.total_ms == pytest.approx(1 + 0.3 + 0.04 + said.experts_ms)
    assert said.tokens_per_second == pytest.approx(1000 / said.total_ms)


def test_uploads_slow_the_cpu_for_the_share_of_time_that_they_take() -> None:
    said = predict(load(0, 0, 1, layers=10, uploaded=20 * MB), MACHINE)  # 1 ms of uploads in about 3 ms
    assert said.pcie_share == pytest.approx(1 / said.total_ms, rel=1e-6)
    slowed = (1 - said.pcie_share) / 50 + said.pcie_share / 40
    assert said.experts_ms == pytest.approx(10 * 10 * MB * slowed / 1e6)


def test_more_uploads_than_pcie_can_take_saturate_it() -> None:
    said = predict(load(0, 0, 1, uploaded=1e12), MACHINE)
    assert (said.pcie_share, said.cpu_gbps) == (1, pytest.approx(40))


@given(misses=st.lists(st.floats(0, 10), min_size=3, max_size=3), uploaded=st.floats(0, 1e9))
def test_a_token_never_takes_less_than_with_every_expert_in_vram(
    misses: list[float], uploaded: float
) -> None:
    in_vram, cached = predict(load(), MACHINE), predict(load(*misses, uploaded=uploaded), MACHINE)
    assert cached.total_ms >= in_vram.total_ms * (1 - 1e-12)
    assert 0 <= cached.pcie_share <= 1


def test_a_replay_becomes_a_load() -> None:
    layer = LayerReplay(
        name="a",
        slots=2,
        hits=5,
        misses=3,
        cold_hits=0,
        cold_misses=0,
        uploads=2,
        evictions=0,
        uploaded_bytes=None,
        misses_of_tokens=(2, 1, 1),
    )
    result = ReplayResult(settings=ReplaySettings(slots=2), layers=(layer, layer))
    said = token_load(result, expert_bytes=[10, 20], dense_bytes=7)
    assert said.uploaded_bytes == (2 * 10 + 2 * 20) / 4
    assert [(one.expert_bytes, one.n_used, one.misses) for one in said.layers] == [
        (10, 2, (2, 1, 1)),
        (20, 2, (2, 1, 1)),
    ]


def test_a_fit_finds_the_constants_that_made_the_times() -> None:
    changes = {
        "t_sync_us": 40,
        "t_cpu_fixed_us": 15,
        "t_token_fixed_us": 900,
        "cpu": 30,
        "cpu_overlapped": 24,
    }
    truth = MACHINE.model_copy(update=changes)
    loads = [load(*misses, layers=n) for n in (8, 48) for misses in ((1, 0, 0), (1, 1, 1), (0, 0, 1), ())]
    points = [Measured(load=one, ms_per_token=predict(one, truth).total_ms) for one in loads]
    start = MACHINE.model_copy(update={"t_sync_us": 20, "t_cpu_fixed_us": 20, "t_token_fixed_us": 300})
    found = fit(points, start)
    assert max(map(abs, found.relative_errors)) < 0.02
    assert found.bandwidths.cpu == pytest.approx(30, rel=0.05)
    assert found.bandwidths.cpu_overlapped == pytest.approx(24, rel=0.05)
    assert found.bandwidths.t_sync_us == pytest.approx(40, rel=0.15)
    assert found.bandwidths.t_token_fixed_us == pytest.approx(900, rel=0.15)
    before = [abs(predict(one.load, start).total_ms / one.ms_per_token - 1) for one in points]
    assert max(before) > 0.2


def test_a_fit_keeps_what_nothing_was_measured_about() -> None:
    start = MACHINE.model_copy(update={"t_cpu_fixed_us": 17.0})
    points = [Measured(load=load(), ms_per_token=ms) for ms in (1.5, 1.5)]
    assert fit(points, start).bandwidths.t_cpu_fixed_us == pytest.approx(17)


def test_a_fit_of_one_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="two"):
        fit([Measured(load=load(), ms_per_token=1)], MACHINE)
