"""What is wanted: the only place with a sign. Below it everything is minimised."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.core.metrics import Goal, metric
from hwnas.core.wording import quantity

_ROUNDING = 1e-9  # relative


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric to optimise.

    Attributes:
        metric: Full metric name, e.g. "latency_ms".
        device: Hardware target where the metric belongs to one.
        goal: "min" or "max".
    """

    metric: str
    device: str | None = None
    goal: Goal = "min"

    def __post_init__(self) -> None:
        _check(self.metric, self.device)

    def loss(self, value: float) -> float:
        """The value as a number to minimise; nan stays nan."""
        return value if self.goal == "min" else -value

    def value(self, loss: float) -> float:
        """The inverse of `loss`."""
        return loss if self.goal == "min" else -loss

    @property
    def name(self) -> str:
        """Metric and device, e.g. "latency_ms@edgegpu": a column name."""
        return self.metric if self.device is None else f"{self.metric}@{self.device}"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A budget: the metric's value may not exceed `bound` (or fall below it where larger is better).

    Attributes:
        metric: Full metric name.
        bound: In the metric's unit; above 0.
        device: Hardware target where the metric belongs to one.
        goal: "min" bounds from above, "max" from below.
    """

    metric: str
    bound: float
    device: str | None = None
    goal: Goal = "min"

    def __post_init__(self) -> None:
        _check(self.metric, self.device)
        if not 0 < self.bound < float("inf"):
            raise ValueError(f"a bound is a finite number above 0; got {self.bound} for {self.metric}")

    def violation(self, value: float) -> float:
        """Relative excess over the bound: 0 when met, inf when there is no number (nan)."""
        if value != value:
            return float("inf")
        excess = (value - self.bound if self.goal == "min" else self.bound - value) / self.bound
        # tables hold sums such as 0.9760000000000002: who asks for 0.976 means that one, too
        return excess if excess > _ROUNDING else 0.0

    @property
    def name(self) -> str:
        return self.metric if self.device is None else f"{self.metric}@{self.device}"

    def __str__(self) -> str:
        where = f" on {self.device}" if self.device else ""
        sign = "<=" if self.goal == "min" else ">="
        return f"{metric(self.metric).title}{where} {sign} {quantity(self.metric, self.bound)}"


def _check(name: str, device: str | None) -> None:
    if metric(name).per_device and device is None:
        raise ValueError(f"{name} belongs to a device; name one, e.g. device='edgegpu'")
    if not metric(name).per_device and device is not None:
        raise ValueError(f"{name} is the same on every device; got device={device!r}")
