"""Hints move the beginning of the plan, as far as the present space can follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import CEILING_MIB, LAYERS, SimulatedMachine, base, need_mib, shape

from hottune.search.hints import NO_HINTS, Hints
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.space import DEFAULT_INTERVAL, Space, plan
from hottune.search.storage import sqlite_url
from hottune.search.structure import Known, Start, next_structured
from hottune.search.study import Budget, Study


def space() -> Space:
    return plan(shape(), base(), CEILING_MIB, ubatches=(256, 512), threads=(4, 1), need_mib=need_mib)


START = Start(512, 2)


def test_no_hints_change_nothing() -> None:
    assert NO_HINTS.applied(START, space()) == START
    assert NO_HINTS.hit_curve() is None


def test_every_hint_that_the_space_has_is_followed() -> None:
    hints = Hints(ubatch=256, threads=4, policy="window", interval=16, layer_share=0.5)
    assert hints.applied(START, space()) == Start(256, 4, "window", 16, 0.5)


def test_what_the_space_does_not_have_is_left_out() -> None:
    hints = Hints(ubatch=2048, threads=64, policy="static", interval=16)
    assert hints.applied(START, space()) == START
    assert Hints(policy="lru", interval=9).applied(START, space()).interval == DEFAULT_INTERVAL
    assert Hints(policy="lfru", interval=9999).applied(START, space()).interval == 512


def test_a_share_of_layers_without_room_for_a_cache_is_left_out() -> None:
    whole = space()
    full = next_structured(whole, Start(512, 2, layer_share=1.0), Known([]))
    assert full is not None
    assert full.placement.n_cpu_moe in (LAYERS, whole.mixed(1.0, 512))
    half = next_structured(whole, Start(512, 2, layer_share=0.5), Known([]))
    assert half is not None
    assert half.placement.n_cpu_moe == whole.mixed(0.5, 512)


def test_of_two_sources_the_first_counts_and_brings_its_own_interval() -> None:
    trace = Hints(policy="lru", curve=((0.0, 0.0), (1.0, 1.0)), origin=("trace",))
    study = Hints(threads=4, policy="lfru", interval=16, layer_share=0.25, origin=("study",))
    both = trace.over(study)
    assert (both.policy, both.interval, both.threads, both.layer_share) == ("lru", None, 4, 0.25)
    assert both.origin == ("trace", "study")
    curve = both.hit_curve()
    assert curve is not None
    assert curve(0.5) == pytest.approx(0.5)


def test_the_first_cache_that_is_measured_is_the_hinted_one(tmp_path: Path) -> None:
    machine = SimulatedMachine()
    journal = Journal("test", sqlite_url(tmp_path / "t.db"), Objective.TURN)
    hints = Hints(ubatch=256, threads=1, policy="window", interval=32, layer_share=0.25)
    study = Study(journal, space(), machine, hints=hints)
    study.baselines()
    study.search(Budget(trials=1))
    (first,) = (trial.placement for trial in study.searched())
    assert (first.ubatch, first.threads, first.policy, first.rebalance_interval) == (256, 1, "window", 32)
    assert first.n_cpu_moe == study.space().mixed(0.25, 256)
