"""One placement, one server, one Outcome. The server is a fresh one, but for the search's own trials."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from hottune.engine.control import ControlError
from hottune.engine.engaged import check_engaged
from hottune.engine.facts import EngineBuild
from hottune.engine.failures import LaunchFailed
from hottune.engine.forks.command import Fork
from hottune.engine.launch import launch
from hottune.engine.server import Server
from hottune.machine.ballast import Holder
from hottune.machine.clocks import HARDWARE_HEAT, gpu_state
from hottune.machine.cooldown import LIMIT_S, Cooldown, Cooled
from hottune.machine.facts import Gpu
from hottune.machine.vram import VramSampler
from hottune.machine.watch import MachineWatch
from hottune.models.shape import ModelFile
from hottune.outcomes import (
    MachineState,
    Measurement,
    NextTokens,
    NotEngaged,
    Outcome,
    Rejected,
    RequestSample,
)
from hottune.placement import Placement, needs_restart
from hottune.tasks.conditions import with_before
from hottune.tasks.endings import ended, with_log
from hottune.tasks.logs import new_log
from hottune.tasks.timeline import OnSample, TimelineSampler
from hottune.workload.client import RequestFailed, drive
from hottune.workload.facts import Workload
from hottune.workload.next_tokens import CannotScore, require_finite, score
from hottune.workload.summary import measurement

#: How far above the ceiling a measured peak may lie: the ceiling is a promise, sampling is not exact.
CEILING_TOLERANCE = 0.02
#: VRAM is "back" when it is this close to what was in use before the server started.
SETTLED_MIB = 64.0
SETTLE_LIMIT_S = 10.0
REQUEST_TIMEOUT_S = 600.0
LOGS_KEPT = 60
#: A reused server may get so much smaller a cache than asked for: what CUDA has taken meanwhile (kernels,
#: scratch memory) it does not give back. With less, a fresh server must tell.
REUSED_SLOTS = 0.9


@dataclass(frozen=True)
class Kept:
    """A server that stays up for the next trial, and everything that ends with it."""

    server: Server
    placement: Placement
    vram: VramSampler
    watch: MachineWatch
    ending: ExitStack


@dataclass
class Bench:
    """Measures placements of one model under one ceiling, always in the same way."""

    engine: EngineBuild
    model: ModelFile
    gpu: Gpu
    ceiling_mib: float
    workload: Workload
    log_dir: Path
    port: int | None = None
    request_timeout_s: float = REQUEST_TIMEOUT_S
    note: Callable[[str], None] = field(default=lambda line: None)
    #: File to which the device writes the uses of all experts, after each workload; None = nowhere.
    profile_to: Path | None = None
    #: More variables for every server: what loads another plug-in than the device.
    extra_env: Mapping[str, str] = field(default_factory=dict)
    #: What holds the VRAM above the ceiling, where something does.
    ballast: Holder | None = None
    #: VRAM below the ceiling that `--fit` must leave free as well, MiB.
    keep_free_mib: float = 0.0
    #: Longest wait for a cool and idle GPU before a server, seconds.
    cooldown_limit_s: float = LIMIT_S
    #: Other engines, by name: they serve the placements that name them.
    forks: Mapping[str, Fork] = field(default_factory=dict)
    #: Told, while a server is driven, of its VRAM and of its hit rate just now (see OnSample).
    on_sample: OnSample | None = None
    _keeping: bool = field(default=False, init=False)
    _kept: Kept | None = field(default=None, init=False)
    _to_score: Counter[Placement] = field(default_factory=Counter, init=False)
    _cooldown: Cooldown = field(init=False)

    def __post_init__(self) -> None:
        self._cooldown = Cooldown(self.gpu, limit_s=self.cooldown_limit_s)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Within it, a server stays up for the next placement if that changes only what a device can.

        Loading a large model takes longer than driving a workload. What is measured so is marked
        (`Measurement.reused_server`): good enough to search with, but no replicate. At the end the server is
        stopped, however it comes.
        """
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False
            self._let_go()

    @contextmanager
    def scoring(self, wanted: Mapping[Placement, int]) -> Iterator[None]:
        """Within it, so many measurements of each placement also tell what their server expects next.

        That comes after everything was timed and counted (see hottune/workload/next_tokens.py).
        """
        self._to_score = Counter(dict(wanted))
        try:
            yield
        finally:
            self._to_score = Counter()

    def measure(self, placement: Placement) -> Outcome:
        """Start a fresh server, drive the workload, stop it, and say what it ended as.

        Within `keeping`, the server of the placement before serves if it can; whatever it cannot do well is
        done again in a fresh one.

        Nothing that a placement can cause raises. What can: PortTakenError, BadSettingError (a text that is
        too short for this model's tokenizer), BallastError (it is gone), KeyboardInterrupt; the server is
        gone then, too (within `keeping`, when that ends).
        """
        if self.ballast is not None:
            self.ballast.require()
        outcome = self._measure_kept(placement) or self._measure_fresh(placement)
        if isinstance(outcome, Rejected) and outcome.rule == "heat":
            self.note("the GPU was too hot: once more, when it is cooler")
            outcome = self._measure_fresh(placement)
        if self.ballast is not None:
            self.ballast.require()
        return outcome

    def _fork(self, placement: Placement) -> Fork | None:
        return self.forks[placement.engine] if placement.engine else None

    def _measure_fresh(self, placement: Placement) -> Outcome:
        fork = self._fork(placement)
        if fork is not None and fork.facts.refused:
            return NotEngaged(detail=fork.facts.refused)
        self._prune_logs()
        log_path = new_log(self.log_dir)
        with ExitStack() as ending:
            before = self._cooldown.wait()
            ending.callback(self._settle, before.state.vram_used_mib)
            vram = ending.enter_context(VramSampler(self.gpu))
            watch = ending.enter_context(MachineWatch(self.gpu))
            try:
                server = ending.enter_context(
                    launch(
                        self.engine,
                        self.model,
                        placement,
                        gpu=self.gpu,
                        ceiling_mib=self.ceiling_mib - self.keep_free_mib,
                        log_path=log_path,
                        port=self.port,
                        on_progress=self.note,
                        extra_env=self.extra_env,
                        fork=fork,
                    )
                )
            except LaunchFailed as failed:
                return failed.outcome
            vram.watch(server.pid)
            keep = self._keeping and placement.hot_k > 0 and not (placement.fit or placement.engine)
            outcome = with_before(self._measure_in(server, placement, vram, watch), before)
            if keep and isinstance(outcome, Measurement) and server.alive():
                self._kept = Kept(server, placement, vram, watch, ending.pop_all())
            return outcome

    def _measure_kept(self, placement: Placement) -> Measurement | None:
        """Measure in the server that was kept; None (and no server any more) when a fresh one must do it."""
        kept = self._kept
        if kept is None:
            return None
        if not needs_restart(kept.placement, placement):
            self.note("same server, new settings")
            try:
                kept.server.apply(placement)
            except ControlError as error:
                self.note(f"a fresh server, for {error}")
            else:
                kept.vram.begin_again()
                before = Cooled(gpu_state(self.gpu))
                outcome = self._measure_in(kept.server, placement, kept.vram, kept.watch)
                outcome = with_before(outcome, before)
                # Fewer places than asked for may be this server's history: a fresh one tells.
                if isinstance(outcome, Measurement) and _has_its_slots(outcome, placement):
                    self._kept = replace(kept, placement=placement)
                    return outcome.model_copy(update={"reused_server": True})
        self._let_go()
        return None

    def _let_go(self) -> None:
        """Stop the server that was kept, if there is one, and wait for its VRAM."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.ending.close()

    def _measure_in(
        self, server: Server, placement: Placement, vram: VramSampler, watch: MachineWatch
    ) -> Outcome:
        """Drive a server that is up and read what proves that it did as asked.

        The device is asked for its counters; where none answers, the server ends and leaves them in a file.
        """
        watch.begin(server.pid)
        with TimelineSampler(server.glance, lambda: vram.last_mib, on_sample=self.on_sample) as timeline:
            driven = self._drive(server, placement, timeline)
        if not isinstance(driven, list):
            return driven
        during = watch.seen()
        if during.throttled.get(HARDWARE_HEAT):
            detail = f"{self.gpu.name} slowed itself down for heat while it was measured"
            return Rejected(rule="heat", detail=detail, log_tail=server.log_tail())
        if self.profile_to is not None:
            try:
                server.save_profile(self.profile_to)
            except ControlError as error:
                return NotEngaged(detail=f"no profile was saved: {error}", log_tail=server.log_tail())
        hot = server.hot_stats()
        vram_peak_mib = vram.peak_mib  # before the look at the logits, which is no part of the workload
        seen: NextTokens | Outcome | None = None
        # Where the device does not answer, its file's counters would count the look as well.
        if hot is not None or placement.hot_k == 0 or placement.engine:
            seen = self._look_at_logits(server, placement)
        if not isinstance(seen, NextTokens | None):
            return seen
        hot = hot or server.stop()
        if self.gpu.virtual:
            if server.virtual_peak_mib is None:
                return NotEngaged(detail="the virtual GPU left no statistics", log_tail=server.log_tail())
            vram.note_virtual(server.virtual_peak_mib)
            vram_peak_mib = vram.peak_mib
        refused = check_engaged(placement, hot)
        if refused is not None:
            return refused.model_copy(update={"log_tail": server.log_tail()})
        if not self.gpu.virtual and vram_peak_mib <= 0:
            return Rejected(
                rule="vram_unknown",
                detail="its VRAM use could not be read, so nothing proves that it kept to the ceiling"
                + (f" ({vram.note})" if vram.note else ""),
                log_tail=server.log_tail(),
            )
        measured = measurement(
            driven,
            vram_peak_mib=vram_peak_mib,
            vram_source=vram.source,
            load_s=server.load_s,
            engagement=server.engagement(),
            parallel=self.workload.parallel,
        )
        measured = measured.model_copy(
            update={
                "machine_state": MachineState(during=during),
                "next_tokens": seen,
                "timeline": timeline.timeline(),
            }
        )
        outcome = under_ceiling(measured, self.ceiling_mib)
        if isinstance(outcome, Measurement) and seen is not None:
            self._to_score[placement] -= 1
        return with_log(outcome, server)

    def _look_at_logits(self, server: Server, placement: Placement) -> NextTokens | Outcome | None:
        """Return what the server expects next, if that is wanted of it; any server's logits must be finite.

        A server whose logits are NaN still counts tokens and looks fast. Another engine is asked only if its
        engine file says that it answers in llama.cpp's form.
        """
        fork = self._fork(placement)
        if fork is not None and not fork.file.answers.probabilities:
            self.note(f"not scored: {fork.name} does not tell probabilities as llama.cpp does")
            return None
        limit_s = self.request_timeout_s
        try:
            if self._to_score[placement] > 0:
                self.note("scoring what it expects next in a fixed text")
                return score(server.base_url, context=placement.context, request_timeout_s=limit_s)
            require_finite(server.base_url, request_timeout_s=limit_s)
        except CannotScore as reason:
            self.note(f"not scored: {reason}")
        except RequestFailed as failed:
            return ended(server, failed, "later", self.request_timeout_s)
        return None

    def _drive(
        self, server: Server, placement: Placement, timeline: TimelineSampler
    ) -> list[RequestSample] | Outcome:
        begun: list[str] = []
        fork = self._fork(placement)

        def on_progress(line: str) -> None:
            begun.append(line)
            self.note(line)
            timeline.begin()

        try:
            driven = drive(
                server.base_url,
                self.workload,
                on_progress=on_progress,
                request_timeout_s=self.request_timeout_s,
                token_counts=fork is None or fork.file.answers.token_counts,
            )
            timeline.end()
            return driven
        except RequestFailed as failed:
            return ended(
                server, failed, "first_batch" if len(begun) <= 1 else "later", self.request_timeout_s
            )

    def _settle(self, before_mib: float | None) -> None:
        """Wait until the driver has given the server's VRAM back, so that the next one starts equal."""
        if before_mib is None:
            return
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while time.monotonic() < deadline:
            now_mib = gpu_state(self.gpu).vram_used_mib
            if now_mib is None or now_mib <= before_mib + SETTLED_MIB:
                return
            time.sleep(0.2)

    def _prune_logs(self) -> None:
        logs = sorted(self.log_dir.glob("*.log"))
        for old in logs[: max(0, len(logs) - LOGS_KEPT)]:
            old.unlink(missing_ok=True)


def under_ceiling(outcome: Outcome, ceiling_mib: float) -> Outcome:
    """Turn a measurement above the ceiling into a rejection: an arm that cheats is no arm."""
    if not isinstance(outcome, Measurement) or outcome.vram_peak_mib <= ceiling_mib * (1 + CEILING_TOLERANCE):
        return outcome
    peak_mib = outcome.vram_peak_mib
    return Rejected(
        detail=f"took {peak_mib:.0f} MiB of VRAM; the ceiling is {ceiling_mib:.0f} MiB",
        vram_peak_mib=peak_mib,
    )


def _has_its_slots(outcome: Measurement, placement: Placement) -> bool:
    hot = outcome.engagement.hot
    return hot is not None and hot.slots >= REUSED_SLOTS * placement.hot_k


class RealServers:
    """What measures a placement in a real llama-server, and shows what it is doing.

    Args:
        bench: measures.
        begin: told about every placement before it is measured.
    """

    def __init__(self, bench: Bench, begin: Callable[[Placement], None]) -> None:
        self.bench = bench
        self._begin = begin

    def __call__(self, placement: Placement) -> Outcome:
        """Measure a placement."""
        self._begin(placement)
        return self.bench.measure(placement)
