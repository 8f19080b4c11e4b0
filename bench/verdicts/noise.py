"""How the speed of fresh servers scatters, as a model that can be drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Noise:
    """Log-durations of servers in the order in which they run: trend + correlated noise + outliers.

    Args:
        name: for tables.
        cv: standard deviation over mean of one server's duration, without trend and outliers.
        drift: growth of the log-duration from one server to the next (0.01: each 1 % slower).
        lag1: correlation of the noise of neighbouring servers, whatever their arms.
        first: by how much the log-duration of the first server of the stage is longer.
        outlier_share: chance of a server to be an outlier.
        outlier: by how much the log-duration of an outlier is longer.
    """

    name: str
    cv: float
    drift: float = 0.0
    lag1: float = 0.0
    first: float = 0.0
    outlier_share: float = 0.0
    outlier: float = 0.0

    def draw(self, rng: np.random.Generator, runs: int, servers: int) -> NDArray[np.float64]:
        """Return log-durations relative to an undisturbed server, one row a run, one column a server."""
        sd = math.sqrt(math.log1p(self.cv**2))
        shocks = rng.normal(0.0, 1.0, (runs, servers))
        noise = np.empty_like(shocks)
        noise[:, 0] = shocks[:, 0]
        fresh = math.sqrt(1 - self.lag1**2)  # keeps the variance the same at every position
        for place in range(1, servers):
            noise[:, place] = self.lag1 * noise[:, place - 1] + fresh * shocks[:, place]
        logs = sd * noise + self.drift * np.arange(servers)
        logs[:, 0] += self.first
        return logs + self.outlier * (rng.random((runs, servers)) < self.outlier_share)
