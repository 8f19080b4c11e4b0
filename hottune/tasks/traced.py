"""What a recorded routing recommends: it is replayed under several policies before anything is measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hottune.engine.replay_library import provide_replay_library
from hottune.errors import BadSettingError, BadTraceError
from hottune.models.shape import MoeShape
from hottune.placement import INTERVAL_POLICIES, Policy
from hottune.progress import Progress
from hottune.routing.replay import Replay, ReplayResult, ReplaySettings, Routing
from hottune.routing.trace import Trace, TraceFormatError, read_trace
from hottune.search.hints import Hints
from hottune.search.space import POLICIES

#: Tokens that are replayed at most: seconds for a large model, and enough to tell policies apart.
MOST_TOKENS = 4096
INTERVALS = (16, 60, 240)
#: Shares of a layer's experts at which the curve is replayed; between them it is straight.
CURVE_SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
#: Hit rates that differ by less are equal: then the policy that uploads least is taken.
SAME_HITS = 0.005


def read_recorded(path: Path) -> Trace:
    """Read a trace that has choices in it.

    Raises:
        BadTraceError: it cannot be read, is no trace, or is empty.
    """
    try:
        recorded = read_trace(path)
    except TraceFormatError as error:
        raise BadTraceError(
            f"{error}.", next_step="Record one with GGML_HOT_TRACE (docs/trace-format.md)."
        ) from error
    except OSError as error:
        raise BadTraceError(
            f"The trace {path} cannot be read: {error.strerror}.", next_step="Check the path."
        ) from error
    if not len(recorded.choices):
        raise BadTraceError(
            f"{path} has no choice in it.",
            "Nothing went through the cache while it was recorded, or it was cut off at once.",
            "Record it while the server answers requests.",
        )
    return recorded


def block_of(name: str) -> int | None:
    """Return the number of the layer that an expert weight belongs to."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else None


def expert_bytes_of(routing: Routing, shape: MoeShape) -> list[int]:
    """Return the bytes of one expert of each layer of a trace.

    Raises:
        BadSettingError: the trace is of another model.
    """
    sizes = []
    for layer in routing.layers:
        index = block_of(layer.name)
        fits = index is not None and index < shape.n_layers and shape.layer_expert_bytes[index] > 0
        if index is None or not fits or layer.n_expert != shape.n_experts:
            raise BadSettingError(
                f"The trace has a layer {layer.name} with {layer.n_expert} experts, the model has none.",
                "The trace is of another model.",
                "Give the model that was traced.",
            )
        sizes.append(shape.layer_expert_bytes[index] // shape.n_experts)
    return sizes


def first_tokens(routing: Routing, most: int, *, bypass: int) -> Routing:
    """Return the beginning of a routing, up to `most` tokens of blocks that go through the cache."""
    layer, tokens, used = routing.blocks.T
    served = np.cumsum(np.where((layer == 0) & (tokens <= bypass), tokens, 0))
    beyond = np.flatnonzero((layer == 0) & (served > most))
    if not len(beyond):
        return routing
    end = int(beyond[0])
    n_choices = int((tokens[:end].astype(np.int64) * used[:end]).sum())
    return Routing(routing.layers, routing.blocks[:end].copy(), routing.experts[:n_choices].copy())


def hints_of(
    path: Path, shape: MoeShape, *, slots: int, bypass: int, cache_dir: Path, progress: Progress
) -> Hints:
    """Replay a trace under policies and intervals, and return the best with its hit rates by cache size.

    Args:
        path: of the trace.
        shape: of the model that it must be of.
        slots: experts of a layer that the cache can hold beside everything else.
        bypass: largest batch that goes through the cache, tokens.
        cache_dir: where the compiled policies lie.
        progress: told about the replay.

    Raises:
        BadTraceError: no trace, or none of single tokens.
        BadSettingError: it is of another model.
        NoCompilerError, BuildFailedError, NoSpaceError: the policies cannot be compiled.
    """
    whole = Routing.from_trace(read_recorded(path))
    sizes = expert_bytes_of(whole, shape)
    routing = first_tokens(whole, MOST_TOKENS, bypass=bypass)
    replay = Replay(provide_replay_library(cache_dir, progress), routing, expert_bytes=sizes)
    asked = [
        ReplaySettings(policy=policy, slots=max(1, slots), interval=interval, bypass=bypass)
        for policy in POLICIES
        for interval in (INTERVALS if policy in INTERVAL_POLICIES else INTERVALS[1:2])
    ]
    found = replay.sweep(asked)
    if not found[0].tokens:
        raise BadTraceError(
            f"{path} has no token that went through the cache by itself.",
            "Only prompts were recorded, or only parallel requests.",
            "Record one while single requests are answered: hottune trace MODEL.",
        )
    best = _best(found)
    policy, interval = best.settings.policy, best.settings.interval
    points = sorted({max(1, round(share * shape.n_experts)) for share in CURVE_SHARES})
    by_size = replay.sweep([best.settings.model_copy(update={"slots": k}) for k in points])
    inner = [(k / shape.n_experts, one.hit_rate) for k, one in zip(points, by_size, strict=True)]
    return Hints(
        policy=policy,
        interval=interval if policy in INTERVAL_POLICIES else None,
        curve=((0.0, 0.0), *inner, (1.0, 1.0)),
        origin=(_sentence(path, best, policy),),
    )


def _best(found: list[ReplayResult]) -> ReplayResult:
    most = max(one.hit_rate for one in found)
    good = [one for one in found if one.hit_rate >= most - SAME_HITS]
    return min(good, key=lambda one: one.uploads)


def _sentence(path: Path, best: ReplayResult, policy: Policy) -> str:
    after = f" {best.settings.interval}" if policy in INTERVAL_POLICIES else ""
    return (
        f"trace {path.name}, {best.tokens} tokens replayed: {policy}{after}, "
        f"{best.hit_rate:.1%} hits with {best.settings.slots} experts a layer"
    )
