"""Texts cut to about the asked number of tokens for a server whose tokenizer is not here.

Where it has a `/tokenize` (llama-server, vLLM), a prompt has the asked length, give or take what its
beginning differs by. Else its usage tells how many characters it takes for a token, by a request with a
quarter of each text; then lengths are a few percent off. Speeds are by the tokens that the server counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from hottune.errors import BadSettingError
from hottune.workload.facts import Request
from hottune.workload.openai_access import Access, Refused
from hottune.workload.openai_client import Dialect, ask, fresh
from hottune.workload.texts import load_text

#: Of English prose, where nothing better is known.
_CHARACTERS_A_TOKEN = 4.0
_SLICES, _LEAST_SLICE = 4, 250  # of a text, evenly spread; characters
_TRIES = 8

Count = Callable[[str], int]


def tokenizer(access: Access, http: httpx.Client, model: str) -> Count | None:
    """Return what counts a text's tokens by the server's `/tokenize`; None where there is none."""

    def count(text: str) -> int | None:
        body = {"model": model, "content": text, "prompt": text, "add_special": True}
        try:
            answer = http.post(f"{access.url.root}/tokenize", json=body)
            tokens = answer.json().get("tokens") if answer.is_success else None
        except (httpx.HTTPError, ValueError, AttributeError):
            return None
        return len(tokens) if isinstance(tokens, list) else None

    # A server that answers everything with something is not taken for one that counts.
    few, more = count("bread"), count("bread " * 50)
    if few is None or more is None or not few < more:
        return None
    return lambda text: count(text) or 0


@dataclass
class Cutter:
    """Cuts the workload's texts for one endpoint; what was found out of a text is kept."""

    access: Access
    http: httpx.Client
    dialect: Dialect
    count: Count | None
    _rates: dict[str, float] = field(default_factory=dict)
    _overhead: int | None = None
    _template: int | None = None
    _cut: dict[Request, str] = field(default_factory=dict)

    def __call__(self, request: Request) -> str:
        """Return the part of a text that a request is about, without the beginning that makes it fresh.

        Raises:
            BadSettingError: the text is too short for this server's tokenizer.
            EndpointError: the server did not answer.
        """
        if request not in self._cut:
            self._cut[request] = self._made(request)
        return self._cut[request]

    def _made(self, request: Request) -> str:
        text = load_text(request.text)
        rate = self._rate(request, text)
        first = round(request.offset_tokens * rate)
        length = round((request.prompt_tokens - self._beginning()) * rate)
        for _ in range(_TRIES if self.count else 0):
            missing = request.prompt_tokens - self._counted(fresh(text[first : first + length]))
            if missing == 0 or first + length > len(text):
                break
            length += round(missing * rate) or missing
        if first + length > len(text):
            raise BadSettingError(
                f"The text '{request.text}' is too short for {request.prompt_tokens} tokens of this model.",
                "Texts are never repeated: repetition would flatter a cache.",
                "Use a smaller scale.",
            )
        return text[first : first + max(1, length)]

    def _rate(self, request: Request, text: str) -> float:
        """Return characters a token of a text, by slices of about what is sent."""
        name = request.text
        if name not in self._rates:
            sent = min(len(text), round(request.prompt_tokens * _CHARACTERS_A_TOKEN))
            size = max(_LEAST_SLICE, sent // _SLICES**2)
            part = "".join(text[at : at + size] for at in range(0, sent, max(1, -(-sent // _SLICES))))
            if self.count is None and not self.dialect.tells_usage:
                self._rates[name] = _CHARACTERS_A_TOKEN
            else:
                tokens = self._counted(fresh(part)) - self._beginning()
                self._rates[name] = len(part) / max(1, tokens)
        return self._rates[name]

    def _beginning(self) -> int:
        """Return the tokens that a prompt has beside its text: what makes it fresh, and a chat's template."""
        if self._overhead is None:
            known = self.count is not None or self.dialect.tells_usage
            self._overhead = self._counted(fresh("a")) - 1 if known else 8
        return self._overhead

    def _counted(self, prompt: str) -> int:
        if self.count is None:
            return self._told(prompt)
        if self._template is None:
            probe = fresh("a")
            chat = self.dialect.route != "completions" and self.dialect.tells_usage
            self._template = max(0, self._told(probe) - self.count(probe)) if chat else 0
        return self.count(prompt) + self._template

    def _told(self, prompt: str) -> int:
        """Return the tokens of a prompt by the server's usage."""
        try:
            return ask(self.access, self.http, self.dialect, prompt) or 0
        except Refused as refused:
            raise self.access.refusal(refused) from refused
