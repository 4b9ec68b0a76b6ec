"""Measured networks of a space: a table for the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas import atomic
from hwnas.core.wording import digits, known, quantity
from hwnas.report.axes import BLUE, GREY
from hwnas.report.figures import log_axis, new_figure, render
from hwnas.report.timings import device_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

_FAR = 5.0  # times as slow: a logarithmic axis
_ROWS = 20  # of more networks, so many from the fastest to the slowest are shown


def table(told: Mapping[str, Any]) -> RenderableType:
    """A survey (`hwnas.survey.Survey.to_json`): networks by latency, failures last; then its device and noise."""
    from rich.console import Group
    from rich.text import Text

    from hwnas.report.fitting import fitting_table

    networks = sorted(told["networks"], key=_latency)
    step = max(1.0, (len(networks) - 1) / (_ROWS - 1))
    shown = sorted({round(i * step) for i in range(_ROWS) if round(i * step) < len(networks)})
    metrics = list(dict.fromkeys(metric for network in networks for metric in network["metrics"]))
    some = f", {len(shown)} of them shown" if len(shown) < len(networks) else ""
    title = (
        f"{told['space']} on {told['device']['device']}, protocol {told['protocol']['name']}: {len(networks)} measured"
    )
    heads = {metric: f"{known(metric).title} [{known(metric).unit}]" for metric in metrics}
    listed = fitting_table(
        ["network", *heads.values(), "status"],
        [
            [
                networks[i]["key"],
                *(_cell(metric, networks[i]["metrics"].get(metric)) for metric in metrics),
                _status(networks[i]),
            ]
            for i in shown
        ],
        [heads[metric] for metric in ("cpu_time_ms", "peak_memory_mib", "energy_mj") if metric in heads],
        title=title + some,
    )
    lines = [device_note(told["device"]["device"], told["device"])]
    again = told["retests"]
    if again:
        tau = "" if again["tau"] is None else f", Kendall tau {again['tau']:.2f}"
        lines.append(f"{again['pairs']} repeated measurements differ by {again['relative']:.1%} (median{tau})")
    return Group(listed, *map(Text, lines))


def picture(told: Mapping[str, Any]) -> Figure:
    """Latencies of a survey in ascending order, with their 95 % intervals; grey where the status is not ok."""
    known_ones = [network for network in sorted(told["networks"], key=_latency) if _latency(network) < float("inf")]
    rows = [network["metrics"]["latency_ms"] for network in known_ones]
    figure = new_figure(7.2, 4.0)
    axes = figure.subplots()
    for colour, chosen, label in ((BLUE, True, "ok"), (GREY, False, "noisy or unconverged")):
        places = [i for i, row in enumerate(rows) if (row["status"] == "ok") is chosen]
        if places:
            values = np.array([rows[i]["value"] for i in places])
            reach = np.abs(np.array([[rows[i]["low"], rows[i]["high"]] for i in places]).T - values)
            axes.errorbar(
                places,
                values,
                yerr=reach,
                fmt="o",
                ms=1.5,
                capsize=2,
                lw=1,
                color=colour,
                label=f"{label} ({len(places)})",
            )
    if rows:
        if rows[-1]["value"] > _FAR * rows[0]["value"]:
            log_axis(axes, "y")
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("networks, fastest first")
    axes.set_ylabel("latency [ms], 95 % interval")
    axes.set_title(
        fill(device_note(told["device"]["device"], told["device"]), 110), fontsize=6.5, loc="left", color="0.35"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.5)
    return figure


def write(told: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the picture as PNG and PDF.

    Raises:
        OSError: As the file system says it.
    """
    figure = picture(told)
    return [atomic.write(folder / f"latencies.{suffix}", render(figure, suffix)) for suffix in ("png", "pdf")]


def _latency(network: Mapping[str, Any]) -> float:
    value = network["metrics"].get("latency_ms", {}).get("value")
    return float("inf") if value is None else float(value)


def _cell(metric: str, told: Mapping[str, Any] | None) -> str:
    if told is None or told["value"] is None:
        return "-"
    number = quantity(metric, told["value"], unit=False)
    if "low" not in told:
        return number
    half = quantity(metric, (told["high"] - told["low"]) / 2, unit=False, decimals=digits(metric, told["value"]))
    return f"{number} ± {half}"


def _status(network: Mapping[str, Any]) -> str:
    record = network["record"]
    if record is None:
        return next((told["status"] for told in network["metrics"].values()), "-")
    return ", ".join([record["status"], *record["flags"]])
