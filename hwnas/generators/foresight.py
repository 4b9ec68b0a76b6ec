"""What a surrogate expects of going on: of the next query, and of all that was not found.

Everything is measured in the losses' own units, and by draws from the joint posterior: each draw gives every candidate
losses that it may turn out to have. The hypervolume of front and feasible candidates together is then what could be
had, if the draw were the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.core import pareto
from hwnas.core.stopping import Outlook
from hwnas.generators.acquisition import chance_below, expected_hypervolume_improvement
from hwnas.predictors.compression import Compression
from hwnas.predictors.gp import Posterior

Floats = NDArray[np.float64]

CANDIDATES = 200  # those of a pool with the largest expected improvement
CLIMBERS = 60  # so many of them bring their neighbours in as well
DRAWS = 256  # of all candidates together
NEXT_DRAWS = 512  # of the next query alone
INTERVAL = (0.05, 0.95)
DOUBT = 1.75  # so many times as wide, in logarithms: by how much hyper-parameters err, draws do not know


@dataclass(frozen=True)
class Prospect:
    """What lies beyond a front.

    Attributes:
        front: `k x m` losses, as the posterior has them: compressed.
        reference: `m`, likewise.
        bounds: (column, largest loss that is admitted) for each budget.
        shown: How each column of the posterior was compressed.
        floors: `m`: a loss counts as better by what it is better than this, in the losses' own units.
    """

    front: Floats
    reference: Floats
    bounds: tuple[tuple[int, float], ...]
    shown: tuple[Compression, ...]
    floors: Floats

    @property
    def volume(self) -> float:
        """Hypervolume of the front, in the product of the losses' own units."""
        return pareto.hypervolume(self.plain(self.front), self.plain(self.reference))

    def plain(self, losses: Floats) -> Floats:
        """`... x m` losses in their own units."""
        return np.stack([show.inverse(losses[..., j]) for j, show in enumerate(self.shown[: len(self.reference)])], -1)

    def score(self, posterior: Posterior) -> Floats:
        """What each of a pool is worth, roughly: expected improvement times the chances to succeed and be feasible."""
        m, mean, std = len(self.reference), posterior.mean, posterior.std
        score = expected_hypervolume_improvement(self.front, self.reference, mean[:, :m], std[:, :m])
        for column, bound in self.bounds:
            if column >= m:
                score = score * chance_below(bound, mean[:, column], std[:, column])
        return score * posterior.success

    def best(self, posterior: Posterior) -> NDArray[np.int64]:
        """At most `CANDIDATES` rows of a pool, by falling `score`."""
        return np.argsort(-self.score(posterior), kind="stable")[:CANDIDATES]

    def volumes(self, drawn: Floats, success: Floats, rng: np.random.Generator) -> Floats:
        """Hypervolume of front and candidates together in each draw.

        Args:
            drawn: `n x k x (m + c)` losses of candidates, as the posterior has them.
            success: `k` chances that a candidate's measurements succeed.
            rng: Draws which of them do.

        Returns:
            `n`.
        """
        m = len(self.reference)
        counts = rng.random(drawn.shape[:2]) < success
        for column, bound in self.bounds:
            counts &= drawn[:, :, column] <= bound
        losses = self.plain(drawn[:, :, :m]) + self.floors
        front, reference = self.plain(self.front), self.plain(self.reference)
        counts &= (losses < reference).all(axis=2)
        front = front[pareto.non_dominated(front)]
        for point in front:
            counts &= (losses < point).any(axis=2)
        before = pareto.hypervolume(front, reference)
        return np.array(
            [
                pareto.hypervolume(np.concatenate((front, row[inside])), reference) if inside.any() else before
                for row, inside in zip(losses, counts, strict=True)
            ]
        )


def foresee(prospect: Prospect, posterior: Posterior, *, rng: np.random.Generator) -> Outlook | None:
    """What is expected of the best next query, and of everything that was not found; None where the front has no
    volume.

    Args:
        prospect: Front, reference point and budgets.
        posterior: Predictions for what may be asked for, that of the next query first.
        rng: Of the draws.
    """
    volume = prospect.volume
    if volume <= 0:
        return None
    following = prospect.volumes(posterior.draw(np.arange(1), NEXT_DRAWS, rng=rng), posterior.success[:1], rng)
    best = prospect.best(posterior)
    whole = prospect.volumes(posterior.draw(best, DRAWS, rng=rng), posterior.success[best], rng)
    missed = 1.0 - volume / whole
    low, high = np.quantile(missed, INTERVAL)
    expected = float(missed.mean())
    gain, interval = float(following.mean() / volume - 1.0), doubted(expected, float(low), float(high))
    return Outlook(gain, expected, *interval, tuple(map(float, prospect.plain(prospect.reference))))


def doubted(expected: float, low: float, high: float) -> tuple[float, float]:
    """An interval of a share around its expectation, made wider by `DOUBT`."""
    if expected <= 0:
        return 0.0, 0.0
    below, above = (expected * (end / expected) ** DOUBT for end in (min(low, expected), max(high, expected)))
    return below, min(above, 1.0)
