"""Learning signals: pure functions of a `SearchState`, shared by all generators.

Budgets, several objectives and several fronts enter every method here and in the same way: violation, Pareto rank,
crowding, on the device that an architecture suits best (`SearchState.order`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwnas.core import pareto
from hwnas.core.architecture import Architecture
from hwnas.core.state import SearchState

Floats = NDArray[np.float64]


def positions(state: SearchState) -> NDArray[np.int64]:
    """`n`: place of each evaluated architecture in the order, 0 for the best."""
    place = np.empty(len(state.order), dtype=np.int64)
    place[state.order] = np.arange(len(state.order))
    return place


def weights(state: SearchState, factor: float = 0.01) -> Floats:
    """`n` weights for weighted retraining, summing to 1: w_i ~ 1 / (factor * n + rank_i)
    (Tripp et al. 2020, arXiv 2006.09191, eq. 1; AG-Net uses factor 0.01). Failures weigh 0.
    """
    n = len(state.archive)
    raw = np.asarray(1.0 / (factor * n + positions(state)) if n else np.zeros(0), dtype=np.float64)
    raw[state.failed] = 0.0
    total = raw.sum()
    return np.asarray(raw / total) if total > 0 else raw


def elite(state: SearchState, k: int) -> tuple[Architecture, ...]:
    """The best `k` architectures in the order; failures are never among them."""
    good = [i for i in state.order[:k] if not state.failed[i]]
    return tuple(state.architectures[i] for i in good)


def conditions(state: SearchState) -> Floats:
    """`n x m` empirical quantiles of each objective's losses in 0..1 (0 the best); nan for failures.

    What a conditional generator is told about each training example; scale-free, so it carries over devices.
    """
    losses = state.losses
    result = np.full_like(losses, np.nan)
    for j in range(losses.shape[1]):
        rows = np.flatnonzero(~np.isnan(losses[:, j]))
        if len(rows):
            below = (losses[rows, j][:, None] > losses[rows, j][None, :]).sum(1)
            result[rows, j] = below / max(1, len(rows) - 1)
    return result


def classes(state: SearchState, count: int) -> NDArray[np.int64]:
    """`n x m` class of each loss among `count` equally filled ones, 0 the best; -1 (null) for failures."""
    quantile = conditions(state)
    filled = np.where(np.isnan(quantile), 0.0, quantile)
    return np.where(np.isnan(quantile), -1, np.minimum((filled * count).astype(np.int64), count - 1))


def request(state: SearchState, n: int, *, rng: np.random.Generator, reach: float = 0.1) -> Floats:
    """`n x m` losses to ask a conditional generator for: points of the front, each pushed beyond itself.

    Less crowded front points are asked for more often; each is moved by up to `reach` of the archive's range
    towards better values. Where nothing is feasible, the least violating points serve as the front. With several fronts
    the points of any that have all numbers are asked for.
    """
    chosen = state.front_indices if len(state.front_indices) else state.order[:1]
    if state.front_devices:
        chosen = chosen[~np.isnan(state.losses[chosen]).any(axis=1)]
    losses = state.losses[chosen]
    if len(losses) == 0 or np.isnan(losses).any():
        raise ValueError("request() wants at least one evaluated architecture without a failure")
    good = state.losses[~np.isnan(state.losses).any(axis=1)]
    span = good.max(axis=0) - good.min(axis=0)
    crowding = pareto.crowding_distance(losses)
    finite = crowding[np.isfinite(crowding)]
    crowding = np.where(np.isfinite(crowding), crowding, finite.max() if len(finite) and finite.max() > 0 else 1.0)
    chance = (crowding + 1e-9) / (crowding + 1e-9).sum()
    picked = losses[rng.choice(len(losses), size=n, p=chance)]
    return np.asarray(picked - reach * rng.random((n, losses.shape[1])) * span)
