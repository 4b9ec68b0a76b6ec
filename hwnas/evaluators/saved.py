"""Numbers from a saved profile: measured rows, and what a predictor fitted to them says of other networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source, Status
from hwnas.core.protocols import SearchSpace
from hwnas.core.wording import known
from hwnas.evaluators.measured import LatencyModel
from hwnas.predictors.latency import LatencyPredictor
from hwnas.predictors.log_process import LogProcess
from hwnas.profiling.saved import SavedProfile

FEWEST = 10  # measured networks that a predictor can learn from


class SavedEvaluator:
    """Answers from a profile: networks that it holds as `measured`, all others as `predicted`, with an interval.

    Networks that compute the same are one network to a device, so a row answers for all of them (`canonical`). From
    fewer than ten measured networks nothing is predicted: others are rows with status `not_measured`, as are failures.

    Args:
        profile: The rows.
        space: Their space.
        model: Makes the predictor of a metric; default: `LatencyPredictor` for times, which knows other devices, and
            `LogProcess` for other metrics.

    Attributes:
        device: The profile's name.
        measured_on: What the profile's card says of the device that it was measured on.
    """

    name = "profile"

    def __init__(
        self, profile: SavedProfile, space: SearchSpace, *, model: Callable[[str], LatencyModel] | None = None
    ) -> None:
        self.device = profile.name
        self.measured_on: Mapping[str, Any] = profile.card.get("device", {})
        self._space = space
        self._dataset = profile.dataset
        self._make = model or self._default
        self._context = profile.context
        self._rows: dict[tuple[Architecture, str], Measurement] = {}
        for row in profile.rows:
            same = space.canonical(row.architecture), row.metric
            if same not in self._rows or not self._rows[same].status.has_value:
                self._rows[same] = row
        self._metrics = {row.metric for row in self._rows.values() if row.status.has_value}
        self._models: dict[str, tuple[LatencyModel, float] | None] = {}

    def context(self, metric: str, device: str | None) -> Context | None:
        """What a measured answer carries; None if the profile has no number of this metric."""
        return self._context if device == self.device and metric in self._metrics else None

    def contexts(self, metric: str, device: str | None) -> tuple[Context, ...]:
        """All contexts that an answer may have: measured, then predicted."""
        measured = self.context(metric, device)
        return () if measured is None else (measured, self._predicted)

    def why_not(self, metric: str, device: str | None) -> str:
        """Why `context` is None, in words; "" if it is not None."""
        if self.context(metric, device) is not None:
            return ""
        return f"profile {self.device} holds {', '.join(sorted(self._metrics)) or 'nothing'}, not {metric} of {device}"

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterator[Measurement]:
        """One row for each architecture and wanted metric, architecture by architecture.

        Raises:
            ValueError: If a wanted metric has no context here.
            InvalidArchitecture: If an architecture is not one of the space.
        """
        for metric, device in wanted:
            if self.context(metric, device) is None:
                raise ValueError(f"cannot answer {metric} on device {device}: {self.why_not(metric, device)}")
        for architecture in architectures:
            self._space.validate(architecture)
            for metric, _ in wanted:
                row = self._rows.get((self._space.canonical(architecture), metric))
                if row is None:
                    yield self._predict(architecture, metric)
                else:
                    yield replace(row, architecture=architecture)

    def too_few(self, metric: str) -> str:
        """Why a metric of networks that are not in the profile cannot be told, with the way out; "" if it can."""
        count = len(self._learnable(metric))
        if count >= FEWEST:
            return ""
        of = "" if self._dataset == self._space.datasets[0] else f" --dataset {self._dataset}"
        where = self.measured_on.get("device")
        return (
            f"profile {self.device} holds {known(metric).title} of {count} network{'s' * (count != 1)}, and at least "
            f"{FEWEST} are needed to predict others, without which a search is of no use. Measure more: "
            f"hwnas profile --space {self._space.name}{of} --sample 100{f' --device {where}' if where else ''} "
            f"--save {self.device} --replace"
        )

    @property
    def _predicted(self) -> Context:
        origin = f"predicted from {self._context.origin}"
        return replace(self._context, source=Source.PREDICTED, fidelity=None, origin=origin)

    def _predict(self, architecture: Architecture, metric: str) -> Measurement:
        model = self._model(metric)
        if model is None:
            return Measurement.failed(
                architecture, metric, self._context, Status.NOT_MEASURED, f"not in it; {self.too_few(metric)}"
            )
        predictor, least = model
        # alone: matrix products of another shape round differently, and a number must not depend on its company
        value, low, high = (float(ends[0]) for ends in predictor.interval([architecture]))
        value = max(value, least)  # a network that would beat all that was measured had better be measured
        low, high = min(low, value), max(high, value)
        return Measurement(architecture, metric, value, self._predicted, interval=(low, high))

    def _model(self, metric: str) -> tuple[LatencyModel, float] | None:
        """What predicts a metric, and the least value that was measured; None where too few were."""
        if metric not in self._models:
            rows = self._learnable(metric)
            self._models[metric] = None
            if len(rows) >= FEWEST:
                model = self._make(metric)
                values, halves = (np.array([getattr(row, name) for row in rows]) for name in ("value", "half_width"))
                model.fit([row.architecture for row in rows], values, halves)
                self._models[metric] = model, float(values.min())
        return self._models[metric]

    def _learnable(self, metric: str) -> list[Measurement]:
        """Rows that a predictor can learn from."""
        rows = [row for row in self._rows.values() if row.metric == metric and row.status.has_value]
        return [row for row in rows if row.value > 0]

    def _default(self, metric: str) -> LatencyModel:
        if metric in ("latency_ms", "cpu_time_ms"):
            return LatencyPredictor(self._space, self._dataset)
        return LogProcess(self._space)
