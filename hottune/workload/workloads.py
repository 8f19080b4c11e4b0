"""The named workloads: which texts, how many tokens in and out, which requests only warm up.

Prompts are sent as plain text, without a chat template, so that the prompt has the same number of tokens
with every model. Each request of a workload has a text of its own, or with many requests a part of one
that no other request has: nothing that is measured is a prompt that the server, or the hot-expert cache, has
just seen.
"""

from __future__ import annotations

import hashlib
import json

from hottune.errors import BadSettingError
from hottune.workload.facts import Request, Workload
from hottune.workload.texts import text_sha256

OUTPUT_TOKENS = 300
MIN_TOKENS = 16

#: Tokens in, for each text. Every text is longer than that with every tokenizer we know of (see the tests).
PROMPT_TOKENS: dict[str, dict[str, int]] = {
    "chat": {"chat-bread": 128, "chat-garden": 160, "chat-ledger": 192, "chat-travel": 224},
    "document": {"bridges": 2930, "lighthouses": 2930, "clocks": 2930},
    "code": {"code-cpp": 1000, "code-python": 1000, "code-rust": 1000},
}

#: Whose texts many requests of a kind are taken from: questions are too short, so more prose follows.
SOURCES: dict[str, tuple[str, ...]] = {
    "chat": ("chat", "document"),
    "document": ("document",),
    "code": ("code",),
}
#: Waves of parallel requests: one to warm up, two to measure.
WAVES = 3

#: Kinds of the requests, in order; the first one warms up (a document does, in a mix: it has every batch
#: size in it) and counts in no mean.
RECIPES: dict[str, tuple[str, ...]] = {
    "chat": ("chat", "chat", "chat", "chat"),
    "document": ("document", "document", "document"),
    "code": ("code", "code", "code"),
    "mixed": ("document", "chat", "document", "code"),
}


def names() -> list[str]:
    """Return the names that `load_workload` knows."""
    return list(RECIPES)


def load_workload(name: str, *, scale: float = 1.0, seed: int = 0, parallel: int = 1) -> Workload:
    """Return a workload.

    Args:
        name: chat, document, code or mixed.
        scale: shrinks prompt and output lengths (to no less than 16 tokens) for slow or hurried machines.
        seed: which text comes first (so which one warms up); also the sampling seed of every request.
        parallel: requests in flight at once; with more than one, the first wave warms up.

    Raises:
        BadSettingError: no such workload, a scale outside ]0, 1], or too little text for so many requests.
    """
    if name not in RECIPES:
        raise BadSettingError(f"There is no workload '{name}'.", next_step=f"Known: {', '.join(RECIPES)}.")
    if not 0 < scale <= 1:
        raise BadSettingError(
            f"A workload cannot be scaled by {scale}.", "Texts are not repeated to make them longer."
        )
    if parallel > 1:
        kinds = [RECIPES[name][index % len(RECIPES[name])] for index in range(WAVES * parallel)]
        requests = _parts(name, kinds, scale, seed)
        return make_workload(name, requests, warmup_requests=parallel, seed=seed, parallel=parallel)
    requests = []
    for kind in RECIPES[name]:
        texts = list(PROMPT_TOKENS[kind])
        n_before = sum(1 for request in requests if request.kind == kind)
        text = texts[(seed + n_before) % len(texts)]
        requests.append(
            Request(
                text=text,
                kind=kind,
                prompt_tokens=_scaled(PROMPT_TOKENS[kind][text], scale),
                output_tokens=_scaled(OUTPUT_TOKENS, scale),
            )
        )
    return make_workload(name, requests, seed=seed)


def _parts(name: str, kinds: list[str], scale: float, seed: int) -> list[Request]:
    """Return a request of each kind, in order, each with a part of a text that no other request has."""
    sizes = {text: tokens for texts in PROMPT_TOKENS.values() for text, tokens in texts.items()}
    used = dict.fromkeys(sizes, 0)
    requests: list[Request] = []
    for index, kind in enumerate(kinds):
        number = seed + kinds[:index].count(kind)
        own = list(PROMPT_TOKENS[kind])
        prompt_tokens = _scaled(PROMPT_TOKENS[kind][own[number % len(own)]], scale)
        texts = [text for source in SOURCES[kind] for text in PROMPT_TOKENS[source]]
        turned = [texts[(number + step) % len(texts)] for step in range(len(texts))]
        text = next((one for one in turned if used[one] + prompt_tokens <= sizes[one]), None)
        if text is None:
            raise BadSettingError(
                f"There is not text enough for {len(kinds)} requests of the workload '{name}'.",
                "Each request has a text of its own: repetition would flatter a cache.",
                "Use fewer --parallel requests or a smaller --scale.",
            )
        requests.append(
            Request(
                text=text,
                kind=kind,
                prompt_tokens=prompt_tokens,
                output_tokens=_scaled(OUTPUT_TOKENS, scale),
                offset_tokens=used[text],
            )
        )
        used[text] += prompt_tokens
    return requests


def make_workload(
    name: str, requests: list[Request], *, warmup_requests: int = 1, seed: int = 0, parallel: int = 1
) -> Workload:
    """Return a workload of any requests, with the hash over its texts and lengths.

    Raises:
        BadSettingError: not at least one request remains after the warm-up, or a text is unknown.
        ChecksumError: a text is not the one that was shipped.
    """
    if not 0 <= warmup_requests < len(requests):
        raise BadSettingError(
            f"Workload '{name}' has {len(requests)} requests, {warmup_requests} to warm up."
        )
    content: list[object] = [name, warmup_requests, seed, *([parallel] if parallel > 1 else [])]
    for request in requests:
        lengths = [request.prompt_tokens, request.output_tokens]
        lengths += [request.offset_tokens] if request.offset_tokens else []
        content.append([text_sha256(request.text), *lengths])  # checks the shipped hash
    return Workload(
        name=name,
        requests=tuple(requests),
        parallel=parallel,
        warmup_requests=warmup_requests,
        seed=seed,
        sha256=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def context_needed(workload: Workload) -> int:
    """Return the smallest context, in tokens, in which every request can end.

    llama-server cuts an answer short when prompt and answer fill the context to its last token.
    """
    return max(request.prompt_tokens + request.output_tokens for request in workload.requests) + 1


def _scaled(n_tokens: int, scale: float) -> int:
    return min(n_tokens, max(MIN_TOKENS, round(n_tokens * scale)))
