"""Noise of real servers: what the published reports' own replicates say about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.verdicts.noise import Noise
from hottune.outcomes import Measurement
from hottune.report import load
from hottune.stats import outliers

REPORTS = Path(__file__).resolve().parents[2] / "reports"
#: Published results in which arms have several fresh servers.
SESSIONS = ("h200-17pct.json", "h200-35pct.json", "device/h100-30b-a3b-rounds.json")


@dataclass(frozen=True)
class Server:
    """One replicate: which arm, when in the order, how long a turn took."""

    arm: int
    position: int
    turn_s: float


@dataclass(frozen=True)
class Fit:
    """What one session says. Numbers as in `Noise`; each rests on a dozen servers or two.

    Args:
        servers: replicates.
        arms: arms they belong to.
        df: degrees of freedom behind `cv`.
        first: how much slower the first server was than the model says, log; None when it is not a replicate.
        outliers: by how much each outlier was away from the rest of its arm, log.
    """

    name: str
    servers: int
    arms: int
    df: int
    cv: float
    drift: float
    lag1: float
    first: float | None
    outliers: tuple[float, ...]

    @property
    def noise(self) -> Noise:
        """The session as a model; an outlier as often as there were some."""
        share = len(self.outliers) / self.servers
        size = float(np.mean(self.outliers)) if self.outliers else 0.0
        return Noise(self.name, self.cv, self.drift, self.lag1, outlier_share=share, outlier=size)


def fits() -> list[Fit]:
    """Return a fit of every session."""
    return [fit(Path(name).stem, servers_of(REPORTS / name)) for name in SESSIONS]


def pooled(found: Sequence[Fit]) -> Noise:
    """Return one model of all sessions: means by degrees of freedom, outliers by servers; no drift.

    Drift has a sign that is the session's own; sessions with theirs are drawn one by one.
    """
    weights = [one.df for one in found]
    sizes = [size for one in found for size in one.outliers]
    return Noise(
        "all sessions",
        cv=math.sqrt(float(np.average([one.cv**2 for one in found], weights=weights))),
        lag1=float(np.average([one.lag1 for one in found], weights=weights)),
        outlier_share=len(sizes) / sum(one.servers for one in found),
        outlier=float(np.mean(sizes)) if sizes else 0.0,
    )


def servers_of(path: Path) -> list[Server]:
    """Return the replicates of a report's arms that have at least two, in the order they ran."""
    rows = [
        [one for one in arm.replicates if isinstance(one.outcome, Measurement)] for arm in load(path).arms
    ]
    found = [
        Server(index, one.position, one.outcome.turn_s)
        for index, replicates in enumerate(rows)
        if len(replicates) > 1
        for one in replicates
        if isinstance(one.outcome, Measurement)
    ]
    return sorted(found, key=lambda one: one.position)


def fit(name: str, servers: Sequence[Server]) -> Fit:
    """Fit log-duration = arm + drift x position + noise by least squares, outliers set apart.

    Outliers are residuals beyond Iglewicz and Hoaglin's limit; of an arm with two replicates both lie equally
    far from their mean, and the slower one is taken for the outlier. The correlation is that of neighbouring
    residuals; least squares pulls it down a little, more so where arms have two replicates.
    """
    logs = np.log([one.turn_s for one in servers])
    everything = list(range(len(servers)))
    _, residuals = _least_squares(servers, logs, everything)
    far: set[int] = set()
    for index in outliers([float(one) for one in residuals]):
        same = [other for other, one in enumerate(servers) if one.arm == servers[index].arm]
        far.add(max(same, key=lambda other: logs[other]) if len(same) == 2 else index)
    kept = [index for index in everything if index not in far]
    drift, every = _least_squares(servers, logs, kept)
    residuals = every[kept]
    arms = len({one.arm for one in servers})
    df = len(kept) - arms - 1
    return Fit(
        name=name,
        servers=len(servers),
        arms=arms,
        df=df,
        cv=math.sqrt(math.expm1(float(residuals @ residuals) / df)),
        drift=drift,
        lag1=float(residuals[1:] @ residuals[:-1] / (residuals @ residuals)),
        first=float(residuals[0]) if servers[kept[0]].position == 0 else None,
        outliers=tuple(float(every[index]) for index in sorted(far)),
    )


def _least_squares(
    servers: Sequence[Server], logs: NDArray[np.float64], used: Sequence[int]
) -> tuple[float, NDArray[np.float64]]:
    """Fit to the servers in `used`; return the drift and the residuals of all servers."""
    arms = sorted({one.arm for one in servers})
    design = np.array([[one.arm == arm for arm in arms] + [one.position] for one in servers], dtype=float)
    found, *_ = np.linalg.lstsq(design[used], logs[used], rcond=None)
    return float(found[-1]), logs - design @ found
