"""The text of a benchmark: one request that warms up, then those that are measured."""

from __future__ import annotations

from hottune.workload.facts import Request, Workload
from hottune.workload.texts import long_text_name
from hottune.workload.workloads import load_workload, make_workload


def make_work(
    name: str,
    *,
    requests: int,
    scale: float = 1.0,
    prompt_tokens: int | None = None,
    output_tokens: int | None = None,
) -> Workload:
    """Return a workload of one warm-up and `requests` measured requests, each with a text of its own.

    Beyond what the named workload has, and for `prompt_tokens`, texts are long ones (`long_text_name`).

    Args:
        name: chat, document, code or mixed.
        requests: that are measured.
        scale: shrinks the named workload's lengths.
        prompt_tokens: length of every prompt instead of the workload's.
        output_tokens: length of every answer instead of the workload's.

    Raises:
        BadSettingError: no such workload, or a scale outside ]0, 1].
    """
    known = list(load_workload(name, scale=scale).requests)
    wanted: list[Request] = []
    for index in range(1 + requests):
        one = known[index % len(known)]
        n_tokens = prompt_tokens or one.prompt_tokens
        if prompt_tokens or index >= len(known):
            one = one.model_copy(update={"text": long_text_name(index, n_tokens), "prompt_tokens": n_tokens})
        wanted.append(one.model_copy(update={"output_tokens": output_tokens or one.output_tokens}))
    return make_workload(name, wanted)
