"""What a server's failure makes of a placement: a type for each way to fail, with the log's last lines."""

from __future__ import annotations

from hottune.engine.failures import Stage
from hottune.engine.server import Server
from hottune.errors import NotEngagedError, ServerError
from hottune.outcomes import Crashed, Garbage, Outcome, Rejected, TimedOut
from hottune.workload.client import RequestFailed, WrongAnswer


def ended(server: Server, failed: RequestFailed, stage: Stage, limit_s: float) -> Outcome:
    """Return what a failed request means.

    Args:
        server: it was sent to; only a live one can have timed out, or answered garbage.
        failed: what became of the request.
        stage: `first_batch` for the first request, `later` afterwards.
        limit_s: seconds that a request may take.
    """
    if failed.timed_out and server.alive():
        return TimedOut(stage="request", limit_s=limit_s, detail=str(failed), log_tail=server.log_tail())
    if isinstance(failed, WrongAnswer) and server.alive():
        return Garbage(detail=str(failed), log_tail=server.log_tail())
    found = server.failure(stage)
    if isinstance(found, Crashed):
        return found.model_copy(update={"detail": f"{failed}; {found.detail}"})
    return found


def fatal(
    outcome: Outcome, what: str, next_step: str, *, log_lines: int = 5
) -> NotEngagedError | ServerError:
    """Return the error for an outcome that no study records.

    Args:
        outcome: no measurement.
        what: happened, in a few words; the outcome's kind is added.
        next_step: for the user.
        log_lines: of the server's log, shown at most.
    """
    kind = NotEngagedError if outcome.kind == "not_engaged" else ServerError
    tail = "\n".join(getattr(outcome, "log_tail", [])[-log_lines:])
    detail = getattr(outcome, "detail", "") + (f"\n{tail}" if tail else "")
    return kind(f"{what}: {outcome.kind.replace('_', ' ')}.", detail, next_step)


def with_log(outcome: Outcome, server: Server) -> Outcome:
    """Add the server's last lines to a rejection; measurements have no need of them."""
    if isinstance(outcome, Rejected):
        return outcome.model_copy(update={"log_tail": server.log_tail()})
    return outcome
