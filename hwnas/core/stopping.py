"""When a search may end before its queries are spent: what its generator still expects, and the rule that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a generator expects of going on: predictions, all of them shares of a hypervolume up to one reference point.

    Attributes:
        gain: Growth that the next query is expected to bring, as a share of the present hypervolume.
        missed: Share of the hypervolume that could be had which is expected not to be there yet, in 0..1.
        low, high: A central 90 % interval of `missed`.
    """

    gain: float
    missed: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outlook:
        return cls(**data)


@dataclass(frozen=True, slots=True)
class StopRule:
    """A search has converged when its expected gain stays small. A function of what was saved, so that a resumed search
    stops where an uninterrupted one does.

    Attributes:
        threshold: Gains below it are small: of one query, as a share of the present hypervolume.
        patience: So many steps in a row have to be.
        least: Evaluations before which nothing has converged.
    """

    threshold: float = 0.002
    patience: int = 3
    least: int = 40

    def met(self, outlooks: Sequence[Outlook | None], evaluations: int) -> bool:
        """Whether a search has converged.

        Args:
            outlooks: One for each step; None where there was nothing to tell, as with nothing feasible yet.
            evaluations: Paid so far.
        """
        last = outlooks[-self.patience :]
        if evaluations < self.least or len(last) < self.patience:
            return False
        return all(outlook is not None and outlook.gain < self.threshold for outlook in last)


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a search came to stand where it does.

    Attributes:
        reason: "queries": all were spent; "converged"; "exhausted": the space has no more architectures; None: it is
            going on, or was interrupted.
        evaluations: Paid until then.
        queries: That it might have paid.
        threshold: The rule's; None without one.
        outlook: What its generator expects of going on, predicted; None where nobody asked, or it could not tell.
    """

    reason: Literal["queries", "converged", "exhausted"] | None
    evaluations: int
    queries: int
    threshold: float | None = None
    outlook: Outlook | None = None
