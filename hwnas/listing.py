"""What `hwnas devices` and `hwnas tables` show: plain rows, and the same rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas import registry
from hwnas.core.metrics import METRICS
from hwnas.devices import availability, list_devices
from hwnas.evaluators.surrogate import SurrogateEvaluator
from hwnas.evaluators.table import TableEvaluator
from hwnas.tables import catalogue
from hwnas.tables import fetch as published
from hwnas.tables.folder import Tables, target_folder

if TYPE_CHECKING:
    from rich.table import Table

_SPACE = "nb201"  # the space that tables and surrogates are about
_METRICS = ("latency_ms", "energy_mj")


def devices(tables_path: Path | None = None) -> list[dict[str, Any]]:
    """Every hardware target with what is known about it and whether a search could get numbers for it now.

    Args:
        tables_path: Folder of tables; None for the usual places.

    Returns:
        Rows of plain values: name, title, kind, runtimes, precisions, batch, metrics, sources (metric to "table" or
        "surrogate"), available, reason, measured_how, origin.

    Raises:
        DataError: The named folder of tables is missing or cannot be trusted.
    """
    space = registry.space(_SPACE)
    found = Tables.find(tables_path)
    dataset = space.datasets[0]
    table = None if found is None else TableEvaluator(found, space, dataset)
    surrogate = SurrogateEvaluator(space, dataset)
    rows = []
    for device in list_devices():
        sources = {}
        for metric in _METRICS:
            if table is not None and table.context(metric, device.name) is not None:
                sources[metric] = "table"
            elif surrogate.context(metric, device.name) is not None:
                sources[metric] = "surrogate"
        available, reason = availability(device, {device.name} if sources else set())
        rows.append(
            {
                "name": device.name,
                "title": device.title,
                "kind": device.kind,
                "runtimes": list(device.runtimes),
                "precisions": list(device.precisions),
                "batch": device.batch,
                "metrics": list(device.metrics),
                "sources": sources,
                "available": available,
                "reason": reason,
                "measured_how": device.measured_how,
                "origin": device.origin,
            }
        )
    return rows


def devices_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `devices` for the terminal; those that a search can use come first."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title="hardware targets", title_justify="left")
    for column in ("device", "what it is", "runtime", "numbers from", "available now"):
        shown.add_column(column, overflow="fold")
    for row in sorted(rows, key=lambda row: (not row["available"], row["name"])):
        sources = ", ".join(f"{METRICS[metric].title}: {source}" for metric, source in row["sources"].items()) or "-"
        now = "yes" if row["available"] else f"no: {row['reason']}"
        style = None if row["available"] else "dim"
        # as Text: square brackets of an extra's name are no markup
        shown.add_row(*map(Text, (row["name"], row["title"], ", ".join(row["runtimes"]), sources, now)), style=style)
    return shown


def tables(tables_path: Path | None = None) -> list[dict[str, Any]]:
    """Every Parquet file of the tables folder, checked in full; an unusable one with the reason.

    Returns:
        Rows of plain values: folder, file, title, rows, columns, source, usable, problem.
    """
    folder = str(target_folder(tables_path))
    return [
        {
            "folder": folder,
            "file": info.path.name,
            "title": info.title,
            "rows": info.rows,
            "columns": list(info.columns),
            "source": info.source,
            "usable": info.kind is not None and not info.problem,
            "problem": info.problem,
        }
        for info in catalogue.list_tables(tables_path)
    ]


def tables_table(found: Sequence[Mapping[str, Any]], tables_path: Path | None = None) -> Table:
    """Rows of `tables` for the terminal."""
    from rich.table import Table
    from rich.text import Text

    folder = target_folder(tables_path)
    shown = Table(title=f"tables in {folder}", title_justify="left")
    for column in ("file", "what it is", "rows", "columns", "usable"):
        shown.add_column(column, overflow="fold")
    for row in found:
        usable = "yes" if row["usable"] else row["problem"] or "not read by hwnas"
        style = "dim" if not row["usable"] else None
        cells = (row["file"], row["title"], str(row["rows"]), str(len(row["columns"])), usable)
        shown.add_row(*map(Text, cells), style=style)
    if not found:
        shown.caption = "none. Fill it with 'hwnas tables fetch hw-nas-bench' or 'hwnas tables add PATH'"
    return shown


def add(path: Path, tables_path: Path | None = None, *, replace: bool = False) -> list[str]:
    """Import a file; one line for each table written. Raises as `hwnas.tables.catalogue.add`."""
    return [_written(info) for info in catalogue.add(path, tables_path, replace=replace)]


def fetch(name: str, tables_path: Path | None = None, *, replace: bool = False) -> list[str]:
    """Download, verify and import a published table. Raises as `hwnas.tables.fetch.fetch`."""
    return [_written(info) for info in published.fetch(name, tables_path, replace=replace)]


def _written(info: catalogue.TableInfo) -> str:
    return f"{info.path}: {info.title}, {info.rows} rows"
