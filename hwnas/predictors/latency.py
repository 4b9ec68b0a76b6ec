"""Latency of a device that has no table, from a few measurements on it and what is known of other devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.protocols import SearchSpace
from hwnas.predictors.costs import KnownCosts
from hwnas.predictors.encoding import Encoder
from hwnas.predictors.gp import GaussianProcess
from hwnas.seeding import stream

Floats = NDArray[np.float64]

_NORMAL_95 = 1.96  # half of a normal's 95 % interval, in standard deviations
_ITERATIONS = 20  # of each fit: a fit is cheap beside one measurement


class LatencyPredictor:
    """A Gaussian process that starts from counts and the surrogates of other devices; intervals are checked.

    Where predictions of measured networks from all other ones miss more often than they should, all intervals are
    widened by as much (the 95 % quantile of leave-one-out errors in standard deviations).

    Args:
        space: The search space.
        dataset: Data set that networks are built for.
        device: The device, whose own surrogate is not asked.
        known: What is known beforehand; default: counts, and all other devices that there are surrogates of.
    """

    def __init__(
        self, space: SearchSpace, dataset: str, device: str | None = None, *, known: KnownCosts | None = None
    ) -> None:
        self._process = GaussianProcess(Encoder(space), iterations=_ITERATIONS)
        self._process.lend(known or KnownCosts.of(space, dataset, without=[device]), [0])
        self._widening = 1.0
        self._least = 0.0

    def fit(self, architectures: Sequence[Architecture], latencies: Floats, half_widths: Floats) -> None:
        """Learn from measurements.

        Args:
            architectures: `n`, at least 2.
            latencies: `n`, ms.
            half_widths: `n`, half of their 95 % intervals, ms; 0 where there is none.
        """
        self._process.fit(architectures, np.asarray(latencies, dtype=np.float64)[:, None], rng=stream(0, 0, "latency"))
        mean, std, truth = self._process.leave_one_out()[0]
        off = np.sort(np.abs(truth - mean) / std)
        place = min(len(off) - 1, int(np.ceil(0.95 * (len(off) + 1))) - 1)
        self._widening = max(1.0, float(off[place]) / _NORMAL_95)
        self._least = float(np.median(half_widths))

    def interval(self, architectures: Sequence[Architecture]) -> tuple[Floats, Floats, Floats]:
        """Latency and both ends of its 95 % interval for what a measurement would give, ms, `n` each.

        Never narrower than measurements are.
        """
        found = self._process.posterior(architectures)
        mean = found.mean[:, 0]
        half = np.maximum(_NORMAL_95 * self._widening * found.std[:, 0], self._least)
        return mean, np.maximum(mean - half, 0.0), mean + half
