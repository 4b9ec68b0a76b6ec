"""The search loop: propose, measure, tell, learn. Knows protocols only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Measurement
from hwnas.core.protocols import Foreseeing, Generator, SearchSpace, Store
from hwnas.core.state import SearchState
from hwnas.core.stopping import StopRule
from hwnas.errors import RunCorrupt
from hwnas.measure import Measure, Wanted
from hwnas.seeding import stream
from hwnas.spaces.codes import sample_unseen

OnStep = Callable[[SearchState, Ledger], None]


@dataclass(frozen=True)
class Search:
    """The parts of one search.

    Attributes:
        space: Where architectures come from.
        generator: Proposes and learns; holds weights.
        measure: Evaluates, stores and counts.
        batch: At most so many evaluations a step; None leaves it to the generator.
        rule: When it may end before its queries are spent, by what a generator that `foresees` expects; None for never.
    """

    space: SearchSpace
    generator: Generator
    measure: Measure
    batch: int | None = None
    rule: StopRule | None = None

    def __post_init__(self) -> None:
        if self.rule is not None and not foresees(self.generator):
            raise ValueError(f"{self.generator.name} cannot tell what it expects, which a rule to stop asks for")

    def step(self, state: SearchState) -> tuple[SearchState, Ledger]:
        """One turn; returns the next state and what the turn has paid. An unchanged archive means that the space
        is exhausted."""
        wish = self.batch or self.generator.batch_size(state)
        n = max(1, min(wish, state.remaining))
        proposed = self.generator.propose(state, n, rng=state.rng("propose"))
        chosen, rejected = _fresh(proposed, state, self.space, n)
        drawn: Ledger = getattr(self.generator, "drawn", Ledger(generated=len(proposed)))
        filled = 0
        if not chosen:
            # fewer than asked for is an answer (the end of a generation); a generator that runs dry must not end a
            # search that still has a budget
            chosen = list(sample_unseen(self.space, n, state.seen, rng=state.rng("fill")))
            filled = len(chosen)
        if not chosen:
            return state, drawn
        rows, paid = self.measure(chosen)
        after = state.tell(rows)
        self.generator.update(after, rng=state.rng("update"))
        return after, paid.plus(drawn).plus(Ledger(rejected=rejected, filled=filled))

    def run(self, state: SearchState, *, ledger: Ledger | None = None, on_step: OnStep | None = None) -> SearchState:
        """Steps until the queries are spent, the rule is met or the space is exhausted; each step is committed to the
        store.

        Args:
            state: Where to start: an empty archive, or what `resume` returned.
            ledger: What was paid before.
            on_step: Called after each committed step, e.g. by a progress display.
        """
        clock = _Clock()
        store: Store = self.measure.store
        total = ledger or Ledger()
        if state.step == 0 and hasattr(self.generator, "pretrain"):
            pretrain = self.generator.pretrain
            total = total.plus(pretrain(self.space, budget=60.0, rng=stream(state.seed, 0, "pretrain")))
        while state.stopped(self.rule).reason is None:
            after, paid = self.step(state)
            more = len(after.archive) > len(state.archive)
            # without a rule nobody has to know before the end, where a reader wants to
            if more and (self.rule is not None or not after.remaining) and foresees(self.generator):
                after = after.expect(self.generator.outlook(after, rng=after.rng("outlook")))
            total = total.plus(paid).plus(clock.lap())
            if not more:
                break
            store.commit_step(after, self.generator.state_dict(), total)
            state = after
            if on_step is not None:
                on_step(state, total)
        return state

    def resume(self, start: SearchState) -> tuple[SearchState, Ledger]:
        """The state and ledger after the last committed step in the store; the generator continues from there.

        Args:
            start: The state with an empty archive that the run began with.

        Raises:
            RunCorrupt: If the store lacks measurements that its steps name.
        """
        saved = self.measure.store.last_step()
        if saved is None:
            return start, Ledger()
        _, steps, weights, ledger = saved
        state = replay(start, steps, self.measure.store.rows(), [wanted for wanted, _ in self.measure.plan])
        self.generator.load_state_dict(weights)
        return replace(state, outlooks=self.measure.store.outlooks()), ledger


def foresees(generator: Generator) -> TypeGuard[Foreseeing]:
    """Whether it can tell what going on would bring."""
    return isinstance(generator, Foreseeing) and generator.foresees


def replay(
    start: SearchState, steps: Iterable[Iterable[str]], rows: Iterable[Measurement], wanted: Sequence[Wanted]
) -> SearchState:
    """The state that `steps` led to, from stored facts alone.

    Args:
        start: The state with an empty archive.
        steps: Architecture keys of each step, in order.
        rows: All stored measurements; those of other metrics (made for the report) are left out.
        wanted: The (metric, device) pairs that every evaluation has, in order.

    Raises:
        RunCorrupt: If an architecture of a step lacks a measurement.
    """
    known: dict[tuple[str, str, str | None], Measurement] = {}
    for row in rows:
        known.setdefault((row.architecture.key, row.metric, row.context.device), row)
    state = start
    for number, keys in enumerate(steps, start=1):
        told: list[Measurement] = []
        for key in keys:
            for metric, device in wanted:
                found = known.get((key, metric, device))
                if found is None:
                    raise RunCorrupt(f"step {number} names {key}, but the store holds no {metric} of it")
                told.append(found)
        state = state.tell(told)
    return state


def _fresh(
    proposed: Iterable[Architecture], state: SearchState, space: SearchSpace, n: int
) -> tuple[list[Architecture], int]:
    """Valid, unseen, distinct proposals, at most `n`, and how many were dropped for not being so."""
    chosen: dict[Architecture, None] = {}
    rejected = 0
    for architecture in proposed:
        space.validate(architecture)  # a generator that leaves the space is a bug, not a sample to drop
        if architecture in state.seen or architecture in chosen:
            rejected += 1
        elif len(chosen) < n:
            chosen[architecture] = None
    return list(chosen), rejected


class _Clock:
    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def lap(self) -> Ledger:
        cpu, wall = time.process_time(), time.perf_counter()
        spent = Ledger(cpu_s=cpu - self._cpu, wall_s=wall - self._wall)
        self._cpu, self._wall = cpu, wall
        return spent
