"""What `hwnas devices` and `hwnas tables` show: plain rows, and the same rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas import registry
from hwnas.core.metrics import METRICS
from hwnas.core.protocols import SearchSpace
from hwnas.devices import availability, device_names, load_device
from hwnas.errors import DataError, HwnasError
from hwnas.evaluators.saved import SavedEvaluator
from hwnas.evaluators.surrogate import SurrogateEvaluator
from hwnas.evaluators.table import TableEvaluator
from hwnas.profiling.energy import why_no_meter
from hwnas.profiling.probing import probe_devices
from hwnas.profiling.saved import profile_folder, read_profile
from hwnas.spaces.nb201 import official_strings
from hwnas.tables import catalogue
from hwnas.tables import fetch as published
from hwnas.tables.folder import Tables, remedy, target_folder

if TYPE_CHECKING:
    from rich.table import Table

_SPACE = "nb201"  # the space that tables and surrogates are about
_METRICS = ("latency_ms", "energy_mj")


def devices(tables_path: Path | None = None) -> list[dict[str, Any]]:
    """Every hardware target with what is known about it and whether a search could get numbers for it now.

    Args:
        tables_path: Folder of tables; None for the usual places.

    Returns:
        Rows of plain values: name, title, kind, runtimes, precisions, batch, metrics, sources (metric to "table",
        "surrogate", "measured" or "profile"), available, reason, measured_how, origin; of devices on this machine that
        networks can be run on also runtime, hardware, versions, fingerprint, noise_floor and calibrated.

    Raises:
        DataError: The named folder of tables is missing or cannot be trusted.
    """
    space = registry.space(_SPACE)
    found = Tables.find(tables_path, official_strings)
    dataset = space.datasets[0]
    table = None if found is None else TableEvaluator(found, space, dataset)
    surrogate = SurrogateEvaluator(space, dataset)
    rows = []
    known, unreadable = [], []
    for name in device_names():
        try:
            known.append(load_device(name))
        except HwnasError as error:  # one file that is wrong hides no other device
            unreadable.append(_unreadable(name, str(error)))
    # those on this machine are really asked; a host that is switched off must not hold up a list
    probed = probe_devices([device for device in known if device.host == "local" and availability(device)[0]])
    metered = {runtime for runtime in {seen.runtime for seen in probed.values()} if not why_no_meter(runtime)}
    for device in known:
        sources = {}
        for metric in _METRICS:
            if table is not None and table.context(metric, device.name) is not None:
                sources[metric] = "table"
            elif surrogate.context(metric, device.name) is not None:
                sources[metric] = "surrogate"
        available, reason = availability(device, {device.name} if sources else set())
        seen = probed.get(device.name)
        if seen is not None and seen.reason:
            available, reason = False, seen.reason
        if device.host == "profile":
            available, reason = _saved(device.name, space, reason)
        if not sources and available:
            told = [
                m
                for m in device.metrics
                if m != "energy_mj" or device.host != "local" or (seen and seen.runtime in metered)
            ]
            sources = dict.fromkeys(told, "profile" if device.host == "profile" else "measured")
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
                **({} if seen is None else seen.to_json()),
            }
        )
    return sorted([*rows, *unreadable], key=lambda row: str(row["name"]))


def _unreadable(name: str, reason: str) -> dict[str, Any]:
    """The row of a device whose file cannot be read."""
    nothing: dict[str, Any] = dict.fromkeys(("title", "kind", "measured_how", "origin"), "")
    nothing |= {"runtimes": [], "precisions": [], "batch": None, "metrics": [], "sources": {}}
    return {"name": name, **nothing, "available": False, "reason": reason}


def _saved(name: str, space: SearchSpace, reason: str) -> tuple[bool, str]:
    """Whether a search can use a saved profile, and why (not)."""
    try:
        profile = read_profile(name, space)
    except DataError as error:
        return False, str(error)
    if profile is None:  # of another space
        return True, reason
    few = SavedEvaluator(profile, space).too_few("latency_ms")
    return not few, few or f"{reason}; {profile_folder(name)}"


def devices_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `devices` for the terminal; those that a search can use come first."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title="hardware targets", title_justify="left", caption_justify="left")
    for column in ("device", "what it is", "runtime", "numbers", "noise floor"):
        shown.add_column(column, overflow="fold")
    reasons = []
    for row in sorted(rows, key=lambda row: (not row["available"], row["name"])):
        if not row["available"]:
            reasons.append(f"{row['name']} is not available now: {row['reason']}")
        # as Text: square brackets of an extra's name are no markup
        cells = (row["name"], row.get("hardware") or row["title"], _runtime(row), _numbers(row), _noise(row))
        shown.add_row(*map(Text, cells), style=None if row["available"] else "dim")
    shown.caption = Text("\n".join(reasons))
    return shown


def _runtime(row: Mapping[str, Any]) -> str:
    versions = row.get("versions")
    if not versions:
        return ", ".join(row["runtimes"])
    told = ", ".join(f"{name} {version.partition('-')[0]}" for name, version in versions.items())
    return f"{row['runtime']} ({told})"


def _numbers(row: Mapping[str, Any]) -> str:
    """Metrics by where they come from: "table: latency, energy"."""
    by_source: dict[str, list[str]] = {}
    for metric, source in row["sources"].items():
        by_source.setdefault(source, []).append(METRICS[metric].title)
    return "; ".join(f"{source}: {', '.join(titles)}" for source, titles in by_source.items()) or "-"


def _noise(row: Mapping[str, Any]) -> str:
    floor = row.get("noise_floor")
    if floor is None:
        return "-"
    return f"{floor:.1%}" if row["calibrated"] else f"{floor:.1%} assumed"


def tables(tables_path: Path | None = None) -> list[dict[str, Any]]:
    """Every Parquet file of the tables folder, checked in full; an unusable one with the reason.

    Returns:
        Rows of plain values: folder, file, title, rows, columns, source, usable, problem, remedy; rows is None for
        a file that hwnas does not read.
    """
    folder = str(target_folder(tables_path))
    return [
        {
            "folder": folder,
            "file": info.path.name,
            "title": info.title,
            "rows": info.rows if info.kind is not None else None,
            "columns": list(info.columns),
            "source": info.source,
            "usable": info.kind is not None and not info.problem,
            "problem": info.problem,
            "remedy": remedy(target_folder(tables_path), info.kind) if info.problem else "",
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
        shown.add_column(column, overflow="fold", no_wrap=column in ("file", "rows"))
    for row in found:
        usable = "yes" if row["usable"] else f"{row['problem']}. {row['remedy']}" if row["problem"] else "-"
        style = "dim" if not row["usable"] else None
        # what could not be read has no numbers to show, and a file that hwnas does not read was never opened
        read = bool(row["rows"])
        cells = (
            row["file"],
            row["title"],
            str(row["rows"]) if read else "-",
            str(len(row["columns"])) if read else "-",
            usable,
        )
        shown.add_row(*map(Text, cells), style=style)
    if not found:
        shown.caption = f"none; {remedy(folder)}"
    return shown


def add(path: Path, tables_path: Path | None = None, *, replace: bool = False) -> list[str]:
    """Import a file; one line for each table written. Raises as `hwnas.tables.catalogue.add`."""
    return [_written(info) for info in catalogue.add(path, tables_path, replace=replace)]


def fetch(name: str, tables_path: Path | None = None, *, replace: bool = False) -> list[str]:
    """Download, verify and import a published table. Raises as `hwnas.tables.fetch.fetch`."""
    return [_written(info) for info in published.fetch(name, tables_path, replace=replace)]


def _written(info: catalogue.TableInfo) -> str:
    return f"{info.path}: {info.title}, {info.rows} rows"
