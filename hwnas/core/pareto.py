"""Pareto arithmetic on losses. Sorting and crowding are pymoo's, hypervolume and dominance moocore's.

Everything here takes an `n x m` array of losses (minimised). Rows with nan are failures: they are never on
a front and never given a big number instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ParetoFront:
    """Mutually non-dominated architectures, by ascending first objective; the union of such, where a search has
    several.

    Attributes:
        architectures: `n` of them.
        losses: `n x m`, minimised.
        objectives: Names of the `m` columns.
    """

    architectures: tuple[Architecture, ...]
    losses: Floats
    objectives: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.architectures)


@dataclass(frozen=True, slots=True)
class Shared:
    """What values of one kind have in common, so that it counts only between values of different kinds.

    Attributes:
        halves: `n x m`, that part of half of each value's interval.
        kinds: `n x m`, numbers of the kinds.
    """

    halves: Floats
    kinds: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> Shared:
        """Of some rows."""
        return Shared(self.halves[rows], self.kinds[rows])


def non_dominated(losses: Floats, half_widths: Floats | None = None, shared: Shared | None = None) -> NDArray[np.bool_]:
    """Which rows no other row dominates.

    With `half_widths`, differences inside the joint interval sqrt(h_a^2 + h_b^2) are ties: a dominates b
    if it is tied or better in every objective and better by more than the joint interval in at least one.
    Only rows of the ordinary front may dominate, and one of them falls only to another that stays, so that chains
    and circles of ties cannot empty the front.

    Args:
        losses: `n x m`. Rows with nan are never on the front. Duplicates are all kept.
        half_widths: `n x m`, half of each value's interval; None or 0 for exact values.
        shared: What of the intervals is not in `half_widths`; joint intervals of two kinds contain it.

    Returns:
        `n` booleans.
    """
    import moocore

    result = np.zeros(len(losses), dtype=np.bool_)
    rows = np.flatnonzero(~np.isnan(losses).any(axis=1))
    if len(rows) == 0:
        return result
    result[rows] = moocore.is_nondominated(losses[rows], keep_weakly=False)
    result[rows] |= _equal_to_any(losses[rows], losses[result])
    if half_widths is None or not np.any(half_widths > 0):
        return result
    front = np.flatnonzero(result)
    difference = losses[front, None, :] - losses[None, rows, :]  # front x rows x m
    joint = np.hypot(half_widths[front, None, :], half_widths[None, rows, :])
    if shared is not None:
        apart = shared.kinds[front, None, :] != shared.kinds[None, rows, :]
        common = np.hypot(shared.halves[front, None, :], shared.halves[None, rows, :])
        joint = np.hypot(joint, np.where(apart, common, 0.0))
    clearly = np.asarray((difference < -joint).any(axis=2), dtype=np.bool_)
    beats = clearly & (difference <= joint).all(axis=2)  # front x rows
    on_front = result[rows]
    # a dominated row that nothing beats by more than the intervals is not resolved: it stays
    result[rows] = ~beats.any(axis=0)
    result[front] = ~_beaten_by_a_survivor(beats[:, on_front])
    return result


def _beaten_by_a_survivor(beats: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of `n` rows fall, given who beats whom (`n x n`): a row falls only to one that stays itself.

    With three objectives ties can be circular, each row beating the next; those rows all stay.
    """
    undecided = np.ones(len(beats), dtype=np.bool_)
    fallen = np.zeros(len(beats), dtype=np.bool_)
    while True:
        stays = undecided & ~beats[undecided].any(0)
        if not stays.any():
            return fallen
        falls = undecided & beats[stays].any(0)
        fallen |= falls
        undecided &= ~(stays | falls)


def _equal_to_any(rows: Floats, of: Floats) -> NDArray[np.bool_]:
    return np.asarray((rows[:, None, :] == of[None, :, :]).all(2).any(1), dtype=np.bool_)


def pareto_ranks(losses: Floats) -> NDArray[np.int64]:
    """Rank of each row in fast non-dominated sorting (Deb et al. 2002): 0 for the front, n for rows with nan.

    Args:
        losses: `n x m`.
    """
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    ranks = np.full(len(losses), len(losses), dtype=np.int64)
    rows = np.flatnonzero(~np.isnan(losses).any(axis=1))
    if len(rows):
        for rank, front in enumerate(NonDominatedSorting().do(losses[rows])):
            ranks[rows[front]] = rank
    return ranks


def crowding_distance(losses: Floats) -> Floats:
    """How far each point of a front is from its neighbours (Deb et al. 2002, doi:10.1109/4235.996017, sec. III-B).

    Args:
        losses: `n x m`, minimised, mutually non-dominated. Any units.

    Returns:
        Mean over objectives of the gap between both neighbours, scaled to the front's range; unitless. `inf`
        at both ends of every objective.

    Raises:
        ValueError: If `losses` holds nan; drop failed architectures first.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    if np.isnan(losses).any():
        raise ValueError("crowding distance wants losses without nan; drop failed architectures first")
    if len(losses) == 0:
        return np.zeros(0)
    return np.asarray(calc_crowding_distance(losses, filter_out_duplicates=False), dtype=np.float64)


def order(losses: Floats, violations: Floats | None = None) -> NDArray[np.int64]:
    """Indices from best to worst: violation, then Pareto rank, then crowding (less crowded first).

    Pareto rank and crowding are taken among rows of equal feasibility. Rows with nan come last.

    Args:
        losses: `n x m`.
        violations: `n`, 0 where every budget is met, inf for failures; None for no budgets.
    """
    n = len(losses)
    failed = np.isnan(losses).any(axis=1)
    violation = np.zeros(n) if violations is None else np.asarray(violations, dtype=np.float64).copy()
    violation[failed] = np.inf
    rank = np.full(n, n, dtype=np.int64)  # failures keep this: behind rows that only miss a budget's number
    crowding = np.zeros(n)
    for group in (np.flatnonzero(violation == 0), np.flatnonzero((violation > 0) & ~failed)):
        rank[group] = pareto_ranks(losses[group])
        for level in np.unique(rank[group]):
            members = group[rank[group] == level]
            crowding[members] = crowding_distance(losses[members])
    return np.lexsort((np.arange(n), -crowding, rank, violation))


def hypervolume(losses: Floats, reference: Sequence[float] | Floats) -> float:
    """Volume that the rows dominate up to `reference` (moocore). Rows with nan or beyond it add nothing.

    Args:
        losses: `n x m`.
        reference: `m` coordinates of the reference point; state them wherever the number is shown.
    """
    import moocore

    point = np.asarray(reference, dtype=np.float64)
    rows = losses[~np.isnan(losses).any(axis=1)]
    rows = rows[(rows < point).all(axis=1)]
    return float(moocore.hypervolume(rows, ref=point)) if len(rows) else 0.0


def reference_point(losses: Floats, margin: float = 0.1) -> Floats:
    """A reference point for runs without a known table: the worst finite loss plus `margin` of the range.

    Args:
        losses: `n x m`.

    Returns:
        `m` coordinates; ones where there is no finite row.
    """
    rows = losses[~np.isnan(losses).any(axis=1)]
    if len(rows) == 0:
        return np.ones(losses.shape[1])
    low, high = rows.min(axis=0), rows.max(axis=0)
    return np.asarray(high + margin * np.where(high > low, high - low, np.maximum(np.abs(high), 1.0)))
