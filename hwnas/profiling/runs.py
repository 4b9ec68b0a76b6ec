"""How the single runs behind a measured latency went: a latency is that of the machine's fast mode, and a user's own
runs are like these, also where the latency is made of loops. Figures and flags, with their meaning in plain words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from hwnas.core.objective import Constraint
from hwnas.core.wording import quantity
from hwnas.profiling.record import Record

LATENCY = "latency_ms"

# what each flag of a record says, in words that follow "busy: "; their bounds are in hwnas.profiling.bench
FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "busy": "other work on the machine waited for a CPU",
        "preempted": "more than half of its samples were interrupted by other work",
        "bimodal": "the machine has a fast and a slow pace: its fastest and its usual runs are over 10 % apart",
        "drift": "the machine was over 10 % slower or faster than when measuring began; figures are corrected by it",
        "throttled": "the GPU lowered its clocks",
        "cold": "its time still changed when warming up ended",
        "cached": "kept from an earlier measurement and brought to the machine's pace of today",
    }
)


@dataclass(frozen=True)
class Runs:
    """The single runs that a latency is the figure of.

    Attributes:
        median, p95: Of one run, ms: by the clock of the latency, and at the pace of the machine that it is told for.
        flags: What was particular meanwhile, words of `FLAGS`.
    """

    median: float
    p95: float
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Record, slower: float = 0.0) -> Self | None:
        """Of a measurement; None where it has no latency, or tells of loops only (`Record.tells_single_runs`).

        Args:
            record: Its figures are on the level of the first batch.
            slower: Log factor of the machine's pace that the runs are told for to that level's.
        """
        if record.latency is None or not record.tells_single_runs:
            return None
        spread, factor = record.latency.own_spread, math.exp(slower)
        return cls(factor * spread.median, factor * spread.p95, tuple(record.flags))

    @property
    def doubts(self) -> tuple[str, ...]:
        """The flags that a reader should doubt the figure for: a kept figure is as good as a new one."""
        return doubtful(self.flags)

    @property
    def figures(self) -> str:
        """Median and 95th percentile in words."""
        return f"median of its runs {quantity(LATENCY, self.median)}, 95th percentile {quantity(LATENCY, self.p95)}"

    @property
    def flagged(self) -> str:
        """What to doubt it for, with what that means; "" where there is nothing."""
        return explained(self.doubts)

    def above(self, budget: Constraint) -> tuple[str, ...]:
        """What of the runs misses a latency budget: "median", "p95", both or nothing."""
        return tuple(name for name in ("median", "p95") if budget.violation(getattr(self, name)) > 0)

    def beyond(self, budget: Constraint) -> str:
        """The same in words: "the median of its runs was 2.410 ms and their 95th percentile 3.100 ms, above it"; ""
        where nothing does."""
        above, median, p95 = self.above(budget), quantity(LATENCY, self.median), quantity(LATENCY, self.p95)
        if not above:
            return ""
        if "median" not in above:
            return f"the 95th percentile of its runs was {p95}, above it"
        return f"the median of its runs was {median} and their 95th percentile {p95}, above it"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**dataclasses.asdict(self), "flags": list(self.flags)}


def doubtful(flags: Iterable[str]) -> tuple[str, ...]:
    """Those of some flags that say something against a figure."""
    return tuple(flag for flag in flags if flag != "cached")


def explained(flags: Iterable[str]) -> str:
    """Flags, each once, with what they mean: "busy (other work on the machine waited for a CPU), cold (...)". One that
    another version of hwnas gave stands without a meaning."""
    told = (f"{flag} ({FLAGS[flag]})" if flag in FLAGS else flag for flag in dict.fromkeys(flags))
    return ", ".join(told)


def floor(told: Mapping[str, Any]) -> str:
    """How badly a device's figures repeat (`Profiler.describe`), which intervals contain: "2.5% between sessions
    (assumed)"."""
    return f"{told['noise_floor']:.1%} between sessions{'' if told.get('calibrated') else ' (assumed)'}"


def floor_note(told: Mapping[str, Any]) -> str:
    """The same with what measures it where it is assumed, and with what intervals contain where that is more."""
    text = f"noise floor {floor(told)}"
    if not told.get("calibrated"):
        text += f", which 'hwnas calibrate --device {told['device']}' measures"
    if told.get("widened", 0.0) > told["noise_floor"]:
        text += f"; intervals contain the {told['widened']:.1%} that repeated measurements showed"
    return text
