"""Measurements looked up in published tables: each one an exact row, with the file it stands in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.protocols import SearchSpace
from hwnas.devices import load_device
from hwnas.errors import UnknownName
from hwnas.tables.folder import Tables
from hwnas.tables.schema import (
    ACCURACY,
    ATTACKED,
    ATTACKED_DATASET,
    DEVICES,
    HARDWARE,
    PREFIXES,
    ROBUSTNESS,
    SPLITS,
    UNITS,
    Kind,
    accuracy_column,
    hardware_column,
)

_SPACE = "nb201"


class TableEvaluator:
    """Errors, latency and energy of NAS-Bench-201 cells from a folder of tables.

    Error is 100 - accuracy after 200 epochs, mean over seeds; on the validation split where the table has it. Robust
    error is the same on attacked test images, on CIFAR-10 alone. Rows are found by official string, so isomorphic
    cells keep their own measured latency. A value that was not measured is a row with status `not_measured`: the cell
    is infeasible on that device.

    Args:
        tables: The tables.
        space: NAS-Bench-201; its `format` gives the official string.
        dataset: Which data set's columns to read.

    Raises:
        UnknownName: If the tables know no such space or data set.
    """

    name = "table"

    def __init__(self, tables: Tables, space: SearchSpace, dataset: str) -> None:
        if space.name != _SPACE:
            raise UnknownName("search space with tables", space.name, [_SPACE])
        if dataset not in PREFIXES:
            raise UnknownName("data set", dataset, PREFIXES)
        self._tables = tables
        self._space = space
        self._dataset = dataset
        self._contexts: dict[tuple[str, str | None], Context | None] = {}

    def context(self, metric: str, device: str | None) -> Context | None:
        """Where a metric would be read from; None if no table here has it."""
        if (metric, device) not in self._contexts:
            self._contexts[metric, device] = self._context(metric, device)
        return self._contexts[metric, device]

    def why_not(self, metric: str, device: str | None) -> str:
        """Why `context` is None, in words: which file or column is missing; "" if it is not None."""
        place = self._place(metric, device)
        if metric in ATTACKED and self._dataset != ATTACKED_DATASET:
            return f"no table has {metric} on {self._dataset}: it is known on {ATTACKED_DATASET} only"
        if place is None:
            return f"no table has {metric}" + (f" of device {device}" if device else "")
        kind, column = place
        file = self._tables.file(kind)
        if file is None:
            return f"{self._tables.folder} has no {kind.file}"
        return "" if column in file.columns else f"{file.path} has no column {column!r}"

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterator[Measurement]:
        """One row for each architecture and wanted metric, architecture by architecture.

        Raises:
            ValueError: If a wanted metric has no context here.
            InvalidArchitecture: If an architecture is not one of the space.
            InvalidTable: If a column holds something else than numbers that can be true.
        """
        names = [self._space.format(architecture) for architecture in architectures]
        columns = [self._values(metric, device, names) for metric, device in wanted]
        for i, architecture in enumerate(architectures):
            for (metric, device), (context, values) in zip(wanted, columns, strict=True):
                yield _measurement(architecture, names[i], metric, device, values[i], context)

    def _values(self, metric: str, device: str | None, names: list[str]) -> tuple[Context, list[float]]:
        context, place = self.context(metric, device), self._place(metric, device)
        if context is None or place is None:
            raise ValueError(f"cannot answer {metric} on device {device}: {self.why_not(metric, device)}")
        values = self._tables.lookup(*place, names)
        return context, (100.0 - values if device is None else values).tolist()

    def _place(self, metric: str, device: str | None) -> tuple[Kind, str] | None:
        if metric in SPLITS and device is None:
            return ACCURACY, accuracy_column(self._dataset, metric)
        if metric in ATTACKED and device is None and self._dataset == ATTACKED_DATASET:
            return ROBUSTNESS, ATTACKED[metric][0]
        if metric in UNITS and metric in DEVICES.get(device or "", ()):
            return HARDWARE, hardware_column(self._dataset, str(device), metric)
        return None

    def _context(self, metric: str, device: str | None) -> Context | None:
        place = self._place(metric, device)
        file = None if place is None else self._tables.file(place[0])
        if place is None or file is None or place[1] not in file.columns:
            return None
        if metric in ATTACKED:
            return Context(
                Source.TABLE,
                dataset=self._dataset,
                split="test",
                attack=ATTACKED[metric][1],
                fidelity="200 epochs",
                origin=file.origin,
            )
        if device is None:
            return Context(
                Source.TABLE,
                dataset=self._dataset,
                split=SPLITS[metric],
                fidelity="200 epochs",
                seed="mean",
                origin=file.origin,
            )
        runtime, precision, batch = _published(device)
        return Context(
            Source.TABLE,
            device=device,
            runtime=runtime,
            precision=precision,
            batch=batch,
            dataset=self._dataset,
            origin=file.origin,
        )


@cache
def _published(name: str) -> tuple[str, str | None, int]:
    """Runtime, precision (None where the benchmark does not state it) and batch size behind a device's numbers."""
    device = load_device(name)
    return device.runtimes[0], device.precisions[0] if device.precisions else None, device.batch


def _measurement(
    architecture: Architecture, name: str, metric: str, device: str | None, value: float, context: Context
) -> Measurement:
    if not math.isnan(value):
        return Measurement(architecture, metric, value, context)
    where = f" on {device}" if device else ""
    message = f"{context.origin} has no {metric} of {name}{where}: it was not measured"
    return Measurement.failed(architecture, metric, context, Status.NOT_MEASURED, message)
