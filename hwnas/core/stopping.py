"""When a search may end before its queries are spent: what its generator still expects, and the rule that reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a generator expects of going on: predictions, all of them shares of a hypervolume up to one reference point.

    Attributes:
        gain: Growth that the next query is expected to bring, as a share of the present hypervolume.
        missed: Share of the hypervolume that could be had which is expected not to be there yet, in 0..1.
        low, high: A central 90 % interval of `missed`.
        reference: The reference point, `m` losses in the objectives' own units; empty in runs made before it was saved.
        device: Whose front this is about, in a search that has several; None also in runs made before it was saved.
        fronts: There, what is expected on the front of each device, and None for one that cannot be told of yet.
    """

    gain: float
    missed: float
    low: float
    high: float
    reference: tuple[float, ...] = ()
    device: str | None = None
    fronts: Mapping[str, Outlook | None] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, fronts: Mapping[str, Outlook | None]) -> Outlook | None:
        """The outlook of a search with several fronts: that of the one which may gain most; None where none can be
        told of."""
        known = {device: outlook for device, outlook in fronts.items() if outlook is not None}
        if not known:
            return None
        device = max(known, key=lambda name: known[name].gain)
        return replace(known[device], device=device, fronts=dict(fronts))

    @property
    def most(self) -> float:
        """The largest gain on any front; infinite where one cannot be told of yet."""
        if not self.fronts:
            return self.gain
        return max(math.inf if outlook is None else outlook.gain for outlook in self.fronts.values())

    def seen_from(self, device: str) -> Outlook | None:
        """The same with one of several fronts for its subject; None where that one cannot be told of yet. As it is
        where the fronts were not saved."""
        if not self.fronts:
            return self
        own = self.fronts.get(device)
        return None if own is None else replace(own, device=device, fronts=self.fronts)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; what is empty is left out."""
        return {key: value for key, value in asdict(self).items() if value not in (None, (), {})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outlook:
        fronts = {name: None if told is None else cls.from_json(told) for name, told in data.get("fronts", {}).items()}
        return cls(**{**data, "reference": tuple(data.get("reference", ())), "fronts": fronts})


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
        return all(outlook is not None and outlook.most < self.threshold for outlook in last)


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a search came to stand where it does.

    Attributes:
        reason: "queries": all were spent; "converged"; "exhausted": the space has no more architectures; None: it is
            going on, or was interrupted.
        evaluations: Paid until then.
        queries: That it might have paid.
        threshold: The rule's; None without one.
        outlook: What its generator expects of going on, predicted; None where nobody asked, or it could not tell. With
            several fronts that of the one which may gain most.
    """

    reason: Literal["queries", "converged", "exhausted"] | None
    evaluations: int
    queries: int
    threshold: float | None = None
    outlook: Outlook | None = None
