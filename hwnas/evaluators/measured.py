"""Numbers from running the networks: exported, timed by the profiling layer, and predicted where that is good enough.

What a search on a device without a table pays for is time on that device. Once a few networks have been measured, a
latency predictor knows many others to within the measurements' own width: those are not measured but predicted, and
say so (source `predicted`). What the search ends with is never predicted (`final`): it is measured, or was earlier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.protocols import Store
from hwnas.errors import RunCorrupt
from hwnas.profiling.runs import LATENCY, Runs

Floats = NDArray[np.float64]
OnProgress = Callable[[float, int, str], None]
Note = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class FileTiming:
    """What timing one exported file came to.

    Attributes:
        value, low, high: Latency with its 95 % interval, ms, at the pace that the final measurements were made at.
        slower: Log factor by which the machine is slower now than it was then: the clock shows `value * exp(slower)`.
        runs: The single runs behind it, as the clock shows them.
        beside: Other metrics of the file that its device tells, as value, low and high; or why there is none.
    """

    value: float
    low: float
    high: float
    slower: float = 0.0
    runs: Runs | None = None
    beside: Mapping[str, tuple[float, float, float] | str] = field(default_factory=dict)

    @property
    def now(self) -> tuple[float, float, float]:
        """Latency and interval as the clock shows them, ms."""
        factor = math.exp(self.slower)
        return factor * self.value, factor * self.low, factor * self.high


class Meter(Protocol):
    """Runs architectures' networks on one device."""

    def context(self, metric: str, *, final: bool = False) -> Context | None:
        """What its answers carry; None where the device cannot tell this metric."""

    def why_not(self, metric: str) -> str:
        """Why `context` is None, in words."""

    def measure(
        self, architectures: Sequence[Architecture], *, final: bool = False
    ) -> Iterator[Mapping[str, Measurement]]:
        """For each architecture, in order, all metrics that its device tells; failures are rows with a status.

        Args:
            architectures: What to run, interleaved with each other.
            final: With the most careful protocol, each from the file that a user would get.
        """

    def measure_files(self, paths: Sequence[Path]) -> list[FileTiming | str]:
        """Each ONNX file timed with the most careful protocol, interleaved with each other; or why it was not."""

    def drift(self) -> float:
        """How much slower the machine was when the final measurements began than when those of the search did, as a
        log factor; 0 before that is known."""

    def join(self, notes: Sequence[Mapping[str, Any]], note: Note) -> None:
        """Take up a run: answer, count and summarise as if its earlier sessions had been this one.

        Args:
            notes: What they noted, in order; empty in the first session. Others than the meter's own are among them.
            note: Takes plain values (with a word for their kind as `what`) that a later session must know.

        Raises:
            RunIncompatible: The run measured with other settings of the device.
            KeyError, TypeError, ValueError: The notes are damaged.
        """

    def watch(self, on_progress: OnProgress) -> None:
        """From now on, say what is being measured: (networks' worth of work done, of how many, what goes on)."""

    def samples(self) -> dict[str, Floats]:
        """Raw samples of everything measured, by protocol and network."""

    def network(self, architecture: Architecture) -> str | None:
        """The name of an architecture's network in `samples`, without the protocol; None where it was not run."""

    def summary(self) -> dict[str, Any]:
        """The device and how well its figures repeat, as plain values."""

    def certificate(self, architecture: Architecture) -> dict[str, Any] | None:
        """The whole record of an architecture's last measurement, as plain values."""

    def close(self) -> None:
        """Release the device."""


class LatencyModel(Protocol):
    """Predicts latency from what was measured: `hwnas.predictors.latency.LatencyPredictor`."""

    def fit(self, architectures: Sequence[Architecture], latencies: Floats, half_widths: Floats) -> None:
        """Learn from `n` measured latencies, ms, with half of their 95 % intervals."""

    def interval(self, architectures: Sequence[Architecture]) -> tuple[Floats, Floats, Floats]:
        """Latency and both ends of its 95 % interval, ms, `n` each."""


@dataclass(frozen=True)
class Screening:
    """When a prediction is good enough.

    Attributes:
        first: Networks that are measured before anything is predicted.
        within: A predicted interval may be so wide to each side, relative to the latency.
        audit: Every so many-th network that could have been predicted is measured all the same: a running check of
            the predictions. 0 checks none.
    """

    first: int = 10
    within: float = 0.1
    audit: int = 8

    def __post_init__(self) -> None:
        if self.first < 2 or not 0 < self.within < 1 or self.audit < 0:
            raise ValueError(
                f"first >= 2, 0 < within < 1 and audit >= 0 are wanted; "
                f"got {self.first=}, {self.within=}, {self.audit=}"
            )


class MeasuredEvaluator:
    """Latency, CPU time, memory and energy of a space's networks on one device.

    Args:
        device: The device's name.
        meter: Runs networks on it.
        predictor: Predicts latency; None measures every network.
        screening: When a prediction is good enough.
        budget: Latency budget, ms: a network whose predicted interval holds it is measured.
    """

    name = "measured"

    def __init__(
        self,
        device: str,
        meter: Meter,
        *,
        predictor: LatencyModel | None = None,
        screening: Screening = Screening(),
        budget: float | None = None,
    ) -> None:
        self.device = device
        self.meter = meter
        self._predictor = predictor
        self._screening = screening
        self._budget = budget
        self._known: dict[Architecture, Measurement] = {}  # measured latencies, in order
        self._predictable = 0  # networks that a prediction was good enough for
        self._audits: list[tuple[Measurement, Measurement]] = []  # (predicted, measured)
        self._decided: dict[Architecture, Measurement | None] = {}  # in earlier sessions: the good prediction, if any
        self._checked: dict[Architecture, Measurement] = {}  # predictions that a measurement shall check
        self._note: Note = lambda told: None
        self._fitted = 0

    def context(self, metric: str, device: str | None) -> Context | None:
        """What a measured answer carries; None if this device cannot tell the metric."""
        return self.meter.context(metric) if device == self.device else None

    def contexts(self, metric: str, device: str | None) -> tuple[Context, ...]:
        """All contexts that an answer may have: measured, and for latency predicted."""
        measured = self.context(metric, device)
        if measured is None:
            return ()
        return (measured, _predicted(measured)) if metric == LATENCY and self._predictor is not None else (measured,)

    def why_not(self, metric: str, device: str | None) -> str:
        """Why `context` is None, in words; "" if it is not None."""
        if device != self.device:
            return f"{metric} of {device} is not measured on {self.device}"
        return "" if self.meter.context(metric) is not None else self.meter.why_not(metric)

    def join(self, store: Store) -> None:
        """Take up a run: learn what its store holds, and note there what a later session must know, so that a search
        that is killed at any moment goes on as if it had not been.

        Raises:
            RunIncompatible: The run measured with other settings of the device.
            RunCorrupt: What is noted there cannot be read.
        """
        topic = notes_topic(self.device)
        notes = store.notes(topic)
        self._note = partial(store.note, topic)
        try:
            for told in notes:
                if told["what"] == "screened":
                    self._take_up(told)
            self.meter.join(notes, self._note)
        except (KeyError, TypeError, ValueError) as error:
            raise RunCorrupt(
                f"what the run noted of device {self.device} cannot be read ({error}). Keep a copy of the run, and "
                "start a new one"
            ) from error
        known = self.contexts(LATENCY, self.device)
        for row in store.rows():
            if row.metric != LATENCY or row.context not in known:  # of finals nothing is learned
                continue
            if row.context.source is Source.PREDICTED:
                self._predictable += row.architecture not in self._decided  # of a run that noted no decisions
            else:
                self._learn(row)

    def evaluate(
        self, architectures: Sequence[Architecture], wanted: Sequence[tuple[str, str | None]]
    ) -> Iterator[Measurement]:
        """One row for each architecture and wanted metric; measured ones come as their batch ends.

        Raises:
            ValueError: If a wanted metric has no context here.
        """
        metrics = [self._must(metric, device) for metric, device in wanted]
        good = [] if self._predictor is None else self._screen(architectures, predict=metrics == [LATENCY])
        yield from good
        skipped = {row.architecture for row in good}
        rest = [architecture for architecture in architectures if architecture not in skipped]
        for rows in self.meter.measure(rest):
            if LATENCY in rows:
                self._learn(rows[LATENCY])
            for metric in metrics:
                yield rows[metric]

    def final_context(self, metric: str) -> Context:
        """What the answers of `finals` carry."""
        context = self.meter.context(metric, final=True)
        assert context is not None, f"{self.device} tells no {metric}"
        return context

    def finals(self, architectures: Sequence[Architecture], metrics: Sequence[str]) -> list[Measurement]:
        """The same metrics measured with the most careful protocol, interleaved among these architectures only."""
        found = self.meter.measure(architectures, final=True)
        return [rows[metric] for rows in found for metric in metrics]

    @property
    def audits(self) -> tuple[int, int]:
        """How many predictions were checked by a measurement, and how many of those intervals overlapped it."""
        inside = sum(_overlap(predicted, measured) for predicted, measured in self._audits)
        return len(self._audits), inside

    def close(self) -> None:
        """Release the device."""
        self.meter.close()

    def _learn(self, row: Measurement) -> None:
        """A measured latency teaches the predictor, and checks what was predicted."""
        if row.status.has_value:
            self._known[row.architecture] = row
            if row.architecture in self._checked:
                self._audits.append((self._checked.pop(row.architecture), row))

    def _screen(self, architectures: Sequence[Architecture], *, predict: bool) -> list[Measurement]:
        """Predictions that take the place of a measurement. What an earlier session decided of these stays so, however
        much has been measured since: it ended before all of the answers were stored."""
        decided = [self._decided[a] for a in architectures if a in self._decided]
        fresh = [a for a in architectures if a not in self._decided]
        if not fresh:
            return [row for row in decided if row is not None]
        good: list[Measurement] = []
        checked: dict[Architecture, Measurement] = {}
        for architecture, row in (self._predict(fresh) if predict else {}).items():
            self._predictable += 1
            if self._screening.audit and self._predictable % self._screening.audit == 0:
                checked[architecture] = row
            else:
                good.append(row)
        self._checked |= checked
        skipped = {row.architecture for row in good}
        self._note(
            {
                "what": "screened",
                "measured": [a.key for a in fresh if a not in skipped],
                "predicted": {row.architecture.key: _figure(row) for row in good},
                "checked": {a.key: _figure(row) for a, row in checked.items()},
            }
        )
        return [row for row in decided if row is not None] + good

    def _take_up(self, told: Mapping[str, Any]) -> None:
        """What an earlier session decided in one step."""
        context = _predicted(self._must_context(LATENCY))

        def row(architecture: Architecture, figure: Sequence[float]) -> Measurement:
            value, low, high = figure
            return Measurement(architecture, LATENCY, value, context, interval=(low, high))

        self._decided |= {Architecture.from_key(key): None for key in told["measured"]}
        for key, figure in told["predicted"].items():
            architecture = Architecture.from_key(key)
            self._decided[architecture] = row(architecture, figure)
        for key, figure in told["checked"].items():
            architecture = Architecture.from_key(key)
            self._checked[architecture] = row(architecture, figure)
        self._predictable += len(told["predicted"]) + len(told["checked"])

    def _predict(self, architectures: Sequence[Architecture]) -> dict[Architecture, Measurement]:
        """Predictions that are good enough, by architecture."""
        if self._predictor is None or len(self._known) < self._screening.first or not architectures:
            return {}
        if self._fitted != len(self._known):
            rows = list(self._known.values())
            values = np.array([row.value for row in rows])
            self._predictor.fit(list(self._known), values, np.array([row.half_width for row in rows]))
            self._fitted = len(rows)
        context = _predicted(self._must_context(LATENCY))
        found = {}
        for architecture, value, low, high in zip(architectures, *self._predictor.interval(architectures), strict=True):
            undecided = self._budget is not None and low <= self._budget < high
            if value > 0 and max(high - value, value - low) <= self._screening.within * value and not undecided:
                row = Measurement(architecture, LATENCY, float(value), context, interval=(float(low), float(high)))
                found[architecture] = row
        return found

    def _must(self, metric: str, device: str | None) -> str:
        if self.context(metric, device) is None:
            raise ValueError(f"cannot answer {metric} on device {device}: {self.why_not(metric, device)}")
        return metric

    def _must_context(self, metric: str) -> Context:
        context = self.meter.context(metric)
        assert context is not None, f"{self.device} tells no {metric}"
        return context


def notes_topic(device: str) -> str:
    """The topic of a run's notes on a device."""
    return f"measured@{device}"


def _predicted(measured: Context) -> Context:
    return replace(
        measured, source=Source.PREDICTED, fidelity=None, origin=f"predicted from measurements on {measured.device}"
    )


def _figure(row: Measurement) -> list[float]:
    low, high = row.interval or (row.value, row.value)
    return [row.value, low, high]


def _overlap(a: Measurement, b: Measurement) -> bool:
    first, second = a.interval or (a.value, a.value), b.interval or (b.value, b.value)
    return first[0] <= second[1] and second[0] <= first[1]
