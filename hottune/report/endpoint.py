"""The result of measuring an endpoint: a schema of its own, for nobody here placed or built that server.

It keeps no account, key or folder, and a host only where it is this machine: the file can be posted as it is.
"""

from __future__ import annotations

from datetime import datetime
from statistics import fmean
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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


def json_text(result: EndpointResult) -> str:
    """Return a result as its file has it: indented JSON."""
    return result.model_dump_json(indent=2) + "\n"
