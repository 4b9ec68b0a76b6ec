"""Measurements of a space's networks kept as a device of their own: `hwnas search --device NAME` answers from them.

    HWNAS_PROFILES/NAME/
        NAME.toml       the device (hwnas.devices)
        <space>.csv     a row for each network and metric: arch,metric,value,low,high,status,message,own_half
        <space>.toml    the card: what was measured where, how, when, with which versions and how well it repeats
        samples.npz     raw samples; may be deleted

`arch` is the space's own public notation. A failure is a row with a status and no value. Profiles of earlier versions
lack the last column.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

import hwnas
from hwnas import atomic, resources
from hwnas.core.device import Device
from hwnas.core.measurement import Context, Measurement, Status
from hwnas.core.protocols import SearchSpace
from hwnas.devices import free_name
from hwnas.errors import HwnasError, InvalidSetting, InvalidTable, RunError, RunExists
from hwnas.profiling.record import write_samples

SAMPLES, PARTIAL = "samples.npz", "-partial"
_HEADER = ["arch", "metric", "value", "low", "high", "status", "message", "own_half"]
_REMEDY = "save it again with 'hwnas profile --space ... --save NAME --replace'"


@dataclass(frozen=True)
class SavedProfile:
    """Measured rows and their card.

    Attributes:
        name: The device's name.
        card: Everything about the rows but the rows.
        rows: As measured; their contexts name this profile as their device.
    """

    name: str
    card: Mapping[str, Any]
    rows: tuple[Measurement, ...]

    @property
    def dataset(self) -> str:
        """What the networks were built for."""
        return str(self.card["dataset"])

    @property
    def context(self) -> Context:
        """What all rows carry."""
        return Context.from_json(self.card["context"])


def profile_folder(name: str) -> Path:
    """Where a saved profile lies."""
    return resources.user_profiles() / name


def read_profile(name: str, space: SearchSpace) -> SavedProfile | None:
    """A saved profile's measurements of a space; None where it has none.

    Raises:
        InvalidTable: Its files are damaged or do not belong together.
    """
    path = profile_folder(name) / f"{space.name}.toml"
    if not path.exists():
        return None
    rows_path = path.with_suffix(".csv")
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8"))
        content = rows_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != card["sha256"]:
            raise InvalidTable(f"{rows_path} holds other rows than its card {path.name} describes; {_REMEDY}")
        context = Context.from_json(card["context"])
        if (card["space"], context.device, card["dataset"]) != (space.name, name, context.dataset):
            raise InvalidTable(f"{path} is the card of another profile; {_REMEDY}")
        rows = tuple(_rows(content.decode("utf-8"), space, context))
    except OSError as error:
        raise InvalidTable(f"profile {name}: {error.filename} cannot be read ({error.strerror}); {_REMEDY}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, ValueError, TypeError) as error:
        raise InvalidTable(f"profile {name}: {path.name} or its rows are damaged ({error}); {_REMEDY}") from error
    return SavedProfile(name, card, rows)


def check_name(name: str, space: SearchSpace, *, replacing: bool) -> None:
    """Refuse a name that cannot be saved under, before anything is measured.

    Raises:
        InvalidSetting: It is no name, or belongs to another device.
        RunExists: There is such a profile, and it shall not be replaced.
    """
    if name == space.name:
        raise InvalidSetting(f"--save {name}: a profile cannot be called as the space that it is about")
    free_name(name)
    if profile_folder(name).exists() and not replacing:
        raise RunExists(
            f"{profile_folder(name)} exists; choose another name, or replace it with --replace (its measurements "
            "would be gone)"
        )


def save_profile(
    name: str,
    device: Device,
    space: SearchSpace,
    rows: Sequence[Measurement],
    told: Mapping[str, Any],
    samples: Mapping[str, NDArray[np.float64]],
) -> Path:
    """Save measurements as a device; an earlier profile of that name is replaced in one step.

    Args:
        name: Checked by `check_name`.
        device: What they were measured on.
        space: What the networks belong to.
        rows: All of one context, that of the device.
        told: What else the card shall say: plain values, None is left out.
        samples: Raw samples by network.

    Returns:
        The profile's folder.

    Raises:
        RunError: It cannot be written; an earlier profile is as it was.
    """
    context = rows[0].context
    date = datetime.now(UTC).isoformat(timespec="seconds")
    context = replace(context, device=name, origin=f"profile {name} of {context.origin}, {date[:10]}")
    text = _table(rows, space)
    metrics = [metric for metric in device.metrics if any(r.metric == metric and r.status.has_value for r in rows)]
    card = {
        "space": space.name,
        "dataset": context.dataset,
        "date": date,
        "hwnas": hwnas.__version__,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "networks": len({row.architecture for row in rows}),
        "context": context.to_json(),
        **told,
    }
    described = {
        "name": name,
        "title": f"{told.get('device', {}).get('title', device.title)}, measured {date[:10]}",
        "kind": device.kind,
        "runtimes": [context.runtime],
        "precisions": [context.precision],
        "metrics": metrics,
        "measured_how": f"Measured networks of space {space.name} saved by hwnas profile; {context.fidelity}.",
        "batch": device.batch,
        "threads": device.threads,
        "host": "profile",
        "origin": context.origin,
    }
    folder = profile_folder(name)
    fresh, old = (folder.with_name(f".{name}.{os.getpid()}.{word}") for word in ("part", "old"))
    try:
        atomic.write(fresh / f"{space.name}.csv", text)
        atomic.write(fresh / f"{space.name}.toml", tomli_w.dumps(_without_none(card)))
        atomic.write(fresh / f"{name}.toml", tomli_w.dumps(described))
        write_samples(fresh / SAMPLES, samples)
        if folder.exists():
            os.rename(folder, old)
        os.rename(fresh, folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise RunError(f"the profile {folder} cannot be written: {error.strerror or error}") from error
    shutil.rmtree(old, ignore_errors=True)
    return folder


def discard_partial(name: str) -> None:
    """Remove what an interrupted measurement had saved, now that there is more."""
    shutil.rmtree(profile_folder(name + PARTIAL), ignore_errors=True)


def _table(rows: Iterable[Measurement], space: SearchSpace) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for row in rows:
        numbers = (row.value, *(row.interval or (math.nan, math.nan)))
        told = ["" if math.isnan(number) else repr(float(number)) for number in numbers]
        own_half = "" if row.own_half is None else repr(float(row.own_half))
        writer.writerow([space.format(row.architecture), row.metric, *told, str(row.status), row.message, own_half])
    return text.getvalue()


def _rows(text: str, space: SearchSpace, context: Context) -> Iterable[Measurement]:
    reader = csv.reader(io.StringIO(text))
    header = next(reader, None)
    if header not in (_HEADER, _HEADER[:-1]):
        raise ValueError(f"the columns {','.join(_HEADER)} are wanted")
    for number, cells in enumerate(reader, start=2):
        try:
            told = dict(zip(header, cells, strict=True))
            low, high, own_half = told["low"], told["high"], told.get("own_half")
            yield Measurement(
                space.parse(told["arch"]),
                told["metric"],
                float(told["value"]) if told["value"] else math.nan,
                context,
                Status(told["status"]),
                (float(low), float(high)) if low and high else None,
                told["message"],
                float(own_half) if own_half else None,
            )
        except (ValueError, HwnasError) as error:
            raise ValueError(f"line {number}: {error}") from error


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
