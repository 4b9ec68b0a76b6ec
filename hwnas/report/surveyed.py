"""Measured networks of a space as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hwnas.core.wording import known, quantity
from hwnas.report.timings import device_note

if TYPE_CHECKING:
    from rich.console import RenderableType

_ROWS = 20  # of more networks, so many from the fastest to the slowest are shown


def table(told: Mapping[str, Any]) -> RenderableType:
    """A survey (`hwnas.survey.Survey.to_json`): networks by latency, failures last; then its device and noise."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    networks = sorted(told["networks"], key=_latency)
    step = max(1.0, (len(networks) - 1) / (_ROWS - 1))
    shown = sorted({round(i * step) for i in range(_ROWS) if round(i * step) < len(networks)})
    metrics = list(dict.fromkeys(metric for network in networks for metric in network["metrics"]))
    some = f", {len(shown)} of them shown" if len(shown) < len(networks) else ""
    title = (
        f"{told['space']} on {told['device']['device']}, protocol {told['protocol']['name']}: {len(networks)} measured"
    )
    listed = Table(title=title + some, title_justify="left")
    listed.add_column("network", overflow="fold")
    for metric in metrics:
        listed.add_column(Text(f"{known(metric).title} [{known(metric).unit}]"), justify="right")
    listed.add_column("status")
    for i in shown:
        cells = [_cell(metric, networks[i]["metrics"].get(metric)) for metric in metrics]
        listed.add_row(*map(Text, (networks[i]["key"], *cells, _status(networks[i]))))
    lines = [device_note(told["device"]["device"], told["device"])]
    again = told["retests"]
    if again:
        tau = "" if again["tau"] is None else f", Kendall tau {again['tau']:.2f}"
        lines.append(f"{again['pairs']} repeated measurements differ by {again['relative']:.1%} (median{tau})")
    return Group(listed, *map(Text, lines))


def _latency(network: Mapping[str, Any]) -> float:
    value = network["metrics"].get("latency_ms", {}).get("value")
    return float("inf") if value is None else float(value)


def _cell(metric: str, told: Mapping[str, Any] | None) -> str:
    if told is None or told["value"] is None:
        return "-"
    number = quantity(metric, told["value"], unit=False)
    if "low" not in told:
        return number
    return f"{number} ± {quantity(metric, (told['high'] - told['low']) / 2, unit=False)}"


def _status(network: Mapping[str, Any]) -> str:
    record = network["record"]
    if record is None:
        return next((told["status"] for told in network["metrics"].values()), "-")
    return ", ".join([record["status"], *record["flags"]])
