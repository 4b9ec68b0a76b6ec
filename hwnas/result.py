"""What a search found, as values: the front, the recommendation, everything that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas import report
from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Measurement
from hwnas.core.protocols import SearchSpace
from hwnas.core.recommending import by_weights, portfolio
from hwnas.core.state import Evaluation, SearchState
from hwnas.core.stopping import Stopped
from hwnas.core.wording import origin, origins, quantity
from hwnas.finals import Finals
from hwnas.profiling.runs import Runs

if TYPE_CHECKING:
    import pandas
    from rich.console import RenderableType

    from hwnas.config import SearchConfig


@dataclass(frozen=True, repr=False)
class Found:
    """One evaluated architecture with its numbers.

    Attributes:
        arch: The space's public notation (NB201: the official string).
        architecture: Its identity; `architecture.key` names it on the command line.
        evaluation: All measurements with their contexts.
        runs: By device that was measured on here: median and 95th percentile of the single runs behind the latency, and
            flags (`hwnas.profiling.runs.FLAGS` says what they mean). For the front and what is named beside it.
    """

    arch: str
    architecture: Architecture
    evaluation: Evaluation
    runs: Mapping[str, Runs] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> float:
        """The value of a metric, e.g. `best["latency_ms"]`, or of one on a device, `best["latency_ms@edgegpu"]`."""
        name, _, device = metric.partition("@")
        row = self.evaluation.find(name, device or None)
        if row is None:
            raise KeyError(f"{metric!r} was not measured; there are {', '.join(self.values)}")
        return row.value

    def __repr__(self) -> str:
        numbers = (
            f"{row.column}={quantity(row.metric, row.value, unit=False) if row.status.has_value else row.status}"
            for row in self.evaluation.measurements
        )
        return f"Found({', '.join([self.architecture.key, *numbers])})"

    @property
    def values(self) -> dict[str, float]:
        """Column name to value, in the metric's unit."""
        return {row.column: row.value for row in self.evaluation.measurements}

    @property
    def sources(self) -> dict[str, str]:
        """Column name to "table", "surrogate", "measured", "trained", "predicted" or "counted"."""
        return {row.column: origin(row.context) for row in self.evaluation.measurements}


@dataclass(frozen=True, repr=False)
class Shipped:
    """The one network to ship to several devices.

    Attributes:
        network: The network with its numbers.
        admissible: Whether it meets the budgets of every device; where none does, it is the one that misses them by
            least.
        regrets: By device, how far it is behind the best that was found there; empty where it is not admissible.
        violations: By device, its relative excess over the budgets.
        told: By device, the same in plain words.
    """

    network: Found
    admissible: bool
    regrets: Mapping[str, float]
    violations: Mapping[str, float]
    told: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Shipped({self.network!r}: {'; '.join(self.told.values())})"


class _ByDevice(dict[str, "SearchResult"]):
    """What a search found, by device; another name is answered with those that there are."""

    def __missing__(self, device: str) -> SearchResult:
        there = ", ".join(self) or "none: the search has one front over several devices, or no device"
        raise KeyError(f"{device!r} has no front of its own; there are {there}")


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Prints as a table in a terminal and as a picture in a notebook.

    Attributes:
        state: Everything measured, in order.
        ledger: Everything paid.
        space: The search space.
        config: What was asked for.
        reported: Facts that the search did not see, e.g. the front's test error.
        folder: The run directory, if there is one.
        finals: How the front was measured, where it was measured here.
        command: The command line that makes the search again, from the same sources.
        weights: Importance of each objective, where the user gave some.
    """

    state: SearchState
    ledger: Ledger
    space: SearchSpace
    config: SearchConfig
    reported: tuple[Measurement, ...] = ()
    folder: Path | None = None
    finals: Finals = field(default_factory=Finals)
    command: str = ""
    weights: tuple[float, ...] | None = None

    @cached_property
    def view(self) -> report.RunView:
        """What every report of this result shows."""
        return report.RunView.of(
            self.state,
            self.ledger,
            self.space,
            self.config.to_toml(),
            command=self.command,
            extra=self.reported,
            notes=self.finals.notes,
            missed=self.finals.broken,
            measured=self.finals.devices,
            certificates=self.finals.certificates,
            weights=self.weights,
            rule=self.config.stop_rule,
            run=str(self.folder) if self.folder is not None else "RUN",
        )

    @property
    def best(self) -> Found | None:
        """The recommended architecture: the best that meets every budget; without budgets the best by the weights that
        were given, else the knee of the front. With several fronts the one for all devices (`portfolio`); each device's
        own is in `fronts`. None where nothing is feasible."""
        return None if self.view.recommended is None else self._found(self.view.recommended)

    @cached_property
    def fronts(self) -> Mapping[str, SearchResult]:
        """For each device that was searched for, the result as that device sees it: `fronts["fpga"].best` and
        `fronts["fpga"].front`, under its own budgets. Of a search for one device this result itself; empty for a joint
        front over several devices, and without any. Asked for another device, it says which there are."""
        if self.state.front_devices:
            return _ByDevice(
                (device, replace(self, state=own.state, weights=own.weights, reported=(), folder=None))
                for device, own in self.view.devices.items()
            )
        named = {o.device for o in self.state.objectives} | {c.device for c in self.state.constraints}
        devices = [device for device in named if device is not None]
        return _ByDevice({devices[0]: self} if len(devices) == 1 else {})

    @property
    def portfolio(self) -> Shipped | None:
        """The one network to ship to all devices, and how far it is behind what each could have: the evaluated one
        whose largest regret is least (`hwnas.core.recommending.portfolio`). None where there is one front, or where no
        network has its numbers on every device."""
        chosen = self.view.portfolio
        if chosen is None:
            return None
        told = {device: chosen.told(device) for device in self.state.front_devices}
        return Shipped(self._found(chosen.index), chosen.admissible, chosen.regrets, chosen.violations, told)

    @property
    def nearest(self) -> Found | None:
        """Where nothing is feasible the evaluated architecture that misses the budgets by least; else None."""
        return None if self.view.nearest is None else self._found(self.view.nearest)

    @property
    def knee(self) -> Found | None:
        """The front's knee; None for one objective, several fronts or fewer than three points."""
        return None if self.view.knee is None else self._found(self.view.knee)

    def pick(self, *, weights: Mapping[str, float]) -> Found | None:
        """The architecture of the front that is best by some importances of the objectives (`core.picking.asf`).

        Args:
            weights: By objective, e.g. {"error": 2, "latency": 1}; 1 where not named.

        Returns:
            None where nothing is feasible. With several fronts the one for all devices by these importances.

        Raises:
            UsageError: A weight that is no number above 0, or belongs to no objective.
        """
        from hwnas.config import weigh

        importance = weigh(self.state.objectives, weights)
        if self.state.front_devices:
            chosen = portfolio(self.view.state, importance, by_weights=True)
            index = chosen.index if chosen is not None and chosen.admissible else None
        else:
            index = by_weights(self.view.state, importance)
        return None if index is None else self._found(index)

    @property
    def front(self) -> list[Found]:
        """Feasible architectures that no feasible one dominates, by ascending first objective; with several fronts
        those that are on any."""
        return [self._found(i) for i in self.view.front]

    @property
    def archive(self) -> list[Found]:
        """All evaluated architectures in order, failures included."""
        return [self._found(i) for i in range(len(self.state.archive))]

    @property
    def stopped(self) -> Stopped:
        """Why the search ended, after how many evaluations, and what its generator expected of going on then; with
        several fronts, `fronts[device].stopped` says what it expected there."""
        return self.view.stopped

    def to_json(self) -> dict[str, Any]:
        """Front, recommendation, ledger and contexts as plain values."""
        return {**report.to_json(self.view), "folder": None if self.folder is None else str(self.folder)}

    def to_pandas(self) -> pandas.DataFrame:
        """The archive as a data frame: order, key, arch, a column a metric, source, feasible, front, recommended; with
        several fronts also fronts and recommended_on (devices, joined by "+") and portfolio.

        Raises:
            MissingExtra: pandas is not installed (`pip install 'hwnas[pandas]'`).
        """
        from hwnas.optional import load as load_module

        pandas = load_module("pandas", extra="pandas", purpose="to_pandas()")
        front, best = set(self.view.front), self.view.recommended
        rows = [
            {
                "order": i + 1,
                "key": found.architecture.key,
                "arch": found.arch,
                **found.values,
                "source": origins(found.evaluation.measurements),
                "feasible": bool(self.view.feasible[i]),
                "front": i in front,
                "recommended": i == best,
                **_role_columns(self.view, i),
            }
            for i, found in enumerate(self.archive)
        ]
        return pandas.DataFrame(rows)

    def _found(self, index: int) -> Found:
        evaluation = self.view.state.archive[index]
        key = evaluation.architecture.key
        runs = {device: runs for (network, device), runs in self.view.runs.items() if network == key}
        return Found(self.view.texts[index], evaluation.architecture, evaluation, runs)

    def __rich__(self) -> RenderableType:
        return report.full(self.view)

    def _repr_html_(self) -> str:
        return report.repr_html(self.view)

    def __repr__(self) -> str:
        return (
            f"SearchResult({len(self.state.archive)} evaluated, {len(self.view.front)} on the front, best {self.best})"
        )


def _role_columns(view: report.RunView, index: int) -> dict[str, Any]:
    """Columns of a data frame that say what an architecture is on which device; none where there is one front."""
    if not view.devices:
        return {}
    role = view.role(index)
    return {
        "fronts": "+".join(role.fronts),
        "recommended_on": "+".join(role.recommended),
        "portfolio": role.portfolio,
    }
