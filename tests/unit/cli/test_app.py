from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hottune
from hottune.cli import options
from hottune.cli.app import COMMANDS, app, load_command
from hottune.errors import BadSettingError

cli = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOTTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_help_names_every_command() -> None:
    ended = cli.invoke(app, ["--help"])
    assert ended.exit_code == 0
    assert all(name in ended.stdout for name in COMMANDS)


def test_help_imports_neither_optuna_nor_pandas_nor_the_engine() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from hottune.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = ('optuna', 'pandas', 'scipy', 'huggingface_hub', 'hottune.engine')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_imported_and_has_help(name: str) -> None:
    assert load_command(name).name == name
    ended = cli.invoke(app, [name, "--help"])
    assert ended.exit_code == 0
    assert "Usage" in ended.stdout


def test_the_version_is_shown() -> None:
    ended = cli.invoke(app, ["--version"])
    assert (ended.exit_code, ended.stdout.strip()) == (0, f"hottune {hottune.__version__}")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert cli.invoke(app, ["frobnicate"]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "nowhere.gguf"], 10),
        (["run", "demo", "--vram", "lots"], 42),
        (["run", "demo", "--time-budget", "soon"], 42),
        (["run", "demo", "--scale", "2"], 42),
        (["run", "nowhere.gguf", "--workload", "poem"], 42),
        (["bench", "nowhere.gguf", "--hot-k", "3"], 10),
        (["studies", "show", "nothing"], 51),
        (["studies", "resume", "nothing"], 51),
        (["studies", "dashboard", "nothing"], 51),
        (["report", "nothing"], 51),
        (["compare", "nothing", "http://127.0.0.1:1/v1"], 51),
        (["share", "nothing"], 51),
        (["serve", "nothing"], 51),
        (["serve", "nothing", "--storage", "sqlite:///nowhere/at/all.db"], 51),
        (["report", "http://127.0.0.1:1/v1"], 51),
        (["bench", "--endpoint", "http://127.0.0.1:1/v1"], 33),
        (["bench", "demo", "--engine", "nobody.toml"], 28),
        (["run", "demo", "--engine", "nobody"], 28),
        (["plan", "nowhere.gguf"], 10),
        (["models", "inspect", "nowhere.gguf"], 10),
        (["trace", "nowhere.gguf"], 10),
        (["replay", "nowhere.hottrace"], 70),
        (["build"], 20),
    ],
)
def test_bad_input_ends_with_its_code_before_anything_is_built(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no compiler: a build would fail with another code
    ended = cli.invoke(app, [*arguments, "--json"])
    assert ended.exit_code == code, ended.output
    assert json.loads(ended.stdout)["error"]["exit_code"] == code


def test_a_dry_run_of_the_demo_needs_no_engine_and_no_compiler(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ended = cli.invoke(app, ["run", "demo", "--backend", "cpu", "--dry-run", "--json"])
    assert ended.exit_code == 0, ended.output
    servers = json.loads(ended.stdout)["servers"]
    assert {one["arm"] for one in servers} == {"all-cpu", "layers", "fit", "hot"}
    assert all(one["argv"][0] == "llama-server" for one in servers), "the name it will have"
    assert list(folder.rglob("*.gguf")) == list(folder.rglob("*.db")) == []


def test_without_studies_the_list_is_empty() -> None:
    ended = cli.invoke(app, ["studies", "list", "--json"])
    assert ended.exit_code == 0
    assert json.loads(ended.stdout) == []


# --- options ---


@pytest.mark.parametrize(("text", "mib"), [("24GiB", 24576), ("512", 512), ("1.5GiB", 1536), ("100MiB", 100)])
def test_sizes_are_read_as_mib(text: str, mib: float) -> None:
    assert options.size_mib(text, "--vram") == mib


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_durations_are_read_as_seconds(text: str, seconds: float) -> None:
    assert options.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "1x", "one"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadSettingError, match="--time-budget"):
        options.seconds(text)


def test_a_value_out_of_range_names_the_option() -> None:
    with pytest.raises(BadSettingError, match="--threads"):
        options.run_config(model="demo", vram=None, threads=0)


def test_a_path_is_kept_absolute_so_that_a_study_resumes_from_anywhere(folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"")
    assert options.run_config(model="model.gguf", vram=None).model == str(folder / "model.gguf")
    assert options.run_config(model="owner/repo:Q4_K_M", vram=None).model == "owner/repo:Q4_K_M"


def test_a_password_never_gets_into_a_report() -> None:
    text = "hottune run demo --storage postgresql://me:secret@host/db"
    assert options.hide_passwords(text) == "hottune run demo --storage postgresql://me:***@host/db"


def test_several_kv_types_are_no_one_study() -> None:
    ended = cli.invoke(app, ["run", "demo", "--kv", "f16", "--kv", "q8_0", "--dry-run"])
    assert ended.exit_code == BadSettingError.exit_code
    assert "one KV type, not 2: f16, q8_0" in ended.output


def test_limits_and_kv_type_reach_the_configuration() -> None:
    config = options.run_config(
        model="demo", vram=None, keep_free="1GiB", min_prefill_tok_s=200.0, kv_type="q8_0"
    )
    assert (config.keep_free_mib, config.min_prefill_tok_s, config.kv_type) == (1024, 200, "q8_0")
    assert options.run_config(model="demo", vram=None, load_mode="auto").load_mode == "auto"
    with pytest.raises(BadSettingError, match="--keep-free"):
        options.run_config(model="demo", vram=None, keep_free="much")
