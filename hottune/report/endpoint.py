"""The result of measuring an endpoint: a schema of its own, for nobody here placed or built that server.

It keeps no account, key or folder, and a host only where it is this machine: the file can be posted as it is.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hottune.errors import BadResultError
from hottune.machine.facts import Machine
from hottune.report.schema import Metric, WarningNote
from hottune.workload.endpoint_facts import EndpointSample, Route
from hottune.workload.facts import Workload

ENDPOINT_SCHEMA_VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EndpointPass(_Model):
    """The workload once. All passes go to the same server and share its luck: they are no fresh servers.

    Means are over the warm requests, sums over sums, as for llama-server; several in flight: by the
    wall-clock of each wave.
    """

    started: datetime
    prefill_tok_s: float | None = Field(
        description="prompt tokens that were processed / time to first token, which has the way there "
        "and back and one token's sampling in it; None: the server tells no prompt tokens"
    )
    decode_tok_s: float = Field(description="(tokens - 1) / time from the first chunk with text to the last")
    ttft_ms: float = Field(description="median time to first token")
    turn_s: float = Field(description="mean wall-clock of a request")
    as_asked: bool = Field(
        description="all answers had the asked length and all prompts nearly so: only then the turn compares"
    )
    requests: list[EndpointSample]


class EndpointResult(_Model):
    """Everything that was found out about an endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    schema_version: int = ENDPOINT_SCHEMA_VERSION
    hottune_version: str
    created: datetime
    command: str = Field(description="the hottune command line that made this, without account and host")
    label: str = Field(description="what tables call it")
    url: str = Field(description="its address, without account; the host only where it is this machine")
    loopback: bool = Field(description="the address is this machine's own (a tunnel would look the same)")
    machine: Machine | None = Field(description="this machine, where the endpoint is on it; None: unknown")
    model: str = Field(description="what the endpoint calls its model; nobody checked which weights it has")
    server: dict[str, str] = Field(description="what it says of itself: Server header, owned_by, build, ...")
    route: Route
    fields: list[str] = Field(
        description="optional fields it took: extensions (ignore_eos, min_tokens, top_k, ...), seed, usage"
    )
    prompts: Literal["exact", "estimated", "guessed"] = Field(
        description="how prompts got their length: by its /tokenize, by its usage, by characters alone"
    )
    round_trip_ms: float = Field(description="median of a small request there and back; in every first token")
    timed: Literal["client"] = "client"
    workload: Workload
    passes: list[EndpointPass]
    warnings: list[WarningNote] = Field(default_factory=list)

    def values(self, metric: Metric) -> list[float]:
        """Return a number for each pass that has it; no turn of answers that were not as long as asked."""
        if metric == "turn":
            return [one.turn_s for one in self.passes if one.as_asked]
        found = [one.decode_tok_s if metric == "decode" else one.prefill_tok_s for one in self.passes]
        return [value for value in found if value is not None]

    def mean(self, metric: Metric) -> float | None:
        """Return the mean over the passes; None without any."""
        values = self.values(metric)
        return fmean(values) if values else None


def load_endpoint(path: Path) -> EndpointResult | None:
    """Read an endpoint's result; None when the file is anything else.

    Raises:
        BadResultError: it is one, but damaged or of a newer hottune.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None  # `load` says what is wrong
    if not isinstance(data, dict) or data.get("kind") != "endpoint":
        return None
    version = data.get("schema_version")
    if isinstance(version, int) and version > ENDPOINT_SCHEMA_VERSION:
        raise BadResultError(
            f"{path} has schema version {version}; this hottune reads up to {ENDPOINT_SCHEMA_VERSION}.",
            "It was written by a newer hottune.",
            "Update hottune, then try again.",
        )
    try:
        return EndpointResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadResultError(
            f"{path} is not a complete result of an endpoint: {place}: {first['msg'].lower()}.",
            "It was edited by hand, or written by a hottune between two releases.",
            "Measure it again: `hottune bench --endpoint URL`.",
        ) from error
