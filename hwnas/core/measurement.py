"""Facts: one number with everything that makes it comparable. Appended, never changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from hwnas.core.architecture import Architecture
from hwnas.core.metrics import METRICS, Goal


class Source(StrEnum):
    """Where a number comes from; shown wherever the number is shown."""

    TABLE = "table"  # looked up in a published or user's table
    SURROGATE = "surrogate"  # a shipped model fitted to a table
    MEASURED = "measured"  # measured or counted here on the real network
    TRAINED = "trained"  # a training run here
    PREDICTED = "predicted"  # a predictor inside a search


class Status(StrEnum):
    """How an evaluation ended. Only the first three carry a value; nothing is invented for the others."""

    OK = "ok"
    UNCONVERGED = "unconverged"  # measured, but its interval did not reach the asked width
    NOISY = "noisy"  # measured on a machine that was busy
    NOT_MEASURED = "not_measured"  # the table has no number: infeasible on that device
    UNSUPPORTED_OP = "unsupported_op"
    INVALID_MODEL = "invalid_model"
    EXPORT_FAILED = "export_failed"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    EP_FALLBACK = "ep_fallback"
    OUT_OF_MEMORY = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    NUMERICS_MISMATCH = "numerics_mismatch"
    THROTTLED = "throttled"

    @property
    def has_value(self) -> bool:
        return self in (Status.OK, Status.UNCONVERGED, Status.NOISY)


@dataclass(frozen=True, slots=True)
class Context:
    """What makes two values of a metric comparable; None where it does not apply.

    Attributes:
        source: Where the number comes from.
        device: Name of the hardware target.
        runtime: What ran the network, e.g. "ort-cpu"; "count" for numbers counted from the network.
        precision: "fp32", "fp16", "int8".
        batch: Batch size.
        dataset: "cifar10", "cifar100", "ImageNet16-120".
        split: "val" or "test".
        attack: What was done to the images, e.g. "APGD-CE, L-inf, eps 1/255".
        fidelity: e.g. "200 epochs".
        seed: Training seed, or a word such as "mean" for a mean over seeds.
        origin: The table, profile or model that the number was read from.
        versions: (what, version) pairs, sorted.
    """

    source: Source
    device: str | None = None
    runtime: str | None = None
    precision: str | None = None
    batch: int | None = None
    dataset: str | None = None
    split: str | None = None
    attack: str | None = None
    fidelity: str | None = None
    seed: str | None = None
    origin: str | None = None
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def counted(self) -> bool:
        """Whether the number was counted from the network: nothing ran for it."""
        return self.runtime == "count"

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None and v != ()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Context:
        known = {field.name for field in fields(cls)}
        unknown = set(data) - known
        if unknown:
            raise ValueError(f"a context has the fields {sorted(known)}; got also {sorted(unknown)}")
        values = dict(data)
        values["source"] = Source(values["source"])
        values["versions"] = tuple((str(k), str(v)) for k, v in values.get("versions", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric of one architecture: a value, or the status that says why there is none.

    Attributes:
        architecture: What was evaluated.
        metric: Full metric name, e.g. "latency_ms".
        value: In the metric's unit; nan exactly when `status` has no value.
        context: What makes it comparable.
        status: How the evaluation ended.
        interval: (low, high), 95 % unless the context's origin says otherwise; None where unknown.
        message: For people, where `status` is not ok.
        own_half: Half of the interval, in the metric's unit, for comparing the value with others of its context, where
            part of the interval is shared by all of these; None where nothing is.
    """

    architecture: Architecture
    metric: str
    value: float
    context: Context
    status: Status = Status.OK
    interval: tuple[float, float] | None = None
    message: str = ""
    own_half: float | None = None

    def __post_init__(self) -> None:
        if self.status.has_value and not math.isfinite(self.value):
            raise ValueError(
                f"{self.metric} of {self.architecture}: status {self.status} wants a number, got {self.value}"
            )
        if not self.status.has_value and not math.isnan(self.value):
            raise ValueError(f"{self.metric} of {self.architecture}: status {self.status} wants nan, got {self.value}")
        if self.interval is not None and not self.interval[0] <= self.value <= self.interval[1]:
            raise ValueError(
                f"{self.metric} of {self.architecture}: {self.value} is outside its interval {self.interval}"
            )
        if self.own_half is not None and (self.interval is None or not 0 <= self.own_half < math.inf):
            raise ValueError(
                f"{self.metric} of {self.architecture}: own_half is part of an interval, 0 or more; "
                f"got {self.own_half} and interval {self.interval}"
            )

    @property
    def column(self) -> str:
        """Metric, and device where the metric belongs to one, e.g. "latency_ms@edgegpu": as `Objective.name`."""
        device = self.context.device if METRICS[self.metric].per_device else None
        return self.metric if device is None else f"{self.metric}@{device}"

    @property
    def half_width(self) -> float:
        """Half of the interval; 0 where there is none."""
        return 0.0 if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    @property
    def resolution(self) -> float:
        """Its part of what a difference to another value of its context is held against (`joint_half`): `own_half`, or
        half of the whole interval."""
        return self.half_width if self.own_half is None else self.own_half

    @property
    def shared(self) -> float:
        """The rest of the interval's half, which all values of its context share."""
        return math.sqrt(max(0.0, self.half_width**2 - self.resolution**2))

    def promised(self, goal: Goal) -> float:
        """What a budget is held against: the worse end of the interval of a number that was measured or predicted
        here, because another run may well give that; the value itself for others (docs/decisions/002)."""
        if self.interval is None or self.context.source not in (Source.MEASURED, Source.PREDICTED):
            return self.value
        return self.interval[1] if goal == "min" else self.interval[0]

    @classmethod
    def failed(
        cls, architecture: Architecture, metric: str, context: Context, status: Status, message: str
    ) -> Measurement:
        """A failure as a row: status and message, no number."""
        return cls(architecture, metric, math.nan, context, status, None, message)

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "architecture": self.architecture.key,
            "metric": self.metric,
            "value": self.value if self.status.has_value else None,
            "status": str(self.status),
            "context": self.context.to_json(),
        }
        if self.interval is not None:
            row["interval"] = list(self.interval)
        if self.own_half is not None:
            row["own_half"] = self.own_half
        if self.message:
            row["message"] = self.message
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Measurement:
        value, interval = row["value"], row.get("interval")
        return cls(
            Architecture.from_key(row["architecture"]),
            row["metric"],
            math.nan if value is None else float(value),
            Context.from_json(row["context"]),
            Status(row["status"]),
            None if interval is None else (float(interval[0]), float(interval[1])),
            row.get("message", ""),
            None if row.get("own_half") is None else float(row["own_half"]),
        )


def joint_half(one: Measurement, other: Measurement) -> float:
    """What the difference of two values of a metric is held against: a smaller one is a tie. Root of the sum of squares
    of both halves; of two of one context without what these share."""
    shared = 0.0 if one.context == other.context else math.hypot(one.shared, other.shared)
    return math.hypot(one.resolution, other.resolution, shared)
