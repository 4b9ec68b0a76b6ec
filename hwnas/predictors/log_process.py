"""A number above 0 predicted from a few measured ones: a Gaussian process of its logarithm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.protocols import SearchSpace
from hwnas.predictors.encoding import Encoder
from hwnas.predictors.gp import GaussianProcess

Floats = NDArray[np.float64]
_STEPS = 60  # of L-BFGS; there is one fit only


class LogProcess:
    """Predicts memory, energy or another number above 0, with its 95 % interval. A `LatencyModel`.

    Args:
        space: What the architectures belong to.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._process: GaussianProcess | None = None

    def fit(self, architectures: Sequence[Architecture], latencies: Floats, half_widths: Floats) -> None:
        """Learn from `n` measured numbers; the process finds out by itself how noisy they are.

        Args:
            architectures: At least two.
            latencies: `n`, above 0.
            half_widths: Not used.
        """
        del half_widths
        self._process = GaussianProcess(Encoder(self._space), iterations=_STEPS)
        rng = np.random.default_rng(0)  # a fit is a function of its data
        self._process.fit(architectures, np.log(latencies)[:, None], rng=rng)

    def interval(self, architectures: Sequence[Architecture]) -> tuple[Floats, Floats, Floats]:
        """Value and both ends of the 95 % interval that another measurement lies in, `n` each."""
        if self._process is None:
            raise ValueError("fit comes before interval")
        posterior = self._process.posterior(architectures)
        mean, reach = posterior.mean[:, 0], 1.96 * posterior.std[:, 0]
        return np.exp(mean), np.exp(mean - reach), np.exp(mean + reach)
