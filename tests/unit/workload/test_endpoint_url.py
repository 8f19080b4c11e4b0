"""Addresses of endpoints: completed, and shown without what nobody else may know."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.errors import BadSettingError
from hottune.workload.endpoint_url import is_url, kept_command, parse_url

SECRETS = st.text(st.characters(categories=("L", "N"), max_codepoint=127), min_size=6, max_size=20)


@pytest.mark.parametrize(
    ("given_url", "base", "loopback"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1", True),
        ("http://localhost:8080/v1/", "http://localhost:8080/v1", True),
        ("http://[::1]:8080", "http://[::1]:8080/v1", True),
        ("https://example.test/api/openai", "https://example.test/api/openai", False),
        ("http://10.0.0.3:80/v1/chat/completions", "http://10.0.0.3/v1", False),
    ],
)
def test_an_address_is_completed(given_url: str, base: str, loopback: bool) -> None:
    url = parse_url(given_url)
    assert (url.base, url.loopback) == (base, loopback)


@pytest.mark.parametrize("bad", ["http://", "ftp://h/v1", "h:8080", "http://h/v1?key=hidden", "http://h:x/"])
def test_what_is_no_address_is_refused_without_being_repeated(bad: str) -> None:
    with pytest.raises(BadSettingError) as caught:
        parse_url(bad)
    assert "hidden" not in str(caught.value)


@given(SECRETS, SECRETS, SECRETS)
def test_account_password_and_host_are_in_nothing_that_is_kept(user: str, word: str, host: str) -> None:
    text = f"https://zz{user}:zz{word}@zz{host}.test:8443/v1"
    url = parse_url(text)
    assert url.auth == (f"zz{user}", f"zz{word}")
    command = kept_command(
        ["hottune", "bench", "--endpoint", text, f"--out=/zz{user}/{word}/x y", "--scale", "0.5"]
    )
    for kept in (url.kept, command):
        assert "zz" not in kept
    assert "zz" not in url.shown.replace(f"zz{host}".lower(), "")
    assert command.endswith("/v1 '--out=x y' --scale 0.5")
    assert parse_url(shlex.split(command)[3]).base.endswith("/v1"), "it can be pasted again"
    assert "zz" not in url.hidden(f"{url.shown} broke; no certificate for {url.host}").lower()


def test_names_of_models_stay_in_the_command_and_folders_do_not() -> None:
    words = ["--model-name", "owner/model", "--label", "a b", "/home/me/x.gguf", "~/x.json", r"C:\me\y.gguf"]
    assert kept_command(words) == "--model-name owner/model --label 'a b' x.gguf x.json y.gguf"


def test_only_addresses_are_taken_for_endpoints() -> None:
    assert is_url("HTTP://h") and not is_url("study") and not is_url("reports/http.json")
