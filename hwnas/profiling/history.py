"""What later batches have to know of earlier ones, so that all figures are on one level and tell how well they repeat.

It grows batch by batch; what a batch added is plain values, so that a search that was killed goes on as if it had not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwnas.profiling import statistics

_RETESTS = 3  # so many of them say how well figures repeat


@dataclass
class History:
    """Batches by one protocol on one device.

    Attributes:
        batches: How many were begun.
        level: Log figures of the reference networks in the first batch, by name; empty before it.
        pace: How uncertain that level is as a whole: what the processes of the first batch showed of their pace, as a
            standard deviation of the mean over them (`statistics.shared_doubt`).
        offsets: Of each batch that measured anything: mean log offset of the references to `level`.
        figures: Log figure on that level and half width for comparisons, by network, in the order of measuring.
        pairs: (first log figure, second, their half widths) of networks that a later batch measured again.
    """

    batches: int = 0
    level: dict[str, float] = field(default_factory=dict)
    pace: float = 0.0
    offsets: list[float] = field(default_factory=list)
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    pairs: list[tuple[float, float, tuple[float, float]]] = field(default_factory=list)

    @property
    def retests(self) -> statistics.Retests | None:
        """How well figures repeated; None before anything was measured again."""
        first, second, halves = zip(*self.pairs, strict=True) if self.pairs else ((), (), ())
        return statistics.retests([math.exp(x) for x in first], [math.exp(x) for x in second], halves)

    @property
    def sigma(self) -> float:
        """Standard deviation of a figure, relative, that retests show; 0 from too few to tell."""
        if len(self.pairs) < _RETESTS:
            return 0.0
        first, second, _ = (np.array(column) for column in zip(*self.pairs, strict=True))
        return statistics.retest_sigma(first, second)

    def since(self, pairs: int, offsets: int, networks: Mapping[str, Any]) -> dict[str, Any]:
        """What a batch added, as plain values.

        Args:
            pairs, offsets: How many there were before it.
            networks: By name: those of the batch.
        """
        return {
            "batches": self.batches,
            "level": dict(self.level),
            "pace": self.pace,
            "offsets": self.offsets[offsets:],
            "figures": {name: list(self.figures[name]) for name in networks if name in self.figures},
            "pairs": [[first, second, list(halves)] for first, second, halves in self.pairs[pairs:]],
        }

    def add(self, told: Mapping[str, Any]) -> None:
        """Take up what an earlier session's batch added (`since`).

        Raises:
            KeyError, TypeError, ValueError: It is nothing of the kind.
        """
        self.batches = int(told["batches"])
        self.level = {str(name): float(value) for name, value in told["level"].items()}
        self.offsets += map(float, told.get("offsets", ()))  # none in a run of an earlier version
        self.pace = float(told.get("pace", 0.0))  # likewise
        self.figures |= {str(name): (float(value), float(half)) for name, (value, half) in told["figures"].items()}
        self.pairs += [(float(a), float(b), (float(h), float(g))) for a, b, (h, g) in told["pairs"]]
