"""What a search knows: the one value that generators learn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hwnas.core import pareto
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.objective import Constraint, Objective
from hwnas.core.stopping import Outlook, Stopped, StopRule
from hwnas.seeding import stream

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One counted evaluation: an architecture with all its measurements, failures included."""

    architecture: Architecture
    measurements: tuple[Measurement, ...]

    def find(self, metric: str, device: str | None) -> Measurement | None:
        """The measurement of a metric on a device, or None."""
        for row in self.measurements:
            if row.metric == metric and (device is None or row.context.device == device):
                return row
        return None


@dataclass(frozen=True)
class SearchState:
    """Everything measured so far, and what is wanted. Immutable: `tell` returns the next one.

    With `front_devices`, each of these devices has a goal of its own (`by_device`), and what is said of the whole
    archive is the best that any of them says: a row is as feasible, and as far ahead in the order, as on the device
    that it suits best, and the front is the union of theirs. No method has to know: it sees one order.

    Attributes:
        space: Name of the search space.
        objectives: `m` objectives.
        constraints: Budgets.
        queries: Evaluations that the whole search may pay.
        seed: Seed of the run.
        step: Number of `tell`s so far.
        archive: Evaluations in the order in which they were paid.
        outlooks: What the generator expected after each step; None where nobody asked, or it could not tell. With
            several fronts, `by_device` has them with the device's own for a subject.
        front_devices: Devices with a front each; none for one front over all objectives.
    """

    space: str
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    queries: int = 200
    seed: int = 0
    step: int = 0
    archive: tuple[Evaluation, ...] = ()
    outlooks: tuple[Outlook | None, ...] = ()
    front_devices: tuple[str, ...] = ()

    def tell(self, rows: Sequence[Measurement]) -> SearchState:
        """The next state, with new measurements appended; rows of one architecture become one evaluation.

        Raises:
            ValueError: If an architecture is already in the archive: it is evaluated once.
        """
        grouped: dict[Architecture, list[Measurement]] = {}
        for row in rows:
            grouped.setdefault(row.architecture, []).append(row)
        known = grouped.keys() & self.seen
        if known:
            raise ValueError(f"an architecture is evaluated once; {min(known)} is already in the archive")
        fresh = tuple(Evaluation(arch, tuple(measured)) for arch, measured in grouped.items())
        told = (*self.outlooks, None)
        return replace(self, step=self.step + 1, archive=self.archive + fresh, outlooks=told)

    def expect(self, outlook: Outlook | None) -> SearchState:
        """The same state with what the generator expects after the last step."""
        return replace(self, outlooks=(*self.outlooks[:-1], outlook))

    def stopped(self, rule: StopRule | None) -> Stopped:
        """Whether the search is over, and why.

        Args:
            rule: By which it may end early, if it may.
        """
        converged = rule is not None and rule.met(self.outlooks, len(self.archive))
        return Stopped(
            "queries" if not self.remaining else "converged" if converged else None,
            len(self.archive),
            self.queries,
            None if rule is None else rule.threshold,
            self.outlooks[-1] if self.outlooks else None,
        )

    def amend(self, rows: Iterable[Measurement]) -> SearchState:
        """The same archive with better measurements: each row takes the place of its architecture's earlier one of
        the same metric and device. Used after a search, when the front is measured again with more care.

        Raises:
            ValueError: If an architecture has no such measurement.
        """
        better = {(row.architecture, row.metric, row.context.device): row for row in rows}
        archive = []
        for evaluation in self.archive:
            kept = tuple(
                better.pop((row.architecture, row.metric, row.context.device), row) for row in evaluation.measurements
            )
            archive.append(replace(evaluation, measurements=kept))
        if better:
            architecture, metric, device = next(iter(better))
            raise ValueError(f"{architecture} has no {metric} on {device} that could be replaced")
        return replace(self, archive=tuple(archive))

    def rng(self, role: str) -> np.random.Generator:
        """The random stream of one role in this step; nothing to save, no order to keep."""
        return stream(self.seed, self.step, role)

    @property
    def remaining(self) -> int:
        """Evaluations left to pay."""
        return max(0, self.queries - len(self.archive))

    @cached_property
    def architectures(self) -> tuple[Architecture, ...]:
        """The `n` evaluated architectures, in order."""
        return tuple(evaluation.architecture for evaluation in self.archive)

    @cached_property
    def seen(self) -> frozenset[Architecture]:
        return frozenset(self.architectures)

    @cached_property
    def by_device(self) -> Mapping[str, SearchState]:
        """For each device with a front of its own the same archive with its objectives and budgets: what belongs to it,
        and what belongs to none of the others. Empty where there is one front."""

        def concerns(wanted: Objective | Constraint, device: str) -> bool:
            return wanted.device == device or wanted.device not in self.front_devices

        return MappingProxyType(
            {
                device: replace(
                    self,
                    objectives=tuple(o for o in self.objectives if concerns(o, device)),
                    constraints=tuple(c for c in self.constraints if concerns(c, device)),
                    outlooks=tuple(None if told is None else told.seen_from(device) for told in self.outlooks),
                    front_devices=(),
                )
                for device in self.front_devices
            }
        )

    @property
    def goals(self) -> tuple[SearchState, ...]:
        """The states that have one front each: those of `by_device`, or this one."""
        return tuple(self.by_device.values()) or (self,)

    @cached_property
    def losses(self) -> Floats:
        """`n x m`, minimised; nan where a measurement failed."""
        table = np.full((len(self.archive), len(self.objectives)), np.nan)
        for i, evaluation in enumerate(self.archive):
            for j, objective in enumerate(self.objectives):
                row = evaluation.find(objective.metric, objective.device)
                if row is not None:
                    table[i, j] = objective.loss(row.value)
        return table

    @cached_property
    def half_widths(self) -> Floats:
        """`n x m`, half of each interval that was *measured*, without what figures of its context share (`shared`); 0
        for others.

        A surrogate's interval says how far the whole model may be off, not how two of its answers compare, so
        it makes no ties.
        """
        table = np.zeros((len(self.archive), len(self.objectives)))
        for j, objective in enumerate(self.objectives):
            rows = [evaluation.find(objective.metric, objective.device) for evaluation in self.archive]
            table[:, j] = [row.resolution if row and row.context.source is Source.MEASURED else 0.0 for row in rows]
        return table

    @cached_property
    def shared(self) -> pareto.Shared:
        """What figures of one context share, which makes ties between figures of different contexts only; with
        `half_widths`, a joint interval is `hwnas.core.measurement.joint_half`."""
        size = (len(self.archive), len(self.objectives))
        halves, kinds = np.zeros(size), np.zeros(size, dtype=np.int64)
        for j, objective in enumerate(self.objectives):
            numbers: dict[Context, int] = {}
            for i, evaluation in enumerate(self.archive):
                row = evaluation.find(objective.metric, objective.device)
                if row is not None:
                    halves[i, j], kinds[i, j] = row.shared, numbers.setdefault(row.context, len(numbers))
        return pareto.Shared(halves, kinds)

    @cached_property
    def violations(self) -> Floats:
        """`n`: relative excess over all budgets, summed. 0 means feasible; inf that a number is missing.

        A budget is a promise: what was measured or predicted here has to meet it with the worse end of its interval.
        """
        if self.front_devices:
            return np.asarray(np.min([goal.violations for goal in self.goals], axis=0))
        total = np.zeros(len(self.archive))
        for constraint in self.constraints:
            for i, evaluation in enumerate(self.archive):
                row = evaluation.find(constraint.metric, constraint.device)
                total[i] += constraint.violation(np.nan if row is None else row.promised(constraint.goal))
        total[np.isnan(self.losses).any(axis=1)] = np.inf
        return total

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """`n`: whether a number is missing that every goal asks for."""
        return np.asarray(np.all([np.isnan(goal.losses).any(axis=1) for goal in self.goals], axis=0))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Indices into the archive from best to worst; see `order_among`."""
        return self.order_among(np.arange(len(self.archive)))

    def order_among(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices into `rows`, from best to worst among them: by violation, Pareto rank and crowding. With several
        fronts by the best place on any device, then by the mean place."""
        orders = [pareto.order(goal.losses[rows], goal.violations[rows]) for goal in self.goals]
        if len(orders) == 1:
            return orders[0]
        places = np.argsort(orders, axis=1)  # devices x rows: the inverse of each order
        return np.lexsort((np.arange(len(rows)), places.sum(axis=0), places.min(axis=0), self.failed[rows]))

    @cached_property
    def front_indices(self) -> NDArray[np.int64]:
        """Archive indices of the front: feasible rows that no feasible row dominates, ties inside the
        measurements' intervals kept; by ascending first objective. With several fronts the rows of any."""
        if self.front_devices:
            kept = np.unique(np.concatenate([goal.front_indices for goal in self.goals]))
        else:
            feasible = np.flatnonzero(self.violations == 0)
            kept = feasible[
                pareto.non_dominated(self.losses[feasible], self.half_widths[feasible], self.shared.of(feasible))
            ]
        return kept[np.lexsort((kept, self.losses[kept, 0]))] if len(kept) else kept

    def front(self) -> pareto.ParetoFront:
        """The feasible, non-dominated part of the archive; with several fronts all that are on any of them."""
        rows = self.front_indices
        return pareto.ParetoFront(
            tuple(self.architectures[i] for i in rows),
            self.losses[rows],
            tuple(o.name for o in self.objectives),
        )
