"""The commands with which a reader repeats a study."""

from pathlib import Path

import pytest
import report_builder as build

from hottune.report.repeat import repeat


def of(command: str, argument: str = "demo", path: str = "/x/demo.gguf", **changes) -> list[str]:
    model = build.report().model.model_copy(update={"argument": argument, "path": Path(path)})
    return repeat(build.report(command=command, model=model, **changes))


def test_the_ceiling_is_said_where_the_command_did_not():
    assert of("hottune run demo --quick") == [
        "make setup",
        ".venv/bin/hottune run demo --quick --vram 5120MiB",
    ]
    assert of("hottune run demo --vram=4GiB")[-1] == ".venv/bin/hottune run demo --vram 4GiB"


def test_the_virtual_gpu_stays_virtual():
    report = build.virtual_report(command="hottune run demo --vram 9MiB")
    assert repeat(report)[-1].endswith("--vram 9MiB --backend cpu")


def test_what_belongs_to_the_first_machine_is_left_out():
    lines = of(
        "hottune run --reports /r demo --storage postgresql://me@host/x --worker w --vram 9 -q --json "
        "--trace /t/a.hottrace --llama-bin=/opt/llama --objective decode --recipe /home/me/own.toml"
    )
    assert lines[-1] == ".venv/bin/hottune run demo --vram 9 --objective decode"
    left = "\n".join(lines[1:-1])
    assert left.count("# left out") == 1
    for name in ("--trace a.hottrace", "--llama-bin llama", "--recipe own.toml"):
        assert name in left


def test_a_recipe_that_ships_and_a_study_called_like_the_model_stay():
    line = of("hottune run --study demo demo --vram 9 --recipe decode")[-1]
    assert line == ".venv/bin/hottune run demo --study demo --vram 9 --recipe decode"


def test_a_model_of_the_hub_is_downloaded_again():
    assert of("hottune run a/b:Q4_K_M --vram 9", "a/b:Q4_K_M", "/cache/b-Q4.gguf") == [
        "make setup",
        ".venv/bin/hottune run a/b:Q4_K_M --vram 9",
    ]


@pytest.mark.parametrize("argument", ["/models/big.gguf", "big.gguf"])
def test_a_file_is_told_by_size_and_fingerprint(argument):
    lines = of("hottune run ../models/big.gguf --vram 9", argument, "/models/big.gguf")
    assert lines[1].startswith("# big.gguf (15.8 GiB, fingerprint ffff")
    assert lines[2] == ".venv/bin/hottune run big.gguf --vram 9"


def inflated(**changes) -> list[str]:
    found = build.inflation().model_copy(update=changes)
    model = build.report().model.model_copy(
        update={"argument": "/m/big.gguf", "path": Path("/m/big.gguf"), "inflated": found}
    )
    return repeat(build.report(command="hottune run big.gguf --vram 9", model=model))


def test_an_inflated_model_is_made_again_by_its_own_options():
    options = ("--like", "owner/repo:Q4_K_M", "--layers", "3")
    assert inflated(options=options)[1] == (
        ".venv/bin/hottune models inflate demo big.gguf --like owner/repo:Q4_K_M --layers 3"
    )
    assert inflated(like="48 layers, 128 experts of 768, width 2048, Q8_0")[1] == (
        ".venv/bin/hottune models inflate demo big.gguf --layers 48 --experts 128 --ff 768 --embd 2048 "
        "--quant Q8_0 --used 8"
    )
    assert inflated()[1].startswith("# big.gguf is demo inflated to the shape of Big-30B-Q4_K_M")


def test_another_base_is_told_by_its_hash():
    lines = inflated(base="tiny", options=("--layers", "2"))
    assert lines[1] == f"# tiny.gguf has sha256 {'a' * 64}"
    assert lines[2] == ".venv/bin/hottune models inflate tiny.gguf big.gguf --layers 2"


def test_commands_of_the_projects_own_benchmarks_stay_as_they_are():
    assert of("python -m bench.device demo") == ["python -m bench.device demo"]
