"""What a trial can end as. An outcome is a type, never a sentinel score.

`Outcome = Measurement | OutOfMemory | TimedOut | Crashed | Garbage | NotEngaged | Rejected`; the field `kind`
tells them apart in JSON.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestSample(_Frozen):
    """One request inside one server, as llama-server timed it (raw sample)."""

    workload: str = Field(description="name of the workload the request belongs to: chat, document, code")
    warmup: bool = Field(description="true for the cold request(s), which no mean includes")
    prompt_tokens: int
    output_tokens: int
    prefill_ms: float = Field(description="time to process the prompt, server timing")
    decode_ms: float = Field(description="time to generate the output, server timing")
    ttft_ms: float = Field(description="time to first token, client timing from the stream")
    turn_s: float = Field(description="wall-clock of the whole request, client timing")
    token_ms: list[float] = Field(default_factory=list, description="gap before each streamed token, client")
    text_sha256: str = Field(description="sha256 of the generated text (drawn with one seed, so comparable)")
    started_s: float = Field(
        default=0.0, description="when it was sent, seconds after the first of this server, client timing"
    )
    drafted: int = Field(default=0, description="tokens that speculative decoding drafted")
    draft_accepted: int = Field(default=0, description="drafted tokens that the model then chose itself")


class CacheDevice(_Frozen):
    """One GPU's share of the cache."""

    name: str
    layers: int
    slots: int = Field(description="places for experts on this GPU, all its layers together")
    cache_bytes: int


class HotStats(_Frozen):
    """The hot-expert device's own counters: proof that it was engaged.

    Counters of blocks with several tokens (parallel requests, drafts, short prompts) are a part of the whole.
    A field that an older device does not report keeps its default.
    """

    slots: int = Field(
        description="experts of a layer that really got a place in VRAM (hot_k, or fewer); the mean over "
        "layers where they differ"
    )
    layers: int = Field(description="layers the cache serves")
    hits: int
    misses: int
    uploads: int = Field(description="experts copied to VRAM")
    uploaded_bytes: int
    fetched_bytes: int = Field(
        default=0, description="of these, experts that were missed and computed on the GPU at once"
    )
    cache_bytes: int = Field(description="VRAM that the cache allocated")
    fallback_nodes: int = Field(default=0, description="graph nodes computed one by one on the CPU")
    layer_hit_rate: list[float] = Field(default_factory=list, description="hit rate of each cached layer")
    layer_slots: list[int] = Field(default_factory=list, description="experts in VRAM of each cached layer")
    time_us: dict[str, float] = Field(
        default_factory=dict, description="mean time a layer and token by phase: submit, cold, wait, swap"
    )
    policy: str = Field(default="", description="how the experts were chosen: window, lru, lfru, static")
    shared_budget: bool = Field(default=False, description="one budget over all layers")
    evictions: int = Field(default=0, description="experts that lost their place to another one")
    stream_blocks: int = Field(default=0, description="blocks of a layer whose experts passed through VRAM")
    stream_bytes: int = Field(default=0, description="experts copied from host memory for those")
    stream_buffer_bytes: int = Field(default=0, description="VRAM that streaming holds, beside cache_bytes")
    working_vram_bytes: int = Field(default=0, description="VRAM of intermediate results, beside the others")
    working_host_bytes: int = Field(default=0, description="host memory of the device itself")
    multi_blocks: int = Field(default=0, description="blocks of a layer computed for more than one token")
    multi_tokens: int = Field(default=0, description="tokens in those blocks")
    multi_hits: int = 0
    multi_misses: int = 0
    devices: list[CacheDevice] = Field(default_factory=list, description="the share of each GPU")

    @property
    def hit_rate(self) -> float:
        """Share of routed expert choices found in VRAM, 0 to 1."""
        return _share(self.hits, self.misses)

    @property
    def multi_hit_rate(self) -> float | None:
        """The same of blocks with several tokens; None when there were none."""
        return _share(self.multi_hits, self.multi_misses) if self.multi_hits + self.multi_misses else None


def _share(hits: int, misses: int) -> float:
    return hits / (hits + misses) if hits + misses else 0.0


class FitPlacement(_Frozen):
    """What `--fit` decided, read from llama.cpp's own log."""

    n_gpu_layers: int | None = Field(default=None, description="layers offloaded, of layers_total")
    layers_total: int | None = None
    overrides: list[str] = Field(default_factory=list, description="tensor overrides fit chose, as logged")
    projected_mib: float | None = Field(default=None, description="VRAM use that fit projected")
    lines: list[str] = Field(default_factory=list, description="the log lines this was read from")


class Engagement(_Frozen):
    """Proof that what was asked for took effect, read from the server's log and the device's counters."""

    gpu_device: str = Field(description="name of the GPU device in llama.cpp's log: CUDA0, VGPU0")
    vram_model_mib: float = Field(description="weights in VRAM, from the load log")
    vram_kv_mib: float = Field(description="KV cache in VRAM, from the load log")
    vram_compute_mib: float = Field(description="compute buffers in VRAM, from the load log")
    host_model_mib: float = Field(description="weights in host memory, from the load log")
    pinned: bool | None = Field(default=None, description="host weights pinned; None when the log is silent")
    hot: HotStats | None = None
    fit: FitPlacement | None = None


class NextTokens(_Frozen):
    """What a server expected next at each position of a text that was given to it token by token.

    Every position but the first is one decode step of a single token, the same path that answers take. The
    probabilities are the softmax of the raw logits, before any sampler.
    """

    text: str = Field(description="name of the shipped text")
    prefix_tokens: int = Field(description="tokens before the first position")
    ids: list[list[int]] = Field(description="the most probable tokens of each position, the first one first")
    logprobs: list[list[float]] = Field(description="their natural log-probabilities")

    @property
    def tops(self) -> list[dict[int, float]]:
        """The same, as a mapping for each position."""
        return [dict(zip(ids, logs, strict=True)) for ids, logs in zip(self.ids, self.logprobs, strict=True)]


class Timeline(_Frozen):
    """VRAM and cache while the server was driven, by intervals: each column has a value for every interval,
    or none at all where that could not be read.

    An interval ends at its `at_s`; it begins where the one before ended, the first with the first request.
    """

    at_s: list[float] = Field(description="end of each interval, seconds after the first request was sent")
    vram_mib: list[float] = Field(
        default_factory=list, description="highest VRAM use of the server that was seen in the interval"
    )
    hits: list[int] = Field(
        default_factory=list, description="routed experts found in VRAM in the interval; none without a cache"
    )
    misses: list[int] = Field(default_factory=list, description="routed experts not found there")

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        lengths = {len(column) for column in (self.vram_mib, self.hits, self.misses) if column}
        if lengths - {len(self.at_s)} or bool(self.hits) != bool(self.misses):
            raise ValueError("the columns of a timeline must be equally long")
        return self

    @property
    def hit_rates(self) -> list[float | None]:
        """Hit rate of each interval, 0 to 1; None where nothing went through the cache (a long prompt)."""
        pairs = zip(self.hits, self.misses, strict=True)
        return [_share(hits, misses) if hits + misses else None for hits, misses in pairs]


def evenly(count: int, most: int) -> list[slice]:
    """Return at most so many parts of `count` neighbours, about equally long, none of them empty."""
    n_kept = min(most, count)
    ends = [count * number // n_kept for number in range(n_kept + 1)] if n_kept else []
    return [slice(first, last) for first, last in pairwise(ends)]


class DuringRun(_Frozen):
    """What went on around a server while it was driven; None where this machine does not tell."""

    samples: int = Field(default=0, description="times that the GPU was asked for the following six")
    temperature_max_c: float | None = None
    sm_clock_mhz: float | None = Field(default=None, description="median")
    power_w: float | None = Field(default=None, description="mean")
    throttled: dict[str, float] = Field(
        default_factory=dict,
        description="reasons that held the clocks down, each with its share of the samples",
    )
    pcie_generation: int | None = Field(default=None, description="highest seen; an idle link is slower")
    pcie_width: int | None = Field(default=None, description="highest seen, lanes")
    other_vram_growth_mib: float | None = Field(
        default=None, description="how much more VRAM other processes held at some time than at the begin"
    )
    other_cpu_percent: float | None = Field(
        default=None, description="CPU time of everybody else, mean, percent of all cores together"
    )
    swap_growth_mib: float | None = Field(default=None, description="swap in use, from begin to end")


class MachineState(_Frozen):
    """The machine before a server was started, and while it was driven.

    `waited_s` and what follows it are from the moment before the start. Where a server goes on with another
    placement (`reused_server`), nothing is waited for.
    """

    waited_s: float = Field(
        default=0.0, description="until the GPU was about as cool and idle as before the first server"
    )
    settled: bool = Field(default=True, description="false: it was not, and the longest wait was over")
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    utilisation_percent: float | None = None
    vram_used_mib: float | None = Field(default=None, description="by all processes, a ballast included")
    throttled_by: tuple[str, ...] = Field(default=(), description="why the clocks were held down")
    during: DuringRun | None = None


class Measurement(_Frozen):
    """A server was started, engaged as asked, and all requests succeeded.

    With a fresh server this is a replicate. In the search a server may be reused for the next placement where
    only settings differ that the device changes while it runs; `reused_server` says so, and such a
    measurement is never taken for a replicate.

    With several requests in flight (`Placement.parallel`), requests go in waves, and the two speeds are the
    server's, all slots together, by the client's clock: see their descriptions. All else stays by request.
    """

    kind: Literal["measurement"] = "measurement"
    prefill_tok_s: float = Field(
        description="sum of prompt tokens / sum of prefill time, warm requests. Several in flight: prompt "
        "tokens / wall-clock from the start of a wave to the last first token in it (answers that have "
        "already begun take a part of that time)"
    )
    decode_tok_s: float = Field(
        description="sum of decode steps / sum of decode time, warm requests; steps are output tokens - 1, "
        "because the first token comes out of the prompt's last batch. Several in flight: the steps of all / "
        "wall-clock from the first token of a wave to its last (prompts that are not yet processed, and "
        "slots that are done early, take a part of that time)"
    )
    ttft_ms: float = Field(description="median time to first token, warm requests")
    turn_s: float = Field(description="mean wall-clock of a warm request: what the user waits")
    token_ms_p50: float
    token_ms_p95: float
    token_ms_p99: float
    vram_peak_mib: float = Field(description="peak VRAM of the server")
    vram_source: Literal["process", "device-change", "virtual"] = Field(
        description="NVML by process; the device total's change where the process is hidden; virtual GPU"
    )
    load_s: float = Field(description="start of the process to health")
    engagement: Engagement
    requests: list[RequestSample]
    reused_server: bool = Field(
        default=False,
        description="measured in the server of the trial before, its settings changed while it ran: the "
        "search alone does this, and it is no replicate",
    )
    next_tokens: NextTokens | None = Field(
        default=None,
        description="what it expected next in a fixed text, asked after everything was timed and counted; in "
        "the replicates that were scored",
    )
    machine_state: MachineState | None = Field(
        default=None, description="the machine before and during this measurement"
    )
    timeline: Timeline | None = Field(
        default=None, description="VRAM and hit rate over time; None in results of schema version 1"
    )

    @property
    def hit_rate(self) -> float | None:
        """Hit rate of the hot-expert cache, or None when no cache was on."""
        return self.engagement.hot.hit_rate if self.engagement.hot else None

    @property
    def multi_hit_rate(self) -> float | None:
        """Hit rate of the cache in blocks with several tokens, or None when there were none."""
        return self.engagement.hot.multi_hit_rate if self.engagement.hot else None


class OutOfMemory(_Frozen):
    """VRAM (or host memory) ran out; learnt from as a constraint."""

    kind: Literal["out_of_memory"] = "out_of_memory"
    stage: Literal["load", "first_batch", "later"]
    detail: str
    log_tail: list[str] = Field(default_factory=list)


class TimedOut(_Frozen):
    """The server did not become healthy, or a request did not end, in time."""

    kind: Literal["timed_out"] = "timed_out"
    stage: Literal["load", "request"]
    limit_s: float
    detail: str = ""
    log_tail: list[str] = Field(default_factory=list)


class Crashed(_Frozen):
    """The server process ended, or answered with an error, for a reason that is not memory."""

    kind: Literal["crashed"] = "crashed"
    exit_code: int | None = Field(description="exit status; negative = signal; None = still ran, bad answer")
    detail: str
    log_tail: list[str] = Field(default_factory=list)


class Garbage(_Frozen):
    """The server runs and answers, but with what is no answer: no text, no finite logits, wrong counts."""

    kind: Literal["garbage"] = "garbage"
    detail: str
    log_tail: list[str] = Field(default_factory=list)


class NotEngaged(_Frozen):
    """The server ran, but not as asked: device not loaded, counters still, fit placed nothing, no slots."""

    kind: Literal["not_engaged"] = "not_engaged"
    detail: str
    log_tail: list[str] = Field(default_factory=list)


class Rejected(_Frozen):
    """Measured or predicted to break a rule of the run: over the VRAM ceiling, for example."""

    kind: Literal["rejected"] = "rejected"
    rule: Literal["ceiling", "vram_unknown", "heat"] = Field(
        default="ceiling",
        description="what it broke: took more VRAM than allowed; its VRAM use could not be read; the GPU "
        "slowed itself down for heat, so the number says nothing of the placement",
    )
    detail: str
    vram_peak_mib: float | None = None
    log_tail: list[str] = Field(default_factory=list)


Outcome = Annotated[
    Measurement | OutOfMemory | TimedOut | Crashed | Garbage | NotEngaged | Rejected,
    Field(discriminator="kind"),
]
OUTCOME_ADAPTER: TypeAdapter[Outcome] = TypeAdapter(Outcome)


def too_large(outcome: Outcome) -> bool:
    """Tell whether a placement took more memory than there is: a smaller one may do."""
    return isinstance(outcome, OutOfMemory) or (isinstance(outcome, Rejected) and outcome.rule == "ceiling")
