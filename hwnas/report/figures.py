"""The report's plots in print quality, drawn on matplotlib's Agg and PDF canvases without its global state."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hwnas import atomic
from hwnas.core.wording import heading, known
from hwnas.profiling.runs import floor
from hwnas.report.axes import (
    BLUE,
    GREEN,
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
from hwnas.report.view import Floats, RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
BUDGET = "budget: "


def write_figures(view: RunView, folder: Path) -> list[Path]:
    """Write front.png, front.pdf, hypervolume.png and hypervolume.pdf into `folder`; returns their paths."""
    made = []
    for name, figure in (("front", front_figure(view)), ("hypervolume", hypervolume_figure(view))):
        for suffix in ("png", "pdf"):
            made.append(atomic.write(folder / f"{name}.{suffix}", render(figure, suffix)))
    return made


def render(figure: Figure, suffix: str, dpi: int = DPI) -> bytes:
    """A figure as the bytes of a "png", "pdf" or "svg" file."""
    import matplotlib

    buffer = BytesIO()
    # TrueType in PDF: text stays text, and journals accept it; no time stamp, so equal runs give equal files
    stamp: dict[str, Any] = {} if suffix == "png" else {"CreationDate" if suffix == "pdf" else "Date": None}
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "hwnas"}):
        figure.savefig(buffer, format=suffix, dpi=dpi, metadata=stamp)
    return buffer.getvalue()


def front_figure(view: RunView) -> Figure:
    """The primary objective over each other one, all evaluated points, budgets and feasible area; with several fronts
    a row of these for each device."""
    rows = [(own, projections(own)) for own in view.devices.values() or (view,)]
    wide, high = max(len(plots) for _, plots in rows), len(rows)
    figure = new_figure(max(6.4, 5.0 * wide), 4.4 if high == 1 else 3.6 * high)
    every = figure.subplots(high, wide, squeeze=False)
    handles: dict[str, Any] = {}
    for line, (own, plots) in zip(every, rows, strict=True):
        for axes, plot in zip(line, plots, strict=False):
            _draw_front(axes, own, plot)
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        for axes in line[len(plots) :]:
            axes.set_axis_off()
    if handles:
        # budgets of all devices behind what the marks mean, not where each device's happened to be drawn
        _legend(figure, dict(sorted(handles.items(), key=lambda item: item[0].startswith(BUDGET))), 3 * wide)
    return figure


def hypervolume_figure(view: RunView) -> Figure:
    """Hypervolume, and the best value under the budgets, over the number of evaluations; with several fronts side by
    side for each device."""
    columns = tuple(view.devices.values()) or (view,)
    figure = new_figure(6.4 if len(columns) == 1 else 4.4 * len(columns), 5.0)
    for own, (above, below) in zip(
        columns, figure.subplots(2, len(columns), sharex=True, squeeze=False).T, strict=True
    ):
        _draw_progress(above, below, own)
    return figure


def _draw_progress(above: Axes, below: Axes, view: RunView) -> None:
    queries = np.arange(1, view.n + 1)
    above.step(queries, view.hypervolumes, where="post", color=BLUE)
    above.set_ylabel("hypervolume")
    told = _reference(view)
    above.set_title(fill(told, 90 if view.device is None else 58), fontsize=8, loc="left", color="0.35")
    best = view.best_values
    below.step(queries, best, where="post", color=GREEN)
    objective = view.objective
    short = f"best {known(objective.metric).title} [{known(objective.metric).unit}]"
    below.set_ylabel(short)
    below.set_xlabel("evaluations")
    if not np.isfinite(best).any():
        for axes in (above, below):
            _say(axes, "nothing evaluated yet" if view.n == 0 else "nothing feasible")
    for axes in (above, below):
        _plain(axes)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, on canvases of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, handles: Mapping[str, Any], columns: int) -> None:
    """A legend below the plots, in as many columns, at most `columns`, as the figure is wide enough for."""
    look: dict[str, Any] = {"frameon": False, "fontsize": 8, "columnspacing": 1.2, "handletextpad": 0.5}
    for count in range(columns, 0, -1):
        legend = figure.legend(handles.values(), handles, loc="outside lower center", ncols=count, **look)
        figure.draw_without_rendering()
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _draw_front(axes: Axes, view: RunView, plot: Projection) -> None:
    x, y = plot.coordinates(view)
    wide, high = plot.spreads(view)
    (left, right), (bottom, top) = span(view, plot)
    _draw_budgets(axes, view, plot)
    stairs = staircase(view, plot)
    axes.plot(*stairs, color=ORANGE, lw=1.2, zorder=2)
    for group in groups(view):
        rows = [i for i in group.indices if np.isfinite(x[i]) and np.isfinite(y[i])]
        if np.any(wide[rows] > 0) or np.any(high[rows] > 0):
            # the intervals of the many others must not hide the front, whose own must not hide behind its marks
            few = group.size > 8
            bars: dict[str, Any] = {"ecolor": "black", "capsize": 2} if few else {"ecolor": group.colour, "alpha": 0.35}
            bars |= {"lw": 0.8, "zorder": 5 if few else 2}
            xerr, yerr = (spread[rows].T if np.any(spread[rows] > 0) else None for spread in (wide, high))
            axes.errorbar(x[rows], y[rows], xerr=xerr, yerr=yerr, fmt="none", **bars)
        values = shades(view, plot, group)
        if values is not None and plot.shade is not None:
            _shade(axes, x[group.indices], y[group.indices], values, group, view.title(plot.shade))
            continue
        hollow = group.plotly.endswith("open") and group.matplotlib != "x"
        axes.scatter(
            x[rows],
            y[rows],
            s=(0.75 * group.size) ** 2,
            marker=group.matplotlib,
            facecolors="none" if hollow else group.colour,
            edgecolors=None if group.matplotlib == "x" else group.colour if hollow else "black",
            linewidths=0.8,
            label=group.label if view.device is None else group.name,  # how many differs from device to device
            zorder=4 if group.size > 8 else 3,
        )
    doubtful = marked(view, plot)
    if doubtful:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": RED, "linewidths": 1.0, "zorder": 6}
        axes.scatter(x[doubtful], y[doubtful], s=150, marker="o", label=MARKED, **ring)
    axes.set_xlim(left, right)
    if logarithmic(view, plot):
        log_axis(axes, "y")
    axes.set_ylim(bottom, top)
    across, up = plot.titles(view)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    shown = [column for column in (plot.x, plot.y) if column is not None]
    told = [f"{heading(*column).split(' [')[0]}: {view.all_sources[column]}" for column in shown]
    told += [
        f"intervals: 95 %, with the noise floor of {device}, {floor(view.measured[device])}"
        for _, device in shown
        if device and device in view.measured
    ]
    axes.set_title(
        "\n".join(fill(line, 112, break_on_hyphens=False) for line in told), fontsize=6.5, loc="left", color="0.35"
    )
    if view.n == 0:
        _say(axes, "nothing evaluated yet")
    elif view.failed.any():
        axes.text(
            0.99, 0.99, f"{int(view.failed.sum())} without a number: not drawn", transform=axes.transAxes,
            ha="right", va="top", fontsize=7, color="0.35",
        )  # fmt: skip
    _plain(axes)


def _shade(axes: Axes, x: Floats, y: Floats, values: Floats, group: Group, title: str) -> None:
    """Points of the front, coloured by the objective that is on neither axis, with a bar that says how."""
    from matplotlib.colors import LinearSegmentedColormap

    marks = axes.scatter(
        x, y, s=(0.75 * group.size) ** 2, marker=group.matplotlib, c=values, edgecolors="black", linewidths=0.8,
        cmap=LinearSegmentedColormap.from_list("front", SHADES), zorder=4,
    )  # fmt: skip
    # the legend tells marks apart, the bar tells values
    axes.scatter([], [], s=(0.75 * group.size) ** 2, c=group.colour, edgecolors="black", label=group.label)
    bar = axes.figure.colorbar(marks, ax=axes, pad=0.02, aspect=35)
    bar.set_label(f"front: {title}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_linewidth(0.4)


def _draw_budgets(axes: Axes, view: RunView, plot: Projection) -> None:
    for constraints, line, style in zip(plot.bounds(view), (axes.axvline, axes.axhline), ("--", ":"), strict=True):
        for constraint in constraints:
            line(constraint.bound, color="black", ls=style, lw=1.0, label=f"{BUDGET}{constraint}", zorder=1)
    area = feasible_area(view, plot)
    if area is not None:
        (x0, x1), (y0, y1) = area
        axes.fill_between([x0, x1], y0, y1, color=GREEN, alpha=0.08, lw=0, label="feasible", zorder=0)


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with ticks that people read."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _reference(view: RunView) -> str:
    pairs = zip(view.state.objectives, view.reference, strict=True)
    point = ", ".join(f"{heading(o.metric, o.device)} {o.value(float(x)):.4g}" for o, x in pairs)
    return f"reference point: {point} ({view.reference_note})"


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)
