"""Measuring an OpenAI-compatible endpoint: who it is, what it takes, the passes, the warnings."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import httpx

import hottune
from hottune.errors import BadSettingError, EndpointError, HottuneError
from hottune.machine.probe import probe_machine
from hottune.progress import Progress
from hottune.report.endpoint import EndpointPass, EndpointResult
from hottune.report.private_text import base_name
from hottune.report.schema import WarningNote
from hottune.tasks.endpoint_notes import endpoint_notes
from hottune.workload.endpoint_facts import Route
from hottune.workload.endpoint_url import parse_url
from hottune.workload.facts import Workload
from hottune.workload.openai_access import Access
from hottune.workload.openai_client import drive_endpoint, settle
from hottune.workload.openai_prompts import Cutter, tokenizer
from hottune.workload.openai_summary import speeds

_ROUND_TRIPS = 7


@dataclass(frozen=True)
class Wanted:
    """What the user may say of an endpoint beside its address."""

    model: str | None = None
    route: Route | None = None
    label: str | None = None
    key_variable: str | None = None
    timeout_s: float = 600.0


class Interrupted(Exception):
    """A pass did not end; `result` has those before it, `error` says why (Ctrl-C: KeyboardInterrupt)."""

    def __init__(self, result: EndpointResult, error: HottuneError | KeyboardInterrupt) -> None:
        self.result, self.error = result, error
        super().__init__(str(error))


def access_to(url: str, wanted: Wanted) -> Access:
    """Return how to reach an endpoint.

    Raises:
        BadSettingError: the address is none, or the variable is not set.
    """
    key, key_variable = None, wanted.key_variable
    if key_variable is not None:
        if not re.fullmatch(r"[A-Za-z_]\w*", key_variable):
            raise BadSettingError(
                "--api-key-env takes the name of a variable, not the key itself.",
                next_step="Put the key into a variable, say OPENAI_API_KEY, and give that name.",
            )
        key = os.environ.get(key_variable)
        if not key:
            raise BadSettingError(
                f"--api-key-env: the variable {key_variable} is not set.",
                next_step=f"export {key_variable}=...",
            )
    return Access(parse_url(url), api_key=key, key_variable=key_variable or "", timeout_s=wanted.timeout_s)


def measure_endpoint(
    access: Access,
    workload: Workload,
    n_passes: int,
    wanted: Wanted,
    ui: Progress,
    *,
    command: str = "",
    before: Callable[[EndpointResult], None] | None = None,
) -> EndpointResult:
    """Send the workload to an endpoint, pass by pass.

    Args:
        access: to the endpoint.
        workload: what to send.
        n_passes: how often.
        wanted: model, route and label, where they are given.
        ui: where progress goes.
        command: how to repeat it, without account and host.
        before: is called with a result without passes, before the first one; what it raises ends it there.

    Raises:
        EndpointError: it cannot be measured.
        BadSettingError: it serves several models and none is named, or a text is too short.
        Interrupted: it failed, or Ctrl-C was pressed, after at least one pass.
    """
    access.say = ui.say
    with access.client() as http:
        ui.start("Endpoint", n_passes * len(workload.requests), "requests")
        models, told = _models(access, http)
        model = _chosen(models, wanted.model, access)
        server = told | _about(access, http)
        dialect = settle(access, http, model, wanted.route)
        count = tokenizer(access, http, model)
        cutter = Cutter(access, http, dialect, count)
        for one in workload.requests:
            cutter(one)
        base = EndpointResult(
            hottune_version=hottune.__version__,
            created=datetime.now(UTC),
            command=command,
            label=wanted.label or "-".join([*filter(None, [server.get("owned_by")]), base_name(model)]),
            url=access.url.kept,
            loopback=access.url.loopback,
            machine=probe_machine() if access.url.loopback else None,
            model=base_name(model) if model.startswith(("/", "~", ".")) or "\\" in model else model,
            server=server,
            route=dialect.route,
            fields=list(dialect.fields),
            prompts="exact" if count else "estimated" if dialect.tells_usage else "guessed",
            round_trip_ms=_round_trip_ms(access, http),
            workload=workload,
            passes=[],
        )
        if before:
            before(base)
        passes: list[EndpointPass] = []
        try:
            for number in range(n_passes):
                passes.append(_pass(access, workload, cutter, ui, number, n_passes))
        except (EndpointError, KeyboardInterrupt) as error:
            if passes:
                why = error.what if isinstance(error, EndpointError) else "Ctrl-C."
                note = WarningNote(
                    code="interrupted",
                    text=f"Ended after {len(passes)} of {n_passes} passes: {access.url.hidden(why)}",
                )
                raise Interrupted(_noted(base, passes, [note]), error) from error
            raise
        ui.finish(f"{len(passes)} pass{'es' * (len(passes) != 1)}")
        return _noted(base, passes, [])


def _pass(
    access: Access,
    workload: Workload,
    cutter: Cutter,
    ui: Progress,
    number: int,
    total: int,
) -> EndpointPass:
    done = number * len(workload.requests)

    def note(line: str) -> None:
        ui.update(done, note=f"pass {number + 1} of {total}: {line}")

    started = datetime.now(UTC)
    samples = drive_endpoint(access, cutter.dialect, workload, cutter, on_progress=note)
    found = speeds(samples, workload.parallel)
    prefill = "unknown" if found.prefill_tok_s is None else f"{found.prefill_tok_s:.0f} tok/s"
    ui.say(
        f"  pass {number + 1:<3} turn {found.turn_s:.2f} s  decode {found.decode_tok_s:.1f} tok/s  "
        f"prefill {prefill}  first token {found.ttft_ms:.0f} ms  (client-timed)"
    )
    ui.update(done + len(workload.requests))
    return EndpointPass(started=started, **vars(found), requests=samples)


def _noted(
    base: EndpointResult, passes: Sequence[EndpointPass], more: Sequence[WarningNote]
) -> EndpointResult:
    result = base.model_copy(update={"passes": list(passes)})
    return result.model_copy(update={"warnings": [*more, *endpoint_notes(result)]})


def _models(access: Access, http: httpx.Client) -> tuple[list[str], dict[str, str]]:
    """Return the names of the models that are served, and what the answer tells of the server."""
    answer = access.get(http, "/models")
    if answer is None:
        return [], {}
    told = {"Server header": answer.headers["Server"]} if answer.headers.get("Server") else {}
    try:
        data = answer.json()["data"]
        names = [str(one["id"]) for one in data]
        owners = {str(one["owned_by"]) for one in data if one.get("owned_by")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return [], told
    return names, told | ({"owned_by": ", ".join(sorted(owners))} if owners else {})


def _chosen(models: Sequence[str], wanted: str | None, access: Access) -> str:
    listed = ", ".join(models[:20]) + (", ..." if len(models) > 20 else "")
    if wanted is not None:
        if models and wanted not in models:
            raise BadSettingError(
                f"{access.url.shown} serves no model '{wanted}'.", next_step=f"It serves: {listed}."
            )
        return wanted
    if len(models) == 1:
        return models[0]
    if not models:
        raise EndpointError(
            f"{access.url.shown}/models names no model.",
            "It is no OpenAI-compatible address, or a server that keeps its models' names to itself.",
            "Check the address (most end in /v1), or give --model-name.",
        )
    raise BadSettingError(
        f"{access.url.shown} serves {len(models)} models.", next_step=f"Name one with --model-name: {listed}."
    )


def _about(access: Access, http: httpx.Client) -> dict[str, str]:
    """Return what llama-server (/props) and vLLM, ollama (/version) tell of their build."""
    told: dict[str, str] = {}
    for page, key, name in (
        ("/props", "build_info", "build"),
        ("/version", "version", "version"),
        ("/api/version", "version", "version"),
    ):
        try:
            answer = http.get(f"{access.url.root}{page}")
            value = answer.json().get(key) if answer.is_success else None
        except (httpx.HTTPError, ValueError, AttributeError):
            continue
        if isinstance(value, str) and value:
            told.setdefault(name, value[:100])
    return told


def _round_trip_ms(access: Access, http: httpx.Client) -> float:
    """Return the median time of a small request there and back."""
    times = []
    for _ in range(_ROUND_TRIPS):
        start = time.perf_counter()
        access.get(http, "/models")
        times.append((time.perf_counter() - start) * 1000)
    return median(times)
