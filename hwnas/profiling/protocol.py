"""How carefully to measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hwnas.errors import UnknownName


@dataclass(frozen=True)
class Protocol:
    """Settings of a measurement; the numbers are those of a study on a busy two-core machine (docs/profiling.md).

    A round visits every network once, in a fresh random order; a visit is some untimed and then some timed runs.

    Attributes:
        name: "quick", "default", "final", or a name of one's own.
        rank: A record of a higher rank answers questions of a lower one.
        rounds: Least number of rounds.
        most_rounds: Largest.
        step: Rounds between two looks at who may leave.
        within: A network leaves when half of its 95 % interval, between-session part excluded, is so small relative to
            its latency.
        budget_s: Wall seconds that a network may take on average; then the batch ends unconverged.
        batch: Networks that are interleaved with each other.
        processes: Fresh worker processes, one after the other, that each measure everything.
        visit_ms: Timed work that a visit aims at, ms.
        samples: Least and largest number of timed samples in a visit.
        untimed: Runs at the beginning of a visit, which bring caches back.
        sample_us: Shortest sample that a latency is made of, us; a network that takes less than half of it is looped.
        singles: Timed single runs in each visit of a network that is looped: loops hide how single runs scatter.
        warm_runs, warm_ms: Warm-up of a network lasts at least so many runs and ms,
        most_warm_runs, most_warm_ms: and at most so many, unless two blocks agree before
        warm_within: to within this.
        resamples: Of rounds, for intervals.
        retests: Earlier networks that each later batch measures again.
    """

    name: str = "default"
    rank: int = 1
    rounds: int = 30
    most_rounds: int = 60
    step: int = 10
    within: float = 0.03
    budget_s: float = 2.0
    batch: int = 32
    processes: int = 1
    visit_ms: float = 4.0
    samples: tuple[int, int] = (2, 8)
    untimed: int = 1
    sample_us: float = 200.0
    singles: int = 4
    warm_runs: int = 3
    warm_ms: float = 50.0
    most_warm_runs: int = 50
    most_warm_ms: float = 1000.0
    warm_within: float = 0.05
    resamples: int = 500
    retests: int = 2

    def __post_init__(self) -> None:
        if not (1 <= self.rounds <= self.most_rounds and self.step >= 1 and self.batch >= 1 and self.processes >= 1):
            raise ValueError(f"1 <= rounds <= most_rounds and step, batch, processes >= 1 are wanted; got {self}")
        if not (0 < self.within < 1 and self.budget_s > 0 and 1 <= self.samples[0] <= self.samples[1]):
            raise ValueError(f"0 < within < 1, budget_s > 0 and 1 <= samples are wanted; got {self}")
        if self.singles < 1:
            raise ValueError(f"singles >= 1 is wanted; got {self}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("quick", rank=0, rounds=10, most_rounds=10, within=0.08, warm_ms=20.0),
        Protocol(),
        Protocol("final", rank=2, rounds=60, most_rounds=200, within=0.01, budget_s=10.0, processes=3),
    )
}


def protocol(name: str) -> Protocol:
    """The preset called `name`.

    Raises:
        UnknownName: With the presets.
    """
    if name not in PROTOCOLS:
        raise UnknownName("preset", name, PROTOCOLS)
    return PROTOCOLS[name]
