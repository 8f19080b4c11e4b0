"""Whatever is planted into whatever text of a report: once redacted, no format shows it."""

import json
import re
from typing import Any

import report_builder as build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from hottune.report import Format, picture, render, render_bytes
from hottune.report.private_text import Identity
from hottune.report.redact import redact
from hottune.report.schema import Report

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALNUM = LETTERS + LETTERS.upper() + "0123456789"
#: Texts that the schema takes only as they are: verdicts, kinds, names of arms, moments.
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT.*")
#: Between the text that was there and the secrets.
GAPS = [" ", ", ", "; ", "=", " (", "|", "\n", "\t", ' "', " '", "<", " [", "> "]


def closed_words(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {word for word in [*node.get("enum", ()), node.get("const")] if isinstance(word, str)}
        return own.union(*(closed_words(item) for item in node.values()))
    return set().union(*(closed_words(item) for item in node)) if isinstance(node, list) else set()


WORDS = closed_words(Report.model_json_schema())


def random_text(alphabet: str, least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most)


@st.composite
def secrets(draw) -> tuple[Identity, list[str], list[str]]:
    """Return who is meant, the texts to plant, and what of them must not be seen.

    Names begin with letters that the report's own words do not have, or they would be found in those.
    """
    user = "zq" + draw(random_text(LETTERS, 2, 8))
    host = "kx" + draw(random_text(LETTERS, 2, 8))
    folder = "vj" + draw(random_text(ALNUM, 3, 8))
    password = "qz" + draw(random_text(ALNUM, 4, 12))
    mac = ":".join(f"{byte:02x}" for byte in draw(st.binary(min_size=6, max_size=6)))
    addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
    address = str(draw(addresses.filter(lambda ip: not (ip.is_loopback or ip.is_unspecified))))
    token = draw(st.sampled_from(["hf_", "sk-", "ghp_", "glpat-"])) + draw(random_text(ALNUM, 20, 40))
    whole = [
        token,
        "AKIA" + draw(random_text(LETTERS.upper(), 16, 16)),
        mac,
        str(draw(st.uuids())),
        f"GPU-{draw(st.uuids())}",
        address,
        f"{user}.x@mail.{folder}.com",
    ]
    planted = [
        *whole,
        f"/home/{user}/{folder}/x.gguf",
        f"/mnt/{folder}/{user}/x.gguf",
        rf"C:\Users\{user}\{folder}\x.gguf",
        f"postgresql://{user}:{password}@{host}/x",
        f"Bearer {password}",
        f"password={password}",
        host,
        f"{host}.example.org",
        user,
        f"{user.upper()}-2",
    ]
    identity = Identity(user=user, home=f"/home/{user}", hosts=(f"{host}.example.org",))
    return identity, draw(st.permutations(planted)), [*whole, user, host, folder, password]


def planted(value: Any, tail: str, field: str = "") -> Any:
    """Return the JSON with a tail behind every free text, and in a new key of every free mapping."""
    if isinstance(value, dict):
        made = {key: planted(item, tail, key) for key, item in value.items()}
        if field == "env":
            made |= {f"X{tail}": f"1{tail}", "GGML_HOT_K": f"22{tail}", f"GGML_HOT_X{tail}": tail}
        if field in ("time_us", "throttled"):
            made[f"cold{tail}"] = 1.0
        return made
    if isinstance(value, list):
        made = [planted(item, tail, field) for item in value]
        return [*made, f"line{tail}"] if field in ("log_tail", "lines", "notes", "argv", "options") else made
    if isinstance(value, str) and value not in WORDS and not MOMENT.fullmatch(value):
        return value + tail
    return value


def shown(report: Report, form: Format) -> str:
    """Return everything that can be read in a format; of a picture, what is drawn and what its file says."""
    if form is not Format.PNG:
        return render(report, form, width=20_000)
    drawn = [item.get_text() for item in picture.figure(report).findobj(Text)]
    return " ".join(drawn).replace("\n", " ")


def unchanging(value: Any) -> Any:
    """Return the numbers, verdicts and other closed words of a report's JSON, each in its place."""
    if isinstance(value, dict):
        # Keys may change, their order does not.
        return [unchanging(item) for key, item in value.items() if key not in ("log_tail", "warnings")]
    if isinstance(value, list):
        return [unchanging(item) for item in value]
    return value if not isinstance(value, str) or value in WORDS or MOMENT.fullmatch(value) else "text"


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(secrets(), st.sampled_from(GAPS))
def test_no_planted_secret_is_in_any_format_and_no_number_changes(found, gap):
    identity, texts, hidden = found
    data = planted(json.loads(build.report().model_dump_json()), gap + gap.join(texts))
    report = Report.model_validate_json(json.dumps(data))
    redacted = redact(report, identity).report
    for form in Format:
        seen = shown(redacted, form).lower()
        assert [secret for secret in hidden if secret.lower() in seen] == [], form
    after = json.loads(redacted.model_dump_json())
    assert unchanging(after) == unchanging(json.loads(report.model_dump_json()))
    assert render(redacted, Format.CSV).count("\n") == render(report, Format.CSV).count("\n") or "\n" in gap


def test_the_secrets_would_be_seen_without_redaction():
    """The property above can fail: what is planted does show in every format."""
    data = planted(json.loads(build.report().model_dump_json()), " zqplanted")
    report = Report.model_validate_json(json.dumps(data))
    for form in Format:
        assert "zqplanted" in shown(report, form)


def test_a_picture_has_pixels_and_nothing_else():
    """What is drawn is looked at above; the file has no place for more: no text, no date, no name."""
    data = render_bytes(build.virtual_report(), Format.PNG)
    kinds, place = [], 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kinds.append(data[place + 4 : place + 8])
        place += 12 + length
    assert set(kinds) <= {b"IHDR", b"IDAT", b"IEND", b"pHYs"}
