"""Which numbers a two-dimensional plot of a run shows, and how its points are grouped; shared by both plotters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.core.objective import Constraint
from hwnas.report.view import Column, RunView

# Okabe and Ito's palette: told apart with any colour vision; shapes differ as well
BLUE, ORANGE, GREEN, RED, GREY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8c8c8c", "#CC79A7"


SHADES = ("#FFF3D6", ORANGE, "#5A2E00")  # least to most; its middle is the front's own colour
FRONT = "front"
MARKED = "flagged, or runs above the budget"


@dataclass(frozen=True)
class Projection:
    """Two axes of a run.

    Attributes:
        x: Column of the horizontal axis; None for the order of evaluation.
        y: Column of the vertical axis.
        line: Whether the front is a curve in these two axes (two objectives, both shown).
        shade: The objective that is on neither axis, where there is just one: without it points of the front seem to be
            dominated. The front's points are coloured by it.
    """

    x: Column | None
    y: Column
    line: bool
    shade: Column | None = None

    def coordinates(self, view: RunView) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`n` and `n`; nan where there is no number."""
        across = np.arange(1.0, view.n + 1) if self.x is None else view.values[:, view.columns.index(self.x)]
        return across, view.values[:, view.columns.index(self.y)]

    def spreads(self, view: RunView) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`n x 2` and `n x 2`: how far each interval reaches below and above its value; 0 where there is none."""
        across = np.zeros((view.n, 2)) if self.x is None else view.spreads[:, view.columns.index(self.x)]
        return across, view.spreads[:, view.columns.index(self.y)]

    def titles(self, view: RunView) -> tuple[str, str]:
        return "evaluation" if self.x is None else view.title(self.x), view.title(self.y)

    def bounds(self, view: RunView) -> tuple[list[Constraint], list[Constraint]]:
        """Budgets on the horizontal and on the vertical axis."""
        every = view.state.constraints
        return (
            [c for c in every if (c.metric, c.device) == self.x],
            [c for c in every if (c.metric, c.device) == self.y],
        )


def projections(view: RunView) -> list[Projection]:
    """The primary objective over each other objective and over each budgeted metric; over time if it is alone."""
    y = (view.objective.metric, view.objective.device)
    budgets = [(c.metric, c.device) for c in view.state.constraints]
    objectives = [(o.metric, o.device) for o in view.state.objectives]
    # what has a budget is asked about first
    others = [c for c in dict.fromkeys([*budgets, *objectives]) if c != y]
    both = len(objectives) == 2
    return [
        Projection(x, y, both and x in objectives, _only([c for c in objectives if c not in (x, y)])) for x in others
    ] or [Projection(None, y, False)]


def _only(columns: list[Column]) -> Column | None:
    return columns[0] if len(columns) == 1 else None


def marked(view: RunView, projection: Projection) -> list[int]:
    """Archive indices of points with a mark beside a figure that is shown: `RunView.cell_marks`."""
    columns = [column for column in (projection.x, projection.y) if column is not None]
    return [i for i in range(view.n) if any(view.cell_marks(i, column) for column in columns)]


def shades(view: RunView, projection: Projection, group: Group) -> NDArray[np.float64] | None:
    """What the points of a group are coloured by, in the metric's unit; None where they have the group's colour."""
    if projection.shade is None or group.name != FRONT:
        return None
    return view.values[group.indices, view.columns.index(projection.shade)]


@dataclass(frozen=True)
class Group:
    """Points that look alike.

    Attributes:
        name: What they are.
        indices: Archive indices.
        colour: Of the marker.
        plotly: Marker symbol there.
        matplotlib: Marker symbol there.
        size: Diameter in points.
        total: How many there are in all, those included that have a mark of their own.
    """

    name: str
    indices: list[int]
    colour: str
    plotly: str
    matplotlib: str
    size: float
    total: int

    @property
    def label(self) -> str:
        """For the legend: name and total."""
        return f"{self.name} ({self.total})" if self.total > 1 else self.name


def groups(view: RunView) -> list[Group]:
    """All points with numbers, each in one group, drawn in this order; empty groups are left out."""
    front = set(view.front)
    common = None if view.common is None or view.failed[view.common] else view.common
    special = {i for i in (view.recommended, common, view.knee, view.nearest) if i is not None}
    plain = [i for i in range(view.n) if not view.failed[i] and i not in special]
    inside = "within budget, not on the front" if view.state.constraints else "not on the front"
    over = int((~view.feasible & ~view.failed).sum())
    others = int(view.feasible.sum()) - len(front)
    knee = [] if view.knee in (None, view.recommended, common) else [view.knee]
    for_all = [] if common in (None, view.recommended) else [common]
    found = [
        Group("over budget", [i for i in plain if not view.feasible[i]], GREY, "x-thin-open", "x", 7, over),
        Group(inside, [i for i in plain if view.feasible[i] and i not in front], BLUE, "circle-open", "o", 7, others),
        Group(FRONT, [i for i in view.front if i not in special], ORANGE, "circle", "o", 9, len(front)),
        Group("knee", [i for i in knee if i is not None], PURPLE, "diamond", "D", 11, 1),
        Group("for all devices", [i for i in for_all if i is not None], BLUE, "hexagon", "h", 13, 1),
        Group("recommended", [] if view.recommended is None else [view.recommended], GREEN, "star", "*", 18, 1),
        Group("nearest", [] if view.nearest is None else [view.nearest], RED, "triangle-up", "^", 13, 1),
    ]
    return [group for group in found if group.indices]


def staircase(view: RunView, projection: Projection) -> tuple[list[float], list[float]]:
    """The attained edge of the front in a projection: corners between its points; empty where it is no curve."""
    if not projection.line or len(view.front) < 2:
        return [], []
    losses = view.state.losses
    j = next(k for k, o in enumerate(view.state.objectives) if (o.metric, o.device) == projection.x)
    x, y = projection.coordinates(view)
    rows = sorted(view.front, key=lambda i: (losses[i, j], losses[i, view.primary]))
    across, up = [float(x[rows[0]])], [float(y[rows[0]])]
    least = losses[rows[0], view.primary]
    for row in rows[1:]:
        # points that are on the front only because an interval leaves their order open are no corners
        if losses[row, view.primary] < least:
            least = losses[row, view.primary]
            # between two points only the worse of both values is attained
            across += [float(x[row]), float(x[row])]
            up += [up[-1], float(y[row])]
    return across, up


def span(view: RunView, projection: Projection) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of both axes: all points, intervals and budgets with a margin; (0, 1) where there is nothing."""
    bounds = projection.bounds(view)
    pairs = zip(projection.coordinates(view), projection.spreads(view), bounds, strict=True)
    logs = (False, logarithmic(view, projection))
    across, up = (
        _limits(values, spreads, [c.bound for c in budgets], log)
        for (values, spreads, budgets), log in zip(pairs, logs, strict=True)
    )
    return across, up


def feasible_area(view: RunView, projection: Projection) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The part of the plot that meets every budget shown in it, as limits of both axes; None without budgets."""
    if not any(projection.bounds(view)):
        return None
    sides = []
    for (low, high), constraints in zip(span(view, projection), projection.bounds(view), strict=True):
        above = [c.bound for c in constraints if c.goal == "max"]
        below = [c.bound for c in constraints if c.goal == "min"]
        sides.append((max([low, *above]), min([high, *below])))
    return sides[0], sides[1]


def logarithmic(view: RunView, projection: Projection) -> bool:
    """Whether the vertical axis is better logarithmic: a few failed networks (90 % error) would else press all
    others into its lowest quarter, where the front is."""
    _, y = projection.coordinates(view)
    good = y[np.isfinite(y)]
    if good.size < 10 or good.min() <= 0 or good.max() < 5 * good.min():
        return False
    return bool(np.median(good) < good.min() + 0.25 * (good.max() - good.min()))


def _limits(
    values: NDArray[np.float64], spreads: NDArray[np.float64], bounds: list[float], log: bool
) -> tuple[float, float]:
    good = np.isfinite(values)
    every = np.concatenate([(values - spreads[:, 0])[good], (values + spreads[:, 1])[good], values[good], bounds])
    if log:
        every = every[every > 0]
    if not every.size:
        return 0.0, 1.0
    low, high = float(every.min()), float(every.max())
    if log:
        return low / 1.15, high * 1.15
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
