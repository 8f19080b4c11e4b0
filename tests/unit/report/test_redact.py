import json
import shlex
from pathlib import Path

import pytest
import report_builder as build

from hottune.report import Format, load, render, render_bytes, save
from hottune.report.private_text import Cleaner, Identity, mask
from hottune.report.redact import redact
from hottune.report.schema import Report

ME = Identity(user="marlene", home="/home/marlene", hosts=("kraken.example.org",))


def clean(text: str, identity: Identity = ME, **options) -> str:
    return Cleaner(identity, literals={}, keep=()).text(text, **options)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("open /home/marlene/models/big.gguf failed", "open big.gguf failed"),
        ("open '/mnt/nas/x/big.gguf'", "open 'big.gguf'"),
        ("~/models/big.gguf and ../private/a.gguf", "big.gguf and a.gguf"),
        (r"C:\Users\marlene\big.gguf", "big.gguf"),
        ("-I/opt/secret/include", "-Iinclude"),
        ("in /home/marlene", "in ~"),
        ("on kraken: marlene's", "on REDACTED-HOST: REDACTED-USER's"),
        ("run Marlene-3", "run REDACTED-USER-3"),
        ("db.example.org", "db.REDACTED-HOST"),
        ("on kraken.uni.example.org.", "on REDACTED-HOST."),
        ("gpu-box.lan said no", "REDACTED-HOST said no"),
        ("peer 192.168.1.20:8080", "peer REDACTED-IP:8080"),
        ("peer fe80::1ff:fe23:4567:890a up", "peer REDACTED-IP up"),
        ("00:1b:44:11:3a:b7 and 00-1B-44-11-3A-B7", "REDACTED-MAC and REDACTED-MAC"),
        ("GPU-5a1b2c3d-0000-1111-2222-333344445555", "REDACTED-UUID"),
        ("Serial Number: 1324021055", "Serial Number: REDACTED-SERIAL"),
        ("mail m.k+x@example.org", "mail REDACTED-EMAIL"),
        ("hf_abcdefghijklmnopqrstuvwxyzabcdefgh", "REDACTED-TOKEN"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer REDACTED-TOKEN"),
        ("api_key=qwertyuiop&x", "api_key=REDACTED-TOKEN&x"),
        ("postgresql://a:pw@db.example.org/x", "postgresql://REDACTED-URL"),
        ("https://tok@github.com/o/r.git?token=q", "https://github.com/o/r.git"),
        ("sqlite:////srv/x/s.db", "sqlite:///s.db"),
        ("key 0123456789abcdef0123456789abcdef", "key REDACTED-SECRET"),
    ],
)
def test_what_is_private_is_replaced(text, wanted):
    assert clean(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "1172 in / 120 out tokens at 41.3 tok/s",
        "http://127.0.0.1:8080/health and 0.0.0.0",
        "driver 580.159.04, g++ (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0",
        "at 12:30:45 in ggml::backend",
        "POST /completion failed",
        r"blk\.35\.ffn_(gate|up|gate_up|down).*=CPU",
        "the first token: 300 tokens: 12",
        "Qwen3-235B-A22B-Instruct-2507-UD-Q4_K_XL-00001-of-00003.gguf",
        "owner/repo:Q4_K_M",
    ],
)
def test_what_is_not_private_stays(text):
    assert clean(text) == text


def test_a_hash_stays_where_hashes_are():
    assert clean("a" * 64, hashes=True) == "a" * 64


def test_a_short_name_is_replaced_as_a_word_alone():
    assert clean("al and also", Identity(user="al")) == "REDACTED-USER and also"


def test_a_common_name_is_not_looked_for_and_said_so():
    redaction = redact(build.report(), Identity(user="root", home="/root"))
    assert redaction.unreplaced == ("root",)


def test_an_example_shows_at_most_a_quarter():
    assert mask("hf_abcdefghijklmnop") == "hf_a… (19 characters)"
    assert mask("bob") == "… (3 characters)"


def changed(**fields) -> Report:
    """The example report with other values in some top-level fields."""
    return Report.model_validate(build.report().model_dump() | fields)


def test_the_other_machine_of_a_result_gives_its_user_away_and_it_is_replaced():
    report = changed(study="runs-of-josefine", command="hottune run /home/josefine/x.gguf")
    redacted = redact(report, ME).report
    assert redacted.command == "hottune run x.gguf"
    assert redacted.study == "runs-of-REDACTED-USER"


def test_a_study_has_a_short_user_name_inside_of_a_word_removed_wherever_it_is_named():
    report = changed(study="bobsrun", command="hottune run demo --study bobsrun")
    redacted = redact(report, Identity(user="bob")).report
    assert redacted.study == "REDACTED-USERsrun"
    assert redacted.command == "hottune run demo --study REDACTED-USERsrun"


def test_a_command_can_still_be_pasted():
    line = (
        "GGML_HOT_K=22 LD_PRELOAD=/home/marlene/x.so '/opt/my tools/llama-server' "
        "-m '/home/marlene/my models/big one.gguf' --api-key hush --host 127.0.0.1 --port 8080"
    )
    redacted = redact(changed(command=line), ME).report
    assert shlex.split(redacted.command) == [
        *("GGML_HOT_K=22", "LD_PRELOAD=REDACTED-VALUE", "llama-server", "-m", "big one.gguf"),
        *("--api-key", "REDACTED-TOKEN", "--host", "127.0.0.1", "--port", "8080"),
    ]


def test_workers_are_numbered_and_log_tails_are_dropped():
    data = json.loads(build.report().model_dump_json())
    for trial in data["trials"]:
        trial["worker"] = "octopus-gpu0"
    data["warnings"][0]["text"] = "Ask octopus."
    redaction = redact(Report.model_validate_json(json.dumps(data)), ME)
    assert redaction.report.warnings[0].text == "Ask REDACTED-HOST."
    assert {trial.worker for trial in redaction.report.trials} == {"worker-1"}
    assert '"log_tail":["' not in redaction.report.model_dump_json()


def test_the_result_loads_renders_and_says_what_was_done(tmp_path: Path):
    redacted = redact(build.report(), ME).report
    save(redacted, tmp_path)
    again = load(tmp_path / "big-5gib.json")
    assert again == redacted
    for form in Format:
        assert render_bytes(again, form)
    assert "put your own folder before it" in render(again, Format.MARKDOWN_LONG)
    assert "folders were removed before this was shared" in render(again, Format.MARKDOWN)


def test_twice_is_once():
    once = redact(build.report(), ME).report
    twice = redact(once, ME)
    assert twice.report == once
    assert twice.replaced == ()
    assert twice.changed == {}


@pytest.mark.parametrize(
    "user", ["hot", "faster", "fit", "cuda", "stan", "load", "lama", "mark", "48", "al", "a"]
)
def test_an_unlucky_account_name_spoils_neither_report_nor_options(user):
    before = build.report()
    redacted = redact(before, Identity(user=user, home=f"/home/{user}")).report
    assert [arm.name for arm in redacted.arms] == [arm.name for arm in before.arms]
    assert [arm.versus_turn for arm in redacted.arms] == [arm.versus_turn for arm in before.arms]
    for old, new in zip(before.arms, redacted.arms, strict=True):
        assert new.argv[1:2] + new.argv[3:] == old.argv[1:2] + old.argv[3:]
        assert new.argv[2] == "big model.gguf"


def test_variables_of_ours_keep_their_names():
    line = "GGML_HOT_INTERVAL=60 llama-server -m x.gguf"
    assert redact(changed(command=line), Identity(user="inter")).report.command == line


def test_the_value_of_a_foreign_variable_is_replaced_wherever_it_stands():
    report = build.report()
    arm = report.arms[0].model_copy(
        update={"env": {"MY_PASS": "correct-horse", "SHORT": "on"}, "detail": "login correct-horse, on"}
    )
    cleaned = redact(report.model_copy(update={"arms": [arm, *report.arms[1:]]}), ME).report
    assert cleaned.arms[0].env == {"MY_PASS": "REDACTED-VALUE", "SHORT": "REDACTED-VALUE"}
    assert cleaned.arms[0].detail == "login REDACTED-VALUE, on"
