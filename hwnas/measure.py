"""Asking for numbers: the store first, then the evaluators; a failure is a row like any other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.protocols import Evaluator, Store

Wanted = tuple[str, str | None]  # metric, device


@dataclass(frozen=True)
class Measure:
    """Evaluates architectures and counts what it costs.

    Attributes:
        store: Where facts go, and where the rows of an interrupted step are found again.
        plan: Which evaluator answers which (metric, device), in the order of the columns.
    """

    store: Store
    plan: tuple[tuple[Wanted, Evaluator], ...]

    def __call__(self, architectures: Sequence[Architecture]) -> tuple[list[Measurement], Ledger]:
        """One measurement for each architecture and wanted metric, grouped by architecture, and what was paid.

        A row of this run that is already in the store (its step was killed before it was committed) is not asked
        for again, but counted like the others: it was paid for in this run, once.
        """
        found: dict[tuple[Architecture, Wanted], Measurement] = {}
        missing: dict[int, tuple[Evaluator, dict[Architecture, list[Wanted]]]] = {}
        for wanted, evaluator in self.plan:
            contexts = _contexts(evaluator, wanted)
            assert contexts, f"{evaluator.name} was planned for {wanted}, which it does not answer"
            for architecture in architectures:
                earlier = (self.store.find(architecture, wanted[0], context) for context in contexts)
                known = next(filter(None, earlier), None)
                if known is not None:
                    found[architecture, wanted] = known
                else:
                    entry = missing.setdefault(id(evaluator), (evaluator, defaultdict(list)))
                    entry[1][architecture].append(wanted)
        for evaluator, asked in missing.values():
            self._ask(evaluator, asked, found)
        rows = [found[architecture, wanted] for architecture in architectures for wanted, _ in self.plan]
        return rows, count(rows, evaluations=len(architectures))

    def _ask(
        self,
        evaluator: Evaluator,
        asked: dict[Architecture, list[Wanted]],
        found: dict[tuple[Architecture, Wanted], Measurement],
    ) -> None:
        groups: dict[tuple[Wanted, ...], list[Architecture]] = defaultdict(list)
        for architecture, wanted in asked.items():
            groups[tuple(wanted)].append(architecture)
        for wants, architectures in groups.items():
            by_metric = {(row[0], row[1]): row for row in wants}
            for row in evaluator.evaluate(architectures, wants):
                # stored before the next one is asked for: an expensive number is never lost
                self.store.append([row])
                key = by_metric.get((row.metric, row.context.device)) or by_metric[row.metric, None]
                found[row.architecture, key] = row


def _contexts(evaluator: Evaluator, wanted: Wanted) -> Sequence[Context]:
    if hasattr(evaluator, "contexts"):
        several: Sequence[Context] = evaluator.contexts(*wanted)
        return several
    context = evaluator.context(*wanted)
    return () if context is None else (context,)


def count(rows: Sequence[Measurement], *, evaluations: int) -> Ledger:
    """The ledger entries of some measurements.

    Args:
        rows: Measurements of one step.
        evaluations: How many distinct architectures they are about.
    """
    kinds = {"error": 0, "counted": 0, "cost": 0, "predicted": 0}
    for row in rows:
        if row.context.runtime == "count":
            kinds["counted"] += 1
        elif row.context.source is Source.PREDICTED:
            kinds["predicted"] += 1
        elif row.metric.endswith("_pct"):
            kinds["error"] += 1
        else:
            kinds["cost"] += 1
    return Ledger(
        evaluations=evaluations,
        error_queries=kinds["error"],
        cost_queries=kinds["cost"],
        predicted=kinds["predicted"],
        counted=kinds["counted"],
        failures=sum(not row.status.has_value for row in rows),
    )
