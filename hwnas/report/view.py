"""What a report shows, gathered once; every output (terminal, JSON, HTML, figures) reads this and nothing else."""

from __future__ import annotations

import platform
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas import __version__
from hwnas.core import pareto, picking
from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.objective import Constraint, Objective
from hwnas.core.protocols import SearchSpace
from hwnas.core.recommending import (
    Portfolio,
    by_weights,
    knee,
    portfolio,
    presented,
    primary_objective,
    recommend,
    runner_up,
    undecided,
    weights_of,
)
from hwnas.core.state import Evaluation, SearchState
from hwnas.core.stopping import Outlook, Stopped, StopRule
from hwnas.core.wording import certainty, digits, heading, known, origin, provenances, quantity, resolved, rounding
from hwnas.optional import version
from hwnas.profiling.record import Record
from hwnas.profiling.runs import LATENCY, Runs
from hwnas.spaces.codes import size

Floats = NDArray[np.float64]
Column = tuple[str, str | None]  # metric, device

FLAGGED, ABOVE = "!", "▲"  # beside a figure: its measurement has flags; its median or 95th percentile misses the budget

_OWN_REFERENCE = "worst value of this run plus 10 % of its range; not comparable between runs"
_DISTRIBUTIONS = ("numpy", "torch", "pymoo", "moocore", "onnx", "onnxruntime", "plotly", "matplotlib")


@dataclass(frozen=True)
class Role:
    """What an architecture is in a search with several fronts.

    Attributes:
        fronts: Devices whose front it is on.
        recommended: Devices that it is recommended for.
        portfolio: Whether it is the one for all devices, and meets their budgets.
    """

    fronts: tuple[str, ...]
    recommended: tuple[str, ...]
    portfolio: bool


@dataclass(frozen=True)
class RunView:
    """A search, finished or not, as its report shows it. `RunView.of` builds one.

    Where a search has a front for each of several devices, `devices` has a view of each; the view itself is about all
    of them: its front is their union, and what it recommends is the one network for all.

    Attributes:
        state: Everything measured.
        ledger: Everything paid.
        texts: `n` public notations of the archive's architectures, in order.
        graphs: `n` graphs of what is left of each network (`live_graph`), for drawings.
        config: The run's configuration; nested mappings are allowed.
        command: The exact command line that makes this run again.
        versions: Package to version.
        created: When this view was made, ISO 8601 in UTC.
        reference: `m` losses: the hypervolume's reference point.
        reference_note: Where the reference point comes from, in words.
        run: The run's directory as the user would type it; "RUN" where unknown.
        notes: Sentences on how the numbers were measured.
        missed: Budgets that exported models may not keep, in sentences: said before anything else.
        measured: For each device that was measured on here: what it is and how well its figures repeat.
        weights: Importance of each objective, where the user gave some.
        rule: By which the search may end before its queries are spent; None for never.
        device: The device whose front this is, in a view of a search that has several.
        common: There, the archive index of the one network for all devices.
        exhausted: Whether every architecture of the space was evaluated.
        runs: By architecture (key) and device: the single runs behind a figure that was measured here.
    """

    state: SearchState
    ledger: Ledger
    texts: tuple[str, ...]
    graphs: tuple[ArchGraph, ...]
    config: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]
    created: str
    reference: Floats
    reference_note: str
    run: str = "RUN"
    notes: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: tuple[float, ...] | None = None
    rule: StopRule | None = None
    device: str | None = None
    common: int | None = None
    exhausted: bool = False
    runs: Mapping[tuple[str, str], Runs] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        state: SearchState,
        ledger: Ledger,
        space: SearchSpace,
        config: Mapping[str, Any],
        *,
        command: str | Sequence[str] = "",
        versions: Mapping[str, str] | None = None,
        created: str | None = None,
        reference: Sequence[float] | Floats | None = None,
        extra: Sequence[Measurement] = (),
        notes: Sequence[str] = (),
        missed: Sequence[str] = (),
        measured: Mapping[str, Mapping[str, Any]] | None = None,
        certificates: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
        weights: Sequence[float] | None = None,
        rule: StopRule | None = None,
        run: str = "RUN",
    ) -> RunView:
        """The view of a search.

        Args:
            state: Where the search stands; any number of evaluations, 0 included.
            ledger: What it has paid.
            space: Formats and draws architectures.
            config: The run's configuration, shown as it is.
            command: Command line that makes the run again, as text or as its words.
            versions: Package to version; those of this process when not given.
            created: ISO 8601 time; now when not given.
            reference: `m` losses for the hypervolume; this archive's worst values plus a tenth of their range when
                not given, which is only comparable inside one run, and says so.
            extra: Facts that the search did not see, e.g. the front's test error: shown, never searched on.
            notes: Sentences on how the numbers were measured.
            missed: Budgets that exported models may not keep, as `hwnas.finals.Finals.broken`.
            measured: For each device that was measured on: what `hwnas.finals.Finals.devices` says.
            certificates: Records of measurements, as `hwnas.finals.Finals.certificates`.
            weights: `m` importances of the objectives, where the user gave some.
            rule: By which the search may end before its queries are spent; None for never.
            run: The run directory, for the commands that the report suggests.
        """
        state = _with_extra(state, extra)
        own = reference is None
        point = pareto.reference_point(state.losses) if reference is None else np.asarray(reference, dtype=float)
        return cls(
            state=state,
            ledger=ledger,
            texts=tuple(space.format(a) for a in state.architectures),
            graphs=tuple(live_graph(space.to_graph(a)) for a in state.architectures),
            config=dict(config),
            command=command if isinstance(command, str) else shlex.join(command),
            versions=dict(versions) if versions is not None else installed_versions(),
            created=created or datetime.now(UTC).isoformat(timespec="seconds"),
            reference=point,
            reference_note=_OWN_REFERENCE if own else "given",
            run=run,
            notes=tuple(notes),
            missed=tuple(missed),
            measured={name: _repeatability(told) for name, told in (measured or {}).items()},
            weights=None if weights is None else tuple(weights),
            rule=rule,
            exhausted=len(state.archive) == size(space),
            runs=_runs(state, certificates or {}),
        )

    @cached_property
    def devices(self) -> Mapping[str, RunView]:
        """For each device with a front of its own a view of that: with the numbers of no other one of them. Empty where
        there is one front."""
        return {device: self._on(device, goal) for device, goal in self.state.by_device.items()}

    def _on(self, device: str, goal: SearchState) -> RunView:
        others = set(self.state.front_devices) - {device}
        goal = replace(
            goal,
            archive=tuple(
                replace(e, measurements=tuple(row for row in e.measurements if row.context.device not in others))
                for e in goal.archive
            ),
        )
        columns = [self.state.objectives.index(objective) for objective in goal.objectives]
        own = self.reference_note == _OWN_REFERENCE
        return replace(
            self,
            state=goal,
            reference=pareto.reference_point(goal.losses) if own else self.reference[columns],
            measured={name: told for name, told in self.measured.items() if name not in others},
            weights=None if self.weights is None else weights_of(self.state, goal, self.weights),
            device=device,
            common=self.recommended,
        )

    @cached_property
    def portfolio(self) -> Portfolio | None:
        """The one architecture for all devices that have fronts; None where there is one front, or none has all
        numbers."""
        return portfolio(self.state, self.weights) if self.state.front_devices and self.n else None

    @cached_property
    def shown(self) -> tuple[int, ...]:
        """Archive indices that lists and exports hold: see `core.recommending.presented`."""
        return presented(self.state, self.weights)

    def role(self, index: int) -> Role:
        """What an architecture of the archive is, where there are several fronts."""
        return Role(
            tuple(device for device, view in self.devices.items() if index in view.front),
            tuple(device for device, view in self.devices.items() if index == view.recommended),
            bool(self.devices) and index == self.recommended,
        )

    @property
    def answered(self) -> bool:
        """Whether something meets the budgets; with several fronts, those of each device."""
        return all(view.recommended is not None for view in self.devices.values() or (self,))

    @property
    def n(self) -> int:
        """Number of evaluated architectures."""
        return len(self.state.archive)

    @cached_property
    def stopped(self) -> Stopped:
        """Why the search ended, if it did, and what was expected of going on."""
        told = self.state.stopped(self.rule)
        return replace(told, reason="exhausted") if told.reason is None and self.exhausted else told

    @property
    def expected(self) -> Outlook | None:
        """What was expected of going on, on this view's own front; of several fronts together None, except in runs made
        before each had its own, where it is that of one of them."""
        found = self.stopped.outlook
        apart = bool(self.devices) or self.device is not None
        return None if found is None or (apart and found.device != self.device) else found

    @property
    def finished(self) -> bool:
        return self.stopped.reason is not None

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """(metric, device) of every number worth a column: objectives, budgets, then whatever else was measured."""
        wanted: dict[Column, None] = {(o.metric, o.device): None for o in self.state.objectives}
        wanted |= {(c.metric, c.device): None for c in self.state.constraints}
        for evaluation in self.state.archive:
            for row in evaluation.measurements:
                device = row.context.device if known(row.metric).per_device else None
                wanted.setdefault((row.metric, device))
        return tuple(wanted)

    @cached_property
    def values(self) -> Floats:
        """`n x len(columns)` in the metrics' own units; nan where there is no number."""
        table = np.full((self.n, len(self.columns)), np.nan)
        for i, j, row in self._cells():
            table[i, j] = row.value
        return table

    @cached_property
    def spreads(self) -> Floats:
        """`n x len(columns) x 2`: how far each interval, of any source, reaches below and above its value."""
        table = np.zeros((self.n, len(self.columns), 2))
        for i, j, row in self._cells():
            if row.interval is not None:
                table[i, j] = row.value - row.interval[0], row.interval[1] - row.value
        return table

    @cached_property
    def front(self) -> tuple[int, ...]:
        """Archive indices of the front, by ascending first objective."""
        return tuple(int(i) for i in self.state.front_indices)

    @cached_property
    def feasible(self) -> NDArray[np.bool_]:
        """`n`: every budget met and no objective missing."""
        return np.asarray(self.state.violations == 0)

    @cached_property
    def failed(self) -> NDArray[np.bool_]:
        """`n`: an objective or a budget's metric has no number."""
        return np.asarray(~np.isfinite(self.state.violations))

    @cached_property
    def primary(self) -> int:
        """Index of the objective that 'best' is about: the first one that has no budget of its own."""
        return primary_objective(self.state)

    @property
    def objective(self) -> Objective:
        """The objective that 'best' is about."""
        return self.state.objectives[self.primary]

    @cached_property
    def recommended(self) -> int | None:
        """Archive index of the recommended architecture; None where nothing is feasible."""
        return recommend(self.state, self.weights)

    @cached_property
    def weighted(self) -> int | None:
        """Archive index of the front's best by the weights; None without weights or front, or with several fronts."""
        return None if self.weights is None or self.devices else by_weights(self.state, self.weights)

    @property
    def by_knee(self) -> bool:
        """Whether the knee is what is recommended."""
        return self.weights is None and not self.devices and undecided(self.state)

    @cached_property
    def runner_up(self) -> int | None:
        """The next best after the recommended one by what recommended it, or None; a knee has no second."""
        return runner_up(self.state, self.weights)

    @cached_property
    def nearest(self) -> int | None:
        """Where nothing is feasible (with several fronts: on all devices at once): the archive index that misses the
        budgets by least; None where all failed."""
        if self.devices:
            return None if self.portfolio is None or self.portfolio.admissible else self.portfolio.index
        if self.feasible.any():
            return None
        return picking.nearest_to_feasible(self.state.losses, self.state.violations)

    @cached_property
    def knee(self) -> int | None:
        """Archive index of the front's knee; None for fronts of fewer than three points or one objective."""
        if self.devices or len(self.front) < 3 or len(self.state.objectives) < 2:
            return None
        return knee(self.state)

    @cached_property
    def hypervolumes(self) -> Floats:
        """`n`: hypervolume of the feasible architectures after each evaluation, up to `reference`."""
        return hypervolume_curve(self.state.losses, self.feasible, self.reference)

    @cached_property
    def best_values(self) -> Floats:
        """`n`: value of the best feasible architecture so far in the primary objective; nan before the first."""
        losses = np.where(self.feasible, self.state.losses[:, self.primary], np.nan)
        best = np.fmin.accumulate(losses) if self.n else losses
        return np.array([self.objective.value(float(loss)) for loss in best])

    @cached_property
    def statuses(self) -> Mapping[str, int]:
        """How often each status without a number came up in the measurements."""
        rows = (row for evaluation in self.state.archive for row in evaluation.measurements)
        return dict(Counter(str(row.status) for row in rows if not row.status.has_value))

    def sources(self, rows: Iterable[int]) -> Mapping[Column, str]:
        """For each column, in words, where the numbers of some rows come from; several are joined by ' | '."""
        told = self._contexts(rows)
        return {column: provenances(contexts) or "nothing measured" for column, contexts in told.items()}

    @cached_property
    def all_sources(self) -> Mapping[Column, str]:
        """The same of all rows: those of the front in full; in short what only others have."""
        shown = self.front or (() if self.nearest is None else (self.nearest,)) or range(self.n)
        told, every = self.sources(shown), self._contexts(range(self.n))
        found = {}
        for column, contexts in self._contexts(shown).items():
            others = dict.fromkeys(map(_short, every[column].keys() - contexts.keys()))
            found[column] = told[column] + (f"; others also: {', '.join(sorted(others))}" if others else "")
        return found

    def _contexts(self, rows: Iterable[int]) -> dict[Column, dict[Context, None]]:
        """For each column the contexts of its numbers."""
        wanted = set(rows)
        told: dict[Column, dict[Context, None]] = {column: {} for column in self.columns}
        for i, j, row in self._cells():
            if i in wanted:
                told[self.columns[j]][row.context] = None
        return told

    def measurement(self, index: int, column: Column) -> Measurement | None:
        """The measurement behind one cell of `values`."""
        return find(self.state.archive[index], column)

    def title(self, column: Column) -> str:
        """Column or axis title with unit."""
        return heading(*column)

    def value_text(self, index: int, column: Column, *, unit: bool = True) -> str:
        """A value for people with its interval: "4.213 ± 0.041 ms", lopsided ones as "4.2 +0.4 -0.1 ms".

        Where there is no number it is the status.
        """
        row = self.measurement(index, column)
        if row is None:
            return "-"
        if not row.status.has_value:
            return str(row.status)
        number = quantity(row.metric, row.value, unit=False)
        if row.interval is None or resolved(row):
            return quantity(row.metric, row.value, unit=unit)
        down, up = row.value - row.interval[0], row.interval[1] - row.value
        places = digits(row.metric, row.value)
        ends = (0.0 if rounding(x, row.value) else x for x in (row.half_width, down, up))
        half, less, more = (quantity(row.metric, x, unit=False, decimals=places) for x in ends)
        wide = f"+{more} -{less}" if abs(up - down) > 0.4 * row.half_width else f"± {half}"
        name = known(row.metric).unit if unit else ""
        return f"{number} {wide} {name}".rstrip()

    def cell_text(self, index: int, column: Column) -> str:
        """A value for tables: without its unit, with `FLAGGED` and `ABOVE` where they hold."""
        return f"{self.value_text(index, column, unit=False)} {self.cell_marks(index, column)}".rstrip()

    def cell_marks(self, index: int, column: Column) -> str:
        """ "!" where the measurement behind a cell has flags to doubt it for; "▲" where a latency keeps its budget, but
        the median or the 95th percentile of its runs does not."""
        row, runs = self.measurement(index, column), self.runs_of(index, column)
        if row is None or runs is None:
            return ""
        kept = [c for c in self.budgets_of(column) if column[0] == LATENCY and c.violation(row.promised(c.goal)) == 0]
        return f"{FLAGGED if runs.doubts else ''}{ABOVE if any(map(runs.above, kept)) else ''}"

    def runs_of(self, index: int, column: Column) -> Runs | None:
        """The single runs behind a time or an energy that was measured here; None for other numbers."""
        metric, device = column
        if metric not in _OF_RUNS or device is None:
            return None
        return self.runs.get((self.state.architectures[index].key, device))

    def budgets_of(self, column: Column) -> list[Constraint]:
        """The budgets of a column."""
        return [budget for budget in self.state.constraints if (budget.metric, budget.device) == column]

    def certainty(self, index: int, column: Column) -> str:
        """How sure a number is, and how the single runs behind it went, in words; "" where there is none."""
        row, runs = self.measurement(index, column), self.runs_of(index, column)
        if row is None:
            return ""
        told = [certainty(row), runs.figures if runs is not None and column[0] == LATENCY else ""]
        told.append(f"flags: {', '.join(runs.flags)}" if runs is not None and runs.flags else "")
        return "; ".join(filter(None, told))

    def _cells(self) -> list[tuple[int, int, Measurement]]:
        rows = (
            (i, j, find(evaluation, column))
            for i, evaluation in enumerate(self.state.archive)
            for j, column in enumerate(self.columns)
        )
        return [(i, j, row) for i, j, row in rows if row is not None]


def find(evaluation: Evaluation, column: Column) -> Measurement | None:
    """The measurement of a (metric, device) in one evaluation, or None."""
    return evaluation.find(*column)


def hypervolume_curve(losses: Floats, feasible: NDArray[np.bool_], reference: Floats) -> Floats:
    """Hypervolume of the feasible rows among the first 1, 2, ... n.

    Args:
        losses: `n x m`.
        feasible: `n`; other rows add nothing.
        reference: `m`, the reference point.

    Returns:
        `n` volumes in the product of the objectives' units.
    """
    curve = np.zeros(len(losses))
    front = np.zeros((0, losses.shape[1]))
    volume = 0.0
    for i, row in enumerate(losses):
        if feasible[i] and (row < reference).all() and not (front <= row).all(axis=1).any():
            # rows that the newcomer dominates add nothing: dropping them keeps long runs quick
            front = np.vstack([front[~(row <= front).all(axis=1)], row])
            volume = pareto.hypervolume(front, reference)
        curve[i] = volume
    return curve


def installed_versions() -> dict[str, str]:
    """Versions of hwnas, Python and the packages that its numbers depend on; absent ones are left out."""
    found = {name: version(name) for name in _DISTRIBUTIONS}
    return {
        "hwnas": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        **{name: number for name, number in found.items() if number is not None},
    }


def live_graph(graph: ArchGraph) -> ArchGraph:
    """What is left of a network when "none" operations and then all that reaches no output are taken out."""
    number = {old: new for new, old in enumerate(i for i, op in enumerate(graph.ops) if op != "none")}
    edges = tuple((number[s], number[t]) for s, t in graph.edges if s in number and t in number)
    return ArchGraph(tuple(graph.ops[i] for i in number), edges).pruned()


def _short(context: Context) -> str:
    return origin(context) + (f" ({context.fidelity})" if context.fidelity else "")


_OF_RUNS = (LATENCY, "cpu_time_ms", "energy_mj")  # what a busy machine changes


def _runs(
    state: SearchState, certificates: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[tuple[str, str], Runs]:
    """Runs by architecture and device, of records that the archive's numbers are really from."""
    found = {}
    for evaluation in state.archive:
        key = evaluation.architecture.key
        for device, told in certificates.get(key, {}).items():
            try:
                record = Record.from_json({name: value for name, value in told.items() if name != "batch"})
            except ValueError:  # of another version of hwnas, which may have said other things
                continue
            runs = Runs.of(record)
            if runs is None or record.latency is None:
                continue
            energy = None if record.energy is None else record.energy.energy_mj
            figures = dict(zip(_OF_RUNS, (record.latency.value, record.latency.cpu_time, energy), strict=True))
            if any(
                row.context.device == device
                and row.context.source is Source.MEASURED
                and figures.get(row.metric) == row.value
                for row in evaluation.measurements
            ):
                found[key, device] = runs
    return found


def _repeatability(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader should know of a device that was measured on; relative numbers, None where unknown."""
    names = (
        "title",
        "runtime",
        "threads",
        "precision",
        "clock",
        "versions",
        "fingerprint",
        "noise_floor",
        "calibrated",
    )
    again = told.get("retests") or {}
    checked, held = told.get("audits") or (0, 0)
    return {
        **{name: told[name] for name in names if name in told},
        "retest_pairs": again.get("pairs", 0),
        "retest_tau": again.get("tau"),
        "retest_rel": again.get("relative"),
        "predictions_checked": checked,
        "predictions_held": held,
    }


def _with_extra(state: SearchState, extra: Sequence[Measurement]) -> SearchState:
    """The state with more facts about architectures of its archive; those about others are left out."""
    more: dict[Architecture, list[Measurement]] = {}
    for row in extra:
        more.setdefault(row.architecture, []).append(row)
    if not more:
        return state
    archive = tuple(replace(e, measurements=(*e.measurements, *more.get(e.architecture, ()))) for e in state.archive)
    return replace(state, archive=archive)
