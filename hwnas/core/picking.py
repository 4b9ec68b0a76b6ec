"""Choosing one architecture from a front, with pymoo's decision making; and one for several devices, by regret."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def best_under_budget(losses: Floats, violations: Floats, objective: int = 0) -> int | None:
    """The row with the least loss in one objective among rows that meet every budget; ties go to the
    row that is better in the other objectives' order.

    Args:
        losses: `n x m`.
        violations: `n`, 0 where every budget is met.

    Returns:
        Its index, or None where no row is feasible.
    """
    feasible = np.flatnonzero((violations == 0) & ~np.isnan(losses).any(axis=1))
    if len(feasible) == 0:
        return None
    others = [losses[feasible, j] for j in reversed(range(losses.shape[1])) if j != objective]
    return int(feasible[np.lexsort((*others, losses[feasible, objective]))[0]])


def nearest_to_feasible(losses: Floats, violations: Floats) -> int | None:
    """The row with the least violation, for runs that found nothing feasible; None where all failed."""
    candidates = np.flatnonzero(np.isfinite(violations) & ~np.isnan(losses).any(axis=1))
    return int(candidates[np.argmin(violations[candidates])]) if len(candidates) else None


def knee(losses: Floats) -> int:
    """The point of a front with the highest trade-off: leaving it costs most (Rachmawati and Srinivasan 2009,
    as pymoo's `HighTradeoffPoints` computes it on normalised losses).

    Args:
        losses: `n x m`, mutually non-dominated, without nan; n >= 1.

    Returns:
        Its index. A front of one or two different points has no inner point: the one nearest to the ideal is returned.
    """
    with warnings.catch_warnings():  # pymoo imports a name that scipy has moved
        warnings.simplefilter("ignore", DeprecationWarning)
        from pymoo.mcdm.high_tradeoff import HighTradeoffPoints

    scaled = normalise(losses)
    if len(np.unique(losses, axis=0)) > 2:
        # pymoo returns outliers of the trade-off, None where no point stands out
        picked = HighTradeoffPoints(normalize=False)(scaled)
        if picked is not None and len(np.atleast_1d(picked)):
            few = np.atleast_1d(picked)
            return int(few[np.argmin(np.linalg.norm(scaled[few], axis=1))])
    return int(np.argmin(np.linalg.norm(scaled, axis=1)))


def asf(losses: Floats, weights: Sequence[float]) -> int:
    """The row that minimises the achievement scalarising function, max_j weight_j * loss_j (Wierzbicki 1980,
    pymoo's `ASF`).

    Args:
        losses: `n x m`, without nan; normalised to the front's range here.
        weights: `m` importances above 0; a larger weight asks for less loss in that objective.

    Raises:
        ValueError: If `weights` is not `m` finite numbers above 0.
    """
    return int(np.argmin(asf_values(losses, weights)))


def asf_values(losses: Floats, weights: Sequence[float], front: Floats | None = None) -> Floats:
    """What `asf` minimises, for each row: `n` values; errors as there.

    Args:
        losses: `n x m`, without nan.
        weights: `m` importances above 0.
        front: `k x m`, k >= 1: the front whose range is the scale; `losses` themselves when not given.
    """
    from pymoo.decomposition.asf import ASF

    importance = np.asarray(weights, dtype=np.float64)
    if importance.shape != (losses.shape[1],) or not (np.isfinite(importance) & (importance > 0)).all():
        raise ValueError(f"asf wants {losses.shape[1]} weights above 0, one per objective; got {list(weights)}")
    # pymoo divides by its weights, so they are the inverse of an importance
    return np.asarray(ASF().do(normalise(losses, front), 1.0 / importance), dtype=np.float64).reshape(-1)


def normalise(losses: Floats, front: Floats | None = None) -> Floats:
    """Each column scaled to 0..1 over the rows of `front`, over all rows when it is not given or constant there; a
    constant column becomes 0."""
    known = losses if front is None else front
    low, high = known.min(axis=0), known.max(axis=0)
    span = np.where(high > low, high - low, losses.max(axis=0) - losses.min(axis=0))
    return np.asarray((losses - low) / np.where(span > 0, span, 1.0))


def regrets(values: Floats) -> Floats:
    """How much each architecture loses on each device against the best one there (Savage 1951).

    Args:
        values: `n x d`, what is minimised on each of `d` devices; nan where an architecture may not be chosen, as it
            failed or is over a budget there.

    Returns:
        `n x d`, 0 for the best of a device; nan where `values` is. In the units of `values`.
    """
    if len(values) == 0:
        return np.zeros_like(values)
    best = np.min(values, axis=0, where=~np.isnan(values), initial=np.inf)
    return np.asarray(values - np.where(np.isfinite(best), best, np.nan))


def least_worst_regret(regret: Floats, ties: Floats | None = None) -> int | None:
    """The architecture to choose where one has to do for all devices: the one whose largest regret is least.

    Args:
        regret: `n x d` of `regrets`.
        ties: `n`: the smaller one decides between equals in largest regret and in the sum of regrets; then the first
            does.

    Returns:
        Its index; None where no architecture may be chosen on every device.
    """
    rows = np.flatnonzero(~np.isnan(regret).any(axis=1))
    if len(rows) == 0 or regret.shape[1] == 0:
        return None
    last = np.zeros(len(rows)) if ties is None else ties[rows]
    return int(rows[np.lexsort((rows, last, regret[rows].sum(axis=1), regret[rows].max(axis=1)))[0]])
