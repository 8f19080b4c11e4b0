"""What reports say of other engines, and that it can be shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_builder as build

from hottune.engine.facts import Backend, OtherEngine
from hottune.outcomes import NotEngaged
from hottune.report import Format, beside, load, render, save, setup, wording
from hottune.report.private_text import Identity
from hottune.report.redact import redact
from hottune.report.schema import Arm, Report

ME = Identity(user="marlene", home="/home/marlene", hosts=("kraken.example.org",))
COMMIT = "8337e4cd3861406fc04e0854b1409cd1b027fbc9"
NAME = "ik_llama"


def engine(**changes: object) -> OtherEngine:
    facts = {
        "name": NAME,
        "git": "https://github.com/ikawrakow/ik_llama.cpp",
        "ref": COMMIT,
        "commit": COMMIT,
        "license": "MIT",
        "backend": Backend.CUDA,
        "llama_server": Path("/home/marlene/.cache/hottune/builds/ik/build/bin/llama-server"),
        "label": "commit 8337e4cd",
        "options": ("GGML_CUDA=ON",),
        "compiler": "c++ 13.2.0",
        "key": "k2",
    }
    return OtherEngine.model_validate(facts | changes)


def arm(verdict: str = "slower", ratio: float = 0.9) -> Arm:
    runs = [build.measurement(4300 + d, 58.0, 6.0) for d in (-40, 0, 40)]
    against = {"decode": build.change(ratio, ratio - 0.02, ratio + 0.02, verdict)}
    where = build.placement(n_cpu_moe=31, engine=NAME)
    argv = ["/home/marlene/.cache/hottune/builds/ik/build/bin/llama-server", "-ncmoe", "31"]
    return build.arm(NAME, where, runs, argv=argv, versus_arm="layers", versus_winner=against)


def report(*, faster: bool = False, one: Arm | None = None, **changes: object) -> Report:
    arms = [build.all_cpu(), build.layers(), one or arm(), build.hot()]
    plain = build.report(arms=arms, other_engines=[engine(**changes)])
    assert plain.winner is not None
    won = plain.winner.model_copy(update={"faster_engines": [NAME] if faster else []})
    return plain.model_copy(update={"winner": won})


def test_an_engine_that_is_faster_is_said_to_be_in_the_answer_of_every_format() -> None:
    fast = report(faster=True, one=arm("faster", 1.2))
    said = "ik_llama, another engine, is faster here: against hot decode faster +20% ±2"
    assert wording.answer(fast).engines.startswith(said)
    for form in (Format.MARKDOWN, Format.HTML):
        assert "is faster here" in render(fast, form)
    assert "is faster here" in " ".join(render(fast, Format.TERMINAL).replace("│", " ").split())
    assert wording.answer(fast).what.startswith("Use this: hot")


def test_an_engine_that_is_slower_is_compared_and_not_praised() -> None:
    answer = wording.answer(report())
    assert answer.engines == "ik_llama, another engine, against hot: decode slower −10% ±2%."


def test_an_engine_that_was_not_measured_says_how_it_ended() -> None:
    why = NotEngaged(detail="it needs a real GPU")
    gone = build.failed_arm(NAME, build.placement(engine=NAME), why)
    found = report(one=gone, refused="it needs a real GPU", llama_server=None, commit="")
    assert "was not measured: not engaged" in wording.answer(found).engines
    assert any("needs a real GPU" in line for line in wording.failures(found))
    assert "not built: it needs a real GPU" in dict(setup.setup(found))[NAME]


def test_setup_and_proof_tell_what_it_is_and_that_it_was_engaged() -> None:
    found = report()
    assert f"at {COMMIT[:12]}; GGML_CUDA=ON" in dict(setup.setup(found))[NAME]
    assert any(line.startswith(f"{NAME}: every line that its engine file") for line in setup.proof(found))
    assert wording.best_baseline(found) == "layers"
    handed_in = dict(setup.setup(report(prebuilt=True)))[NAME]
    assert "handed in already built" in handed_in


def test_quality_says_that_an_engine_was_not_scored() -> None:
    scored = build.hot().model_copy(update={"kld_to_all_cpu": 0.01, "scored_positions": 64})
    found = report().model_copy(update={"arms": [build.all_cpu(), arm(), scored]})
    assert any(line.startswith("ik_llama: not scored") for line in beside.quality(found))
    assert beside.quality(report()) == [], "nothing was scored at all"


def test_the_result_file_keeps_it_and_other_placements_say_nothing_of_engines(tmp_path: Path) -> None:
    found = report()
    json_path = save(found, tmp_path)[0]
    assert load(json_path) == found
    assert '"engine"' not in build.placement().model_dump_json()
    assert f'"engine":"{NAME}"' in arm().placement.model_dump_json()


def test_shared_reports_keep_the_engine_and_its_commit_but_no_folder() -> None:
    done = redact(report(), ME).report
    text = done.model_dump_json()
    assert "marlene" not in text
    assert "/.cache" not in text
    other = done.other_engines[0]
    assert (other.name, other.commit, other.ref) == (NAME, COMMIT, COMMIT)
    assert other.git == "https://github.com/ikawrakow/ik_llama.cpp"
    assert other.llama_server == Path("llama-server")


@pytest.mark.parametrize("form", [Format.CSV, Format.MARKDOWN, Format.HTML, Format.TERMINAL])
def test_every_format_has_the_arm(form: Format) -> None:
    assert NAME in render(report(), form)
