"""Parameter importance: found where it was put, and not told where too little was tried."""

import random
import subprocess
import sys

import pytest
import report_builder as build
from test_html_page import Page, charts, drawn

from hottune.report import Format, render
from hottune.report.importance import LEAST_PLACEMENTS, importance
from hottune.report.schema import Report


def tried(*placements_and_turns, objective: str = "turn_s (document)") -> Report:
    runs = [
        build.trials()[0].model_copy(
            update={
                "number": number,
                "placement": build.placement(**{"hot_k": 20} | changes),
                "outcome": build.measurement(turn=turn, decode=100 / turn),
            }
        )
        for number, (changes, turn) in enumerate(placements_and_turns)
    ]
    return build.report(trials=runs, objective=objective)


def by_layers(n: int, **more) -> list[tuple[dict, float]]:
    """Placements whose turn follows the layers on the CPU; the interval changes and does nothing."""
    return [
        ({"n_cpu_moe": 10 + place, "rebalance_interval": 8 + 100 * (place * 7 % 5), **more}, 1.0 + place)
        for place in range(n)
    ]


@pytest.mark.parametrize("objective", ["turn_s (document)", "decode_tok_s (document)"])
def test_the_setting_that_decides_has_the_largest_share(objective):
    found = importance(tried(*by_layers(30), objective=objective))
    assert next(iter(found.shares)) == "layers on the CPU"
    assert found.shares["layers on the CPU"] > 0.6
    assert sum(found.shares.values()) == pytest.approx(1)
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)
    assert set(found.shares) == {"layers on the CPU", "interval"}
    assert set(found.constant) >= {"threads", "policy", "cached experts"}


def test_a_setting_with_few_values_far_apart_is_not_important_for_that():
    rows = [
        ({"n_cpu_moe": 10 + place, "rebalance_interval": (16, 60, 60, 60, 240)[place * 3 % 5]}, 1.0 + place)
        for place in range(25)
    ]
    assert importance(tried(*rows)).shares["interval"] < 0.1


def test_words_and_yes_or_no_count_as_settings():
    rows = [
        (
            {
                "policy": "lru" if place % 2 else "lfru",
                "shared_budget": bool(place % 3),
                "hot_k": 20 + place // 6,
            },
            1.0 if place % 2 else 9.0 + place,
        )
        for place in range(36)
    ]
    assert next(iter(importance(tried(*rows)).shares)) == "policy"


def test_it_is_the_same_each_time():
    assert importance(tried(*by_layers(12))) == importance(tried(*by_layers(12)))


def test_trials_of_one_placement_count_once():
    rows = by_layers(10)
    often = importance(tried(*rows, *[rows[0]] * 20))
    assert often.n_placements == 10
    assert often.shares == importance(tried(*rows)).shares


def test_too_few_placements_are_told_in_words():
    found = importance(tried(*by_layers(LEAST_PLACEMENTS - 1)))
    assert (found.shares, found.n_placements) == ({}, LEAST_PLACEMENTS - 1)
    text = Page(render(tried(*by_layers(LEAST_PLACEMENTS - 1)), Format.HTML)).text
    assert "No parameter importance: 7 placements with a cache were measured, and it takes 8." in text
    assert importance(tried(*by_layers(LEAST_PLACEMENTS))).why_not == ""


def test_baselines_and_failures_do_not_count():
    plain = importance(tried(*by_layers(20, hot_k=0)))
    assert (plain.n_placements, plain.shares) == (0, {})
    assert importance(build.report()).n_placements == 2


def test_settings_that_did_not_change_anything_are_told_in_words():
    alike = tried(*(({"n_cpu_moe": 10 + place}, 2.0) for place in range(12)))
    assert importance(alike).why_not == "all placements with a cache were equally good"
    others = tried(*(({"upload_mib": 10 + place}, 2.0 + place) for place in range(12)))
    assert importance(others).why_not == "all placements with a cache had the same settings"


def test_a_report_without_a_search_says_nothing_of_it():
    text = render(build.report(trials=[]), Format.HTML)
    assert "importance" not in Page(text).text


def test_the_chart_has_a_bar_for_each_setting_and_says_what_it_is():
    text = render(tried(*by_layers(16)), Format.HTML)
    svg = charts(text)["Parameter importance"]
    assert [item.text for item in svg.iter("text") if item.get("class") == "label"] == [
        "layers on the CPU",
        "interval",
    ]
    assert any(words.endswith("%") for words in drawn(svg))
    assert "best 25% of 16 placements" in Page(text).text
    assert "even the order is unsure" in Page(text).text
    assert "even the order is unsure" not in Page(render(tried(*by_layers(20)), Format.HTML)).text
    assert "proves no cause" in Page(text).text


def test_a_report_without_a_search_needs_no_optuna():
    code = (
        "import sys; sys.path.insert(0, 'tests/unit/report'); import report_builder as build\n"
        "from hottune.report import Format, render\n"
        "render(build.report(), Format.HTML); print('optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_among_many_settings_the_one_that_decides_comes_out_on_top():
    for seed in range(12):
        rng = random.Random(seed)
        rows = []
        for _ in range(24):
            layers = rng.randint(10, 48)
            settings = {
                "n_cpu_moe": layers,
                "hot_k": rng.randint(40, 90),
                "rebalance_interval": rng.choice([16, 60, 60, 60, 240]),
                "threads": rng.choice([15, 15, 15, 12]),
                "policy": rng.choice(["lfru", "lfru", "lru", "window"]),
                "ubatch": rng.choice([512, 2048, 2048]),
            }
            rows.append((settings, 1 + (layers - 30) ** 2 / 400 + rng.gauss(0, 0.05)))
        assert next(iter(importance(tried(*rows)).shares)) == "layers on the CPU"
