"""One placement, one fresh server, one Outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hottune.engine.facts import EngineBuild
from hottune.engine.interface import LaunchFailed
from hottune.engine.server import Server, check_engaged, launch
from hottune.machine.clocks import gpu_state
from hottune.machine.facts import Gpu
from hottune.machine.vram import VramSampler
from hottune.models.shape import ModelFile
from hottune.outcomes import Crashed, NotEngaged, Outcome, Rejected, RequestSample, TimedOut
from hottune.placement import Placement
from hottune.workload.client import RequestFailed, drive
from hottune.workload.facts import Workload
from hottune.workload.summary import measurement

#: How far above the ceiling a measured peak may lie: the ceiling is a promise, sampling is not exact.
CEILING_TOLERANCE = 0.02
#: VRAM is "back" when it is this close to what was in use before the server started.
SETTLED_MIB = 64.0
SETTLE_LIMIT_S = 10.0
REQUEST_TIMEOUT_S = 600.0
LOGS_KEPT = 60


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

    def measure(self, placement: Placement) -> Outcome:
        """Start a fresh server, drive the workload, stop it, and say what it ended as.

        Nothing that a placement can cause raises. What can: PortTakenError, BadSettingError (a text that is
        too short for this model's tokenizer), KeyboardInterrupt; the server is gone then, too.
        """
        self._prune_logs()
        before_mib = gpu_state(self.gpu).vram_used_mib
        try:
            with VramSampler(self.gpu) as vram:
                outcome = self._measure(placement, vram)
        finally:
            self._settle(before_mib)
        return self._under_ceiling(outcome)

    def _measure(self, placement: Placement, vram: VramSampler) -> Outcome:
        log_path = self.log_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 1000:03d}.log"
        try:
            with launch(
                self.engine,
                self.model,
                placement,
                gpu=self.gpu,
                ceiling_mib=self.ceiling_mib,
                log_path=log_path,
                port=self.port,
                on_progress=self.note,
            ) as server:
                vram.watch(server.pid)
                driven = self._drive(server)
                if not isinstance(driven, list):
                    return driven
                hot = server.stop()
                if self.gpu.virtual:
                    if server.virtual_peak_mib is None:
                        return NotEngaged(
                            detail="the virtual GPU left no statistics", log_tail=server.log_tail()
                        )
                    vram.note_virtual(server.virtual_peak_mib)
                refused = check_engaged(placement, hot)
                if refused is not None:
                    return refused.model_copy(update={"log_tail": server.log_tail()})
                if not self.gpu.virtual and vram.peak_mib <= 0:
                    return Rejected(
                        detail="its VRAM use could not be read, so nothing proves that it kept to the ceiling"
                        + (f" ({vram.note})" if vram.note else "")
                    )
                return measurement(
                    driven,
                    vram_peak_mib=vram.peak_mib,
                    vram_source=vram.source,
                    load_s=server.load_s,
                    engagement=server.engagement(),
                )
        except LaunchFailed as failed:
            return failed.outcome

    def _drive(self, server: Server) -> list[RequestSample] | Outcome:
        begun: list[str] = []

        def on_progress(line: str) -> None:
            begun.append(line)
            self.note(line)

        try:
            return drive(
                server.base_url,
                self.workload,
                on_progress=on_progress,
                request_timeout_s=self.request_timeout_s,
            )
        except RequestFailed as failed:
            if failed.timed_out and server.alive():
                return TimedOut(
                    stage="request",
                    limit_s=self.request_timeout_s,
                    detail=str(failed),
                    log_tail=server.log_tail(),
                )
            found = server.failure("first_batch" if len(begun) <= 1 else "later")
            if isinstance(found, Crashed):
                return found.model_copy(update={"detail": f"{failed}; {found.detail}"})
            return found

    def _under_ceiling(self, outcome: Outcome) -> Outcome:
        """Turn a measurement above the ceiling into a rejection: an arm that cheats is no arm."""
        peak_mib = getattr(outcome, "vram_peak_mib", None)
        if outcome.kind != "measurement" or peak_mib is None:
            return outcome
        if peak_mib <= self.ceiling_mib * (1 + CEILING_TOLERANCE):
            return outcome
        return Rejected(
            detail=f"took {peak_mib:.0f} MiB of VRAM; the ceiling is {self.ceiling_mib:.0f} MiB",
            vram_peak_mib=peak_mib,
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
