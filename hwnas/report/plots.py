"""The report's interactive plots as plotly figures: plain dicts, as plotly.js reads them.

Colours that depend on the page's theme are written @fg, @muted, @grid, @bg, @card and @accent; the page fills them in.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np

from hwnas.core.objective import Constraint
from hwnas.core.wording import heading, known
from hwnas.profiling.runs import LATENCY
from hwnas.report.axes import (
    BLUE,
    GREEN,
    GREY,
    MARKED,
    ORANGE,
    RED,
    SHADES,
    Group,
    Projection,
    feasible_area,
    groups,
    logarithmic,
    marked,
    projections,
    shades,
    span,
    staircase,
)
from hwnas.report.view import Column, Floats, RunView

Figure = dict[str, Any]


def every_plot(view: RunView) -> dict[str, Figure]:
    """All interactive plots by the id of the page's element they belong to; with several fronts those of each device,
    with its place among them in front."""
    if view.devices:
        each = enumerate(view.devices.values())
        return {f"device-{k}-{name}": figure for k, own in each for name, figure in every_plot(own).items()}
    found = {f"front-{k}": front_plot(view, plot) for k, plot in enumerate(projections(view))}
    if len(view.state.objectives) > 2 and not view.failed.all():
        found["parallel"] = parallel_plot(view)
    if view.feasible.any():
        found["hypervolume"] = hypervolume_plot(view)
        found["best"] = best_plot(view)
    return found


def front_plot(view: RunView, plot: Projection) -> Figure:
    """All evaluated points in two axes with intervals, front, budgets and feasible area."""
    across, up = plot.titles(view)
    (left, right), (bottom, top) = span(view, plot)
    layout = _layout(across, up)
    layout["xaxis"]["range"], layout["yaxis"]["range"] = [left, right], [bottom, top]
    if logarithmic(view, plot):
        layout["yaxis"] |= {"type": "log", "range": [math.log10(bottom), math.log10(top)], **_log_ticks(bottom, top)}
    layout["shapes"], layout["annotations"] = _budgets(view, plot)
    layout["legend"] = {"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0}
    if view.failed.any():
        layout["annotations"].append(_note(f"{int(view.failed.sum())} without a number: listed below, not drawn"))
    if view.n == 0:
        layout["annotations"].append(_note("nothing evaluated yet"))
    stairs = staircase(view, plot)
    edge = {"type": "scatter", "mode": "lines", "x": stairs[0], "y": stairs[1], "hoverinfo": "skip",
            "line": {"color": ORANGE, "width": 1.5}, "showlegend": False, "name": "front"}  # fmt: skip
    points = [_points(view, plot, group) for group in groups(view)]
    return {"data": ([edge] if stairs[0] else []) + points + _doubtful(view, plot), "layout": layout}


def _doubtful(view: RunView, plot: Projection) -> list[Figure]:
    """Rings round what has a mark beside its figure in tables."""
    x, y = plot.coordinates(view)
    rows = marked(view, plot)
    if not rows:
        return []
    ring = {"symbol": "circle-open", "size": 20, "color": RED, "line": {"width": 1.5}}
    return [
        {"type": "scatter", "mode": "markers", "name": MARKED, "x": _numbers(x[rows]), "y": _numbers(y[rows]),
         "hoverinfo": "skip", "marker": ring}
    ]  # fmt: skip


def hypervolume_plot(view: RunView) -> Figure:
    """Hypervolume over evaluations."""
    layout = _layout("evaluations", "hypervolume")
    layout["showlegend"] = False
    line = _line(view, view.hypervolumes, "hypervolume", BLUE)
    return {"data": [line], "layout": layout}


def best_plot(view: RunView) -> Figure:
    """Best value of the primary objective under the budgets over evaluations."""
    objective = view.objective
    layout = _layout("evaluations", f"best {heading(objective.metric, objective.device)}")
    layout["showlegend"] = False
    line = _line(view, view.best_values, known(objective.metric).title, GREEN)
    return {"data": [line], "layout": layout}


def parallel_plot(view: RunView) -> Figure:
    """Every objective and budgeted metric as an axis; one line for each architecture that has all numbers."""
    wanted: dict[tuple[str, str | None], None] = {(o.metric, o.device): None for o in view.state.objectives}
    wanted |= {(c.metric, c.device): None for c in view.state.constraints}
    rank = np.where(view.feasible, 1, 0)
    rank[list(view.front)] = 2
    # later lines are drawn above: the front last
    rows = sorted(np.flatnonzero(~view.failed).tolist(), key=lambda i: int(rank[i]))
    dimensions = [
        {"label": _axis_label(column), "values": _numbers(view.values[rows, view.columns.index(column)])}
        for column in wanted
    ]
    trace = {
        "type": "parcoords",
        "dimensions": dimensions,
        "line": {
            "color": [int(rank[i]) for i in rows],
            "cmin": 0,
            "cmax": 2,
            "colorscale": [[0, GREY], [0.33, GREY], [0.33, "@accent"], [0.67, "@accent"], [0.67, ORANGE], [1, ORANGE]],
        },
        "labelfont": {"color": "@fg", "size": 12},
        "tickfont": {"color": "@fg"},
        "rangefont": {"color": "@muted", "size": 10},
    }
    layout = _layout("", "")
    layout["margin"] = {"l": 90, "r": 90, "t": 70, "b": 30}
    return {"data": [trace], "layout": layout}


def _points(view: RunView, plot: Projection, group: Group) -> Figure:
    x, y = plot.coordinates(view)
    wide, high = plot.spreads(view)
    rows = group.indices
    colour = _themed(group.colour)
    trace: Figure = {
        "type": "scatter",
        "mode": "markers",
        "name": group.label,
        "x": _numbers(x[rows]),
        "y": _numbers(y[rows]),
        "customdata": rows,
        "hovertext": [hover(view, i) for i in rows],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {
            "symbol": group.plotly,
            "size": group.size,
            "color": colour,
            "line": {"width": 1.2, "color": colour if group.size < 8 else "@bg"},
        },
    }
    values = shades(view, plot, group)
    if values is not None and plot.shade is not None:
        trace["marker"] |= {
            "color": _numbers(values),
            "colorscale": [[share, shade] for share, shade in zip((0, 0.5, 1), SHADES, strict=True)],
            "showscale": True,
            "line": {"width": 1, "color": "@fg"},
            "colorbar": {
                "title": {"text": f"front: {escape(view.title(plot.shade))}", "side": "right"},
                "thickness": 10,
                "outlinewidth": 0,
            },
        }
    for name, spread in (("error_x", wide[rows]), ("error_y", high[rows])):
        if spread.any():
            trace[name] = {
                "type": "data", "symmetric": False, "array": _numbers(spread[:, 1]),
                "arrayminus": _numbers(spread[:, 0]), "thickness": 1, "width": 2, "color": _faint(group),
            }  # fmt: skip
    return trace


def hover(view: RunView, index: int) -> str:
    """What stands beside the mouse: query, marks, notation and all numbers."""
    numbers = [
        f"{known(metric).title}{f' ({device})' if device else ''}: {view.value_text(index, (metric, device))}"
        for metric, device in view.columns
    ]
    found = {device: view.runs_of(index, (metric, device)) for metric, device in view.columns if metric == LATENCY}
    for device, runs in found.items():
        if runs is not None:
            numbers.append(f"{runs.figures} ({device})" + (f", flags: {', '.join(runs.flags)}" if runs.flags else ""))
    lines = [f"<b>query {index + 1}</b>", escape(view.texts[index]), *map(escape, numbers)]
    return "<br>".join(lines)


def _line(view: RunView, values: Floats, name: str, colour: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(range(1, view.n + 1)),
        "y": _numbers(values),
        "customdata": list(range(view.n)),
        "line": {"shape": "hv", "color": _themed(colour), "width": 2},
        "hovertemplate": "after %{x}: %{y:.6g}<extra></extra>",
    }


def _log_ticks(low: float, high: float) -> Figure:
    # plotly would write 2 and 5 where it means 20 and 50
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _budgets(view: RunView, plot: Projection) -> tuple[list[Figure], list[Figure]]:
    shapes: list[Figure] = []
    notes: list[Figure] = []
    area = feasible_area(view, plot)
    if area is not None:
        (x0, x1), (y0, y1) = area
        box = {"type": "rect", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "layer": "below"}
        shapes.append({**box, "fillcolor": GREEN, "opacity": 0.09, "line": {"width": 0}})
    for axis, other, constraints, limits in zip("xy", "yx", plot.bounds(view), span(view, plot), strict=True):
        for constraint in constraints:
            ends = {f"{axis}0": constraint.bound, f"{axis}1": constraint.bound, f"{other}0": 0, f"{other}1": 1}
            place = {**ends, f"{axis}ref": axis, f"{other}ref": "paper"}
            shapes.append({"type": "line", **place, "line": {"color": "@fg", "width": 1.5, "dash": "dash"}})
            notes.append(_budget_note(constraint, axis, limits, axis == "y" and logarithmic(view, plot)))
    return shapes, notes


def _budget_note(constraint: Constraint, axis: str, limits: tuple[float, float], log: bool) -> Figure:
    # above the plot for a vertical line, so that no point lies under the words; turned inwards near an end
    share = (constraint.bound - limits[0]) / (limits[1] - limits[0])
    height = math.log10(constraint.bound) if log else constraint.bound  # plotly wants this for notes, not for lines
    side = "left" if share < 0.25 else "right" if share > 0.75 else "center"
    place: Figure = (
        {"x": constraint.bound, "xref": "x", "y": 1.0, "yref": "paper", "xanchor": side, "yanchor": "bottom"}
        if axis == "x"
        else {"y": height, "yref": "y", "x": 0.99, "xref": "paper", "yanchor": "bottom", "xanchor": "right"}
    )
    return {"text": f"budget: {escape(str(constraint))}", "showarrow": False, "font": {"color": "@fg"}, **place}


def _note(text: str) -> Figure:
    place = {"x": 0.99, "y": 0.99, "xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "top"}
    return {"text": escape(text), "showarrow": False, "font": {"color": "@muted"}, **place}


def _layout(across: str, up: str) -> Figure:
    axis = {"gridcolor": "@grid", "zeroline": False, "linecolor": "@muted", "ticks": "outside", "automargin": True}
    return {
        "xaxis": {**axis, "title": {"text": escape(across)}},
        "yaxis": {**axis, "title": {"text": escape(up)}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "@fg", "family": "system-ui, Segoe UI, Roboto, Arial, sans-serif", "size": 13},
        "hoverlabel": {"bgcolor": "@card", "font": {"color": "@fg"}, "align": "left"},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "@muted", "activecolor": "@fg"},
        "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
    }


def _numbers(values: Floats) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _themed(colour: str) -> str:
    # the palette's blue is too dark on a dark page; the page's accent is a blue for either
    return "@accent" if colour == BLUE else colour


def _faint(group: Group) -> str:
    """The colour of a group's intervals: strong for the few that matter, weak for the many others."""
    if group.size > 8:
        return group.colour
    red, green, blue = bytes.fromhex(group.colour.removeprefix("#"))
    return f"rgba({red},{green},{blue},0.4)"


def _axis_label(column: Column) -> str:
    return escape(heading(*column).replace(" on ", " "))
