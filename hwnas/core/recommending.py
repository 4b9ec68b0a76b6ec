"""Which architecture a search recommends: on one device, and one for all its devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwnas.core import picking
from hwnas.core.measurement import Measurement
from hwnas.core.metrics import CLASSES, METRICS
from hwnas.core.objective import Objective
from hwnas.core.state import SearchState
from hwnas.core.wording import difference, known, percent

Floats = NDArray[np.float64]

_HARDLY = 1.5  # times as often right as guessing


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


def guessed(row: Measurement) -> float | None:
    """Error of guessing, %, where a network's error is hardly better than that: at most half again as often right; else
    None, as for data sets that hwnas does not know."""
    classes = CLASSES.get(row.context.dataset or "")
    if classes is None or not row.status.has_value or 100 - row.value > _HARDLY * 100 / classes:
        return None
    return 100 * (1 - 1 / classes)


def error_column(state: SearchState) -> tuple[str, str | None] | None:
    """Metric and device of the first objective that is an error; None where there is none."""
    return next(((o.metric, o.device) for o in state.objectives if o.metric.endswith("error_pct")), None)


def guessers(state: SearchState) -> NDArray[np.bool_]:
    """`n`: which networks classify hardly better than guessing, by the first objective that is an error."""
    column = error_column(state)
    rows = (None if column is None else evaluation.find(*column) for evaluation in state.archive)
    return np.array([row is not None and guessed(row) is not None for row in rows], dtype=np.bool_)


def compared(state: SearchState) -> NDArray[np.int64]:
    """Archive indices of the front, those that only guess left out: their errors would stretch the range that the
    others are compared in. All of it where every network of the front guesses."""
    front = state.front_indices
    kept = front[~guessers(state)[front]]
    return kept if len(kept) else front


def knee(state: SearchState) -> int:
    """Archive index of the front's knee, among those of `compared`. The front has to hold something."""
    rows = compared(state)
    return int(rows[picking.knee(state.losses[rows])])


def by_weights(state: SearchState, weights: Sequence[float], place: int = 0) -> int | None:
    """Archive index of the front's best (place 0), second best (1), ... by importances of the objectives, among those
    of `compared`.

    Args:
        state: The search.
        weights: `m` numbers above 0.
        place: Which one.

    Returns:
        None where the front has none of that place.
    """
    front = compared(state)
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
        return knee(state)
    return picking.best_under_budget(state.losses, state.violations, primary_objective(state))


def runner_up(state: SearchState, weights: Sequence[float] | None = None) -> int | None:
    """Archive index of the next best after the recommended one by what recommended it; None where there is none: a
    knee has no second, nor has the one for several fronts."""
    best = recommend(state, weights)
    if best is None or state.front_devices or (undecided(state) and weights is None):
        return None
    if weights is not None and undecided(state):
        return by_weights(state, weights, place=1)
    violations = state.violations.copy()
    violations[best] = np.inf
    return picking.best_under_budget(state.losses, violations, primary_objective(state))


@dataclass(frozen=True)
class Portfolio:
    """The one architecture to ship to several devices.

    Attributes:
        index: Its place in the archive.
        regrets: By device, how far it is behind the best that was found there, 0 or more; empty where it meets not all
            budgets, as nothing does.
        violations: By device, its relative excess over the budgets there, summed; all 0 where it may be shipped.
        metric: What the regrets are about; None where they are shares of the range of each device's front, as some
            device has several objectives to compromise between, or another metric left to improve.
        relative: Whether regrets are shares of the device's best (for what differs from device to device by orders of
            magnitude), not differences in the metric's unit.
        weighted: Whether importances of the objectives were given; regrets in a compromise are multiples of them then.
        behind: By device with one metric left to improve, where regrets are shares of ranges: that metric and how far
            it is behind in its unit.
        best: By device, the archive index of the best that was found there; empty as regrets.
    """

    index: int
    regrets: Mapping[str, float]
    violations: Mapping[str, float]
    metric: str | None = None
    relative: bool = False
    weighted: bool = False
    behind: Mapping[str, tuple[str, float]] = field(default_factory=dict, hash=False)
    best: Mapping[str, int] = field(default_factory=dict, hash=False)

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
        compromise = self.metric is None and device not in self.behind
        if behind == 0:
            return (
                f"the most balanced network for {device}" if compromise else f"as good as the best found for {device}"
            )
        share = f"{percent(behind)} of the front's range{' times the weights' if self.weighted else ''}"
        if device in self.behind:
            metric, amount = self.behind[device]
            return f"{difference(metric, amount)} of {known(metric).title} ({share}) behind the best found for {device}"
        if self.metric is None:
            return f"{share} behind the most balanced network for {device} (query {self.best[device] + 1})"
        what = known(self.metric)
        if self.relative:
            return f"{100 * behind:.1f} % more {what.title} than the best found for {device}"
        return f"{difference(self.metric, behind)} of {what.title} behind the best found for {device}"


def portfolio(
    state: SearchState, weights: Sequence[float] | None = None, *, by_weights: bool = False
) -> Portfolio | None:
    """The evaluated architecture whose largest regret over the devices is least.

    Regret on a device is the value there less the best value that any evaluated architecture has there, among those
    that meet the device's budgets. Where on every device one and the same metric is left to improve (the others have
    budgets, or there are none), that is the value: an error in points, a device's own metric as a share of its best.
    Elsewhere values have to be shares of the range of the device's front: of the one metric that its budgets leave to
    improve, or the scalarised loss by `weights` of all its objectives (`core.picking.asf_values`). Equals are told
    apart by the sum of regrets, then by the largest scalarised loss. Networks that only guess (`guessers`) are left out
    where another one may be shipped.

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
    compromise = np.stack([_scalarised(state, goal, weights) for goal in goals.values()], axis=1)
    left = {device: None if by_weights else _left_to_improve(goal) for device, goal in goals.items()}
    metric = next(iter(left.values())) if len(set(left.values())) == 1 else None
    relative = metric is not None and METRICS[metric].per_device
    own = np.stack([np.where(g.violations == 0, g.losses[:, primary_objective(g)], np.nan) for g in goals.values()], 1)
    values = own
    if metric is None:
        values = np.stack([_scalarised(state, goals[device], weights, name) for device, name in left.items()], 1)
    for left_out in (guessers(state), np.zeros(len(values), dtype=np.bool_)):
        usable = np.where(left_out[:, None], np.nan, values)
        regret = picking.regrets(usable)
        if relative:
            regret = regret / np.abs(usable - regret)
        index = picking.least_worst_regret(regret, np.max(compromise, axis=1))
        if index is not None:
            best = dict(zip(goals, map(int, np.nanargmin(usable, axis=0)), strict=True))
            behind = {
                device: (name, float(own[index, j] - own[best[device], j]))
                for j, (device, name) in enumerate(left.items())
                if metric is None and name is not None
            }
            told = dict(zip(goals, map(float, regret[index]), strict=True))
            none = dict.fromkeys(goals, 0.0)
            return Portfolio(index, told, none, metric, relative, weights is not None, behind, best)
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


def _left_to_improve(goal: SearchState) -> str | None:
    """The metric that is to be improved within a device's budgets; None where it has none and several objectives."""
    return None if undecided(goal) else goal.objectives[primary_objective(goal)].metric


def _scalarised(
    state: SearchState, goal: SearchState, weights: Sequence[float] | None, metric: str | None = None
) -> Floats:
    """`n` scalarised losses of a device, by the range of its front; nan for what is not feasible there.

    Args:
        state: The search.
        goal: The device's part of it.
        weights: Importances of the search's objectives; all 1 when not given.
        metric: What alone is left to improve on the device; None for all its objectives.
    """
    values = np.full(len(goal.archive), np.nan)
    feasible = np.flatnonzero(goal.violations == 0)
    if len(feasible):
        importance = np.array(weights_of(state, goal, weights or (1.0,) * len(state.objectives)))
        columns = np.arange(len(importance)) if metric is None else np.array([primary_objective(goal)])
        front = goal.losses[np.ix_(compared(goal), columns)]
        values[feasible] = picking.asf_values(goal.losses[np.ix_(feasible, columns)], list(importance[columns]), front)
    return values
