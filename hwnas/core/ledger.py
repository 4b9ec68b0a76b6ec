"""What a search has paid. Every comparison of methods shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of everything that was paid.

    Attributes:
        evaluations: Distinct architectures evaluated: one for each row of the archive.
        error_queries: Table, surrogate or training evaluations of an error.
        cost_queries: Latency, energy and memory queries (table, surrogate or measured), one a metric and device.
        predicted: Costs that a predictor gave in place of a measurement.
        counted: Numbers counted from the network (parameters, multiply-accumulates).
        zero_cost: Zero-cost evaluations.
        pretraining_labels: Labels that a generator or predictor had seen before the search.
        failures: Rows of measurement that ended without a value.
        reported: Queries after the search, for the report only (e.g. the test error of the front).
        generated: Samples drawn from generators.
        rejected: Samples dropped as invalid, known or repeated.
        filled: Uniform random architectures evaluated because the generator proposed none.
        cpu_s: CPU seconds of the search process.
        wall_s: Wall seconds of the search, up to its last evaluation.
        networks_measured: Networks that the search ran on devices, one a device, those that failed there included;
            isomorphic ones are one.
        networks_kept: Networks whose figures the search had from the user's cache of earlier measurements instead. Both
            are behind `cost_queries`; they and what follows are counted from a run's notes (`hwnas.finals.with_paid`).
        final_measurements: Networks that were run again with the protocol final, one a device.
        final_kept: Networks whose figures of that protocol the cache had.
        final_wall_s: Wall seconds of that.
        file_timings: Timings of exported files, one a device.
        file_wall_s: Wall seconds of that.
    """

    evaluations: int = 0
    error_queries: int = 0
    cost_queries: int = 0
    predicted: int = 0
    counted: int = 0
    zero_cost: int = 0
    pretraining_labels: int = 0
    failures: int = 0
    reported: int = 0
    generated: int = 0
    rejected: int = 0
    filled: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    networks_measured: int = 0
    networks_kept: int = 0
    final_measurements: int = 0
    final_kept: int = 0
    final_wall_s: float = 0.0
    file_timings: int = 0
    file_wall_s: float = 0.0

    def plus(self, other: Ledger) -> Ledger:
        """The sum, entry by entry."""
        return replace(self, **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ledger:
        return cls(**data)
