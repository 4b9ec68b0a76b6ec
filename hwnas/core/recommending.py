"""Which architecture a search recommends: on one device, and one for all its devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.core import picking
from hwnas.core.metrics import METRICS
from hwnas.core.objective import Objective
from hwnas.core.state import SearchState
from hwnas.core.wording import known, quantity

Floats = NDArray[np.float64]


def primary_objective(state: SearchState) -> int:
    """Index of the objective that 'best' is about: the first without a budget of its own, else the first.

    With the objectives latency and error and a latency budget, the best is the one of least error.
    """
    bounded = {(c.metric, c.device) for c in state.constraints}
    free = [j for j, o in enumerate(state.objectives) if (o.metric, o.device) not in bounded]
    return free[0] if free else 0


def undecided(state: SearchState) -> bool:
    """Whether there are several objectives and no budget that says which of them is left to improve."""
    return not state.constraints and len(state.objectives) > 1


def by_weights(state: SearchState, weights: Sequence[float], place: int = 0) -> int | None:
    """Archive index of the front's best (place 0), second best (1), ... by importances of the objectives.

    Args:
        state: The search.
        weights: `m` numbers above 0.
        place: Which one.

    Returns:
        None where the front has none of that place.
    """
    front = state.front_indices
    if place >= len(front):
        return None
    values = picking.asf_values(state.losses[front], weights)
    return int(front[np.argsort(values, kind="stable")[place]])


def recommend(state: SearchState, weights: Sequence[float] | None = None) -> int | None:
    """Archive index of the architecture to take.

    With budgets, or with one objective: the best feasible one in the primary objective. Without any budget and
    with several objectives: the front's best by `weights`, where there are some, else its knee, since the best in one
    objective alone ignores the others. With several fronts: the portfolio's, where it meets all budgets.

    Returns:
        None where nothing is feasible.
    """
    if state.front_devices and state.archive:
        chosen = portfolio(state, weights)
        return chosen.index if chosen is not None and chosen.admissible else None
    front = state.front_indices
    if len(front) and undecided(state):
        if weights is not None:
            return by_weights(state, weights)
        return int(front[picking.knee(state.losses[front])])
    return picking.best_under_budget(state.losses, state.violations, primary_objective(state))


@dataclass(frozen=True)
class Portfolio:
    """The one architecture to ship to several devices.

    Attributes:
        index: Its place in the archive.
        regrets: By device, how far it is behind the best that was found there, 0 or more; empty where it meets not all
            budgets, as nothing does.
        violations: By device, its relative excess over the budgets there, summed; all 0 where it may be shipped.
        metric: What the regrets are about; None where they are about a compromise of several objectives.
        relative: Whether regrets are shares of the device's best (for what differs from device to device by orders of
            magnitude), not differences in the metric's unit.
        weighted: Whether importances of the objectives were given; regrets in a compromise are multiples of them then.
    """

    index: int
    regrets: Mapping[str, float]
    violations: Mapping[str, float]
    metric: str | None = None
    relative: bool = False
    weighted: bool = False

    @property
    def admissible(self) -> bool:
        """Whether it meets every budget on every device."""
        return not any(self.violations.values())

    @property
    def worst(self) -> float | None:
        """The largest regret, which no other architecture undercuts; None where there is none."""
        return max(self.regrets.values()) if self.regrets else None

    def told(self, device: str) -> str:
        """Its regret, or else its excess over the budgets, on a device in plain words."""
        if not self.regrets:
            excess = self.violations[device]
            if excess > 1:
                return f"{1 + excess:.1f} times the budget of {device}"
            return f"{100 * excess:.1f} % over budget on {device}" if excess else f"within budget on {device}"
        behind = self.regrets[device]
        if behind == 0:
            return f"as good as the best found for {device}"
        if self.metric is None:
            range_ = "the front's range times the weights" if self.weighted else "the front's range"
            return f"{100 * behind:.0f} % of {range_} behind the best compromise on {device}"
        what = known(self.metric)
        if self.relative:
            return f"{100 * behind:.1f} % more {what.title} than the best found for {device}"
        amount = (
            f"{quantity(self.metric, behind, unit=False)} points" if what.unit == "%" else quantity(self.metric, behind)
        )
        return f"{amount} of {what.title} behind the best found for {device}"


def portfolio(
    state: SearchState, weights: Sequence[float] | None = None, *, by_weights: bool = False
) -> Portfolio | None:
    """The evaluated architecture whose largest regret over the devices is least.

    Regret on a device is the value there less the best value that any evaluated architecture has there, among those
    that meet the device's budgets. Where on every device one and the same metric is left to improve (the others have
    budgets, or there are none), that is the value: an error in points, a device's own metric as a share of its best.
    Elsewhere it is the scalarised loss by `weights` on the device's front (`core.picking.asf_values`). Equals are told
    apart by the sum of regrets, then by the largest scalarised loss.

    Args:
        state: A search with several fronts.
        weights: `m` importances of its objectives; all 1 when not given.
        by_weights: Whether the scalarised loss decides in any case.

    Returns:
        None where every architecture failed on some device. Where none meets all budgets, the one whose largest excess
        over the budgets of a device is least.
    """
    goals = state.by_device
    failed = np.any([np.isnan(goal.losses).any(axis=1) for goal in goals.values()], axis=0)
    over = np.stack([goal.violations for goal in goals.values()], axis=1)
    compromise = np.stack([_compromise(state, goal, weights) for goal in goals.values()], axis=1)
    metric = None if by_weights else _left_to_improve(goals.values())
    relative = metric is not None and METRICS[metric].per_device
    values = compromise
    if metric is not None:
        own = [goal.losses[:, primary_objective(goal)] for goal in goals.values()]
        values = np.stack(
            [np.where(goal.violations == 0, loss, np.nan) for goal, loss in zip(goals.values(), own, strict=True)],
            axis=1,
        )
    regret = picking.regrets(values)
    if relative:
        regret = regret / np.abs(values - regret)
    index = picking.least_worst_regret(regret, np.max(compromise, axis=1))
    if index is not None:
        told = dict(zip(goals, map(float, regret[index]), strict=True))
        return Portfolio(index, told, dict.fromkeys(goals, 0.0), metric, relative, weights is not None)
    candidates = np.flatnonzero(np.isfinite(over).all(axis=1) & ~failed)
    if len(candidates) == 0:
        return None
    least = np.lexsort((candidates, over[candidates].sum(axis=1), over[candidates].max(axis=1)))[0]
    index = int(candidates[least])
    return Portfolio(index, {}, dict(zip(goals, map(float, over[index]), strict=True)), metric, relative)


def with_common(rows: Iterable[int], state: SearchState, weights: Sequence[float] | None = None) -> tuple[int, ...]:
    """Archive indices, each once, and with several fronts that of the one architecture for all devices behind them."""
    common = recommend(state, weights) if state.front_devices else None
    return tuple(dict.fromkeys([*map(int, rows), *([] if common is None else [common])]))


def presented(state: SearchState, weights: Sequence[float] | None = None) -> tuple[int, ...]:
    """Archive indices that reports and exports hold: the front, and with several fronts the one architecture for all
    devices, which may be on none of them."""
    return with_common(state.front_indices, state, weights)


def weights_of(state: SearchState, goal: SearchState, weights: Sequence[float]) -> tuple[float, ...]:
    """The importances of a device's own objectives, out of those of all."""
    found: dict[Objective, float] = dict(zip(state.objectives, weights, strict=True))
    return tuple(found[objective] for objective in goal.objectives)


def _left_to_improve(goals: Iterable[SearchState]) -> str | None:
    """The metric that is to be improved within the budgets on every device; None where there is no such one."""
    found = {None if undecided(goal) else goal.objectives[primary_objective(goal)].metric for goal in goals}
    return found.pop() if len(found) == 1 else None


def _compromise(state: SearchState, goal: SearchState, weights: Sequence[float] | None) -> Floats:
    """`n` scalarised losses of a device, by the range of its front; nan for what is not feasible there."""
    values = np.full(len(goal.archive), np.nan)
    feasible = np.flatnonzero(goal.violations == 0)
    if len(feasible):
        importance = weights_of(state, goal, weights or (1.0,) * len(state.objectives))
        values[feasible] = picking.asf_values(goal.losses[feasible], importance, goal.losses[goal.front_indices])
    return values
