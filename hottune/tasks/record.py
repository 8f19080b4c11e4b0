"""Record a routing trace: one server, the workload, the device's file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hottune.engine.control import ControlError
from hottune.engine.engaged import check_engaged
from hottune.engine.failures import LaunchFailed
from hottune.engine.launch import launch
from hottune.engine.server import Server
from hottune.errors import BadSettingError, NotEngagedError, ServerError
from hottune.outcomes import HotStats, RequestSample
from hottune.placement import LARGEST_BYPASS, Placement, Policy
from hottune.tasks.endings import fatal
from hottune.tasks.logs import new_log
from hottune.tasks.measure import REQUEST_TIMEOUT_S
from hottune.tasks.prepare import Plan
from hottune.workload.client import RequestFailed, drive
from hottune.workload.facts import Workload
from hottune.workload.workloads import make_workload

#: Share of a layer's experts in the cache while a trace is recorded, if they fit.
USUAL_SHARE = 0.25


@dataclass(frozen=True)
class Traced:
    """One request of a recording, and with which token of the trace it begins."""

    text: str
    first_token: int


@dataclass
class Recorded:
    """What a recording left beside its file; filled while it runs, so that Ctrl-C loses nothing of it."""

    requests: list[Traced] = field(default_factory=list)
    samples: list[RequestSample] = field(default_factory=list)
    hot: HotStats | None = None

    @property
    def starts(self) -> tuple[int, ...]:
        """Tokens with which requests begin."""
        return tuple(one.first_token for one in self.requests)


def with_tokens(workload: Workload, n_tokens: int) -> Workload:
    """Return the workload with answers of so many tokens together, the same number in each.

    The first token of an answer comes out of the prompt's batch, so an answer of n tokens decodes n - 1.
    """
    each = max(2, 1 + math.ceil(n_tokens / len(workload.requests)))
    return make_workload(
        workload.name,
        [one.model_copy(update={"output_tokens": each}) for one in workload.requests],
        warmup_requests=workload.warmup_requests,
        seed=workload.seed,
    )


def placement_for(
    plan: Plan, hot_k: int | None, *, prompts: bool, policy: Policy, interval: int
) -> Placement:
    """Return the placement to record with: all experts in RAM, for only what passes the cache is seen.

    Args:
        plan: of the model.
        hot_k: experts of a layer in VRAM; None takes a quarter of them, or as many as fit.
        prompts: whether prompts pass the cache, too, in batches as large as it takes.
        policy: of the cache.
        interval: tokens between its rebalances.

    Raises:
        BadSettingError: more experts than a layer has, or no room for one.
    """
    shape = plan.model.shape
    if hot_k is not None and not 1 <= hot_k <= shape.n_experts:
        raise BadSettingError(
            f"--hot-k {hot_k}: a layer has {shape.n_experts} experts, and one must be kept."
        )
    base = plan.space.base.model_copy(
        update={
            "n_cpu_moe": shape.n_layers,
            "policy": policy,
            "rebalance_interval": interval,
            "ubatch": LARGEST_BYPASS if prompts else plan.space.ubatches[0],
            "prefill_bypass": LARGEST_BYPASS if prompts else 1,
        }
    )
    wanted = hot_k if hot_k is not None else max(1, round(USUAL_SHARE * shape.n_experts))
    for k in [wanted] if hot_k is not None else range(wanted, 0, -1):
        placement = base.model_copy(update={"hot_k": k})
        if hot_k is not None or plan.space.predicted_mib(placement) <= plan.ceiling_mib:
            return placement
    raise BadSettingError(
        "There is no room in VRAM for one expert of each layer beside the rest of the model.",
        next_step="Raise --vram, or lower --context.",
    )


def record(
    plan: Plan,
    placement: Placement,
    out: Path,
    kept: Recorded,
    *,
    weights: bool = False,
    note: Callable[[int, str], None] = lambda done, line: None,
) -> None:
    """Start a server, drive the plan's workload through it, and let the device write the trace.

    Args:
        plan: model, engine, GPU, ceiling and workload.
        placement: with a cache.
        out: file to write; absolute.
        kept: receives requests and counters.
        weights: write the router's weights, too.
        note: told how many requests are done, and what goes on.

    Raises:
        ServerError: the server failed.
        NotEngagedError: the device saw no expert, or wrote no trace.
        BadSettingError: a text is too short for this model's tokenizer.
        KeyboardInterrupt: the file has what was traced so far, and its proper end.
    """
    folder = plan.config.cache_dir / "logs" / "trace"
    folder.mkdir(parents=True, exist_ok=True)
    log_path = new_log(folder)
    try:
        with launch(
            plan.engine,
            plan.model,
            placement,
            gpu=plan.gpu,
            ceiling_mib=plan.ceiling_mib,
            log_path=log_path,
            port=plan.config.port,
            on_progress=lambda line: note(0, line),
        ) as server:
            _record_in(server, plan.workload, out, kept, weights, note)
            refused = check_engaged(placement, kept.hot)
            if refused is not None:
                raise LaunchFailed(refused.model_copy(update={"log_tail": server.log_tail()}))
    except LaunchFailed as failed:
        next_step = "`hottune doctor` checks engine and device; less VRAM: lower --hot-k."
        raise fatal(failed.outcome, "Nothing was traced", next_step) from failed


def _record_in(
    server: Server,
    workload: Workload,
    out: Path,
    kept: Recorded,
    weights: bool,
    note: Callable[[int, str], None],
) -> None:
    def begin(line: str) -> None:
        done = len(kept.requests)
        kept.requests.append(Traced(workload.requests[done].text, server.traced_tokens()))
        note(done, line)

    try:
        server.start_trace(out, weights=weights)
        kept.samples = drive(
            server.base_url, workload, on_progress=begin, request_timeout_s=REQUEST_TIMEOUT_S
        )
        server.stop_trace()
    except ControlError as error:
        raise NotEngagedError(f"No trace was recorded: {error}.", next_step="Give another --out.") from error
    except RequestFailed as failed:
        found = server.failure("later")
        raise ServerError(
            f"The server failed while it was traced: {failed}.",
            found.detail,
            f"The trace so far is in {out}; the log is {server.log_path}.",
        ) from failed
    note(len(workload.requests), "")
    kept.hot = server.hot_stats() or server.stop()


def with_workload(plan: Plan, workload: Workload) -> Plan:
    """Return the plan with another workload."""
    return replace(plan, workload=workload)
