"""Losses with their bad tail drawn in, so that a Gaussian process spends itself on what matters.

Errors have a long tail: a cell without a path errs 90 %, and the differences that a search is about are tenths of a
point. A stationary process fitted to both follows the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Compression:
    """y up to a pivot p, p + s log(1 + (y - p) / s) beyond it: increasing, with a continuous slope.

    Attributes:
        pivot: p, in units of the loss.
        scale: s, above 0.
    """

    pivot: float
    scale: float

    @classmethod
    def of(cls, losses: Floats, quantile: float) -> Self:
        """For these losses: p is their quantile, s its distance from the best.

        Args:
            losses: `n`; nan counts for nothing.
            quantile: In 0..1; 1 leaves all of them as they are.
        """
        known = losses[np.isfinite(losses)]
        if len(known) == 0 or quantile >= 1:
            return cls(np.inf, 1.0)  # the identity
        pivot = float(np.quantile(known, quantile))
        return cls(pivot, max(pivot - float(known.min()), 1e-9 * max(abs(pivot), 1.0)))

    def __call__(self, losses: Floats) -> Floats:
        """The same losses, compressed; nan stays nan."""
        beyond = np.maximum(losses - self.pivot, 0.0)
        return np.asarray(np.minimum(losses, self.pivot) + self.scale * np.log1p(beyond / self.scale))

    def inverse(self, losses: Floats) -> Floats:
        """Losses that became these; nan stays nan."""
        beyond = np.maximum(losses - self.pivot, 0.0)
        return np.asarray(np.minimum(losses, self.pivot) + self.scale * np.expm1(beyond / self.scale))
