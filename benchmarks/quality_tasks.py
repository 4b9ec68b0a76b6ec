"""The tasks and figures of `search_quality.py`: what is the truth, and how near a search has come to it.

Only benchmarks look at whole tables; a search asks through counted evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import moocore
import numpy as np
from numpy.typing import NDArray

from hwnas.tables.folder import Tables
from hwnas.tables.schema import ACCURACY, HARDWARE, accuracy_column, hardware_column

Floats = NDArray[np.float64]

DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
QUANTILES = (0.05, 0.2, 0.5)  # of latency: the limits of `regret`
NOTHING_FEASIBLE = 10.0  # points of accuracy


@dataclass(frozen=True)
class Task:
    """Two objectives over all 15,625 cells.

    Attributes:
        name: "cifar10/edgegpu".
        error: `n` error in %, on validation where the table has it.
        latency: `n` latency in ms; nan where not measurable, which is infeasible.
    """

    name: str
    error: Floats
    latency: Floats

    @property
    def dataset(self) -> str:
        return self.name.partition("/")[0]

    @property
    def device(self) -> str:
        return self.name.partition("/")[2]

    @cached_property
    def losses(self) -> Floats:
        """`n x 2`, scaled so that 0 is the table's minimum and 1 its median (over measurable cells)."""
        return scaled(np.stack([self.error, self.latency], axis=1))

    @cached_property
    def true_volume(self) -> float:
        return volume(self.losses)

    @cached_property
    def front(self) -> NDArray[np.int64]:
        """Rows of the true front."""
        return front_rows(self.losses)

    @cached_property
    def limits(self) -> list[tuple[float, float]]:
        """`limits_at` the few quantiles of `regret`."""
        return self.limits_at(QUANTILES)

    def limits_at(self, quantiles: Sequence[float]) -> list[tuple[float, float]]:
        """(latency limit, best error below it) at quantiles of latency."""
        known = ~np.isnan(self.latency)
        limits = np.quantile(self.latency[known], quantiles)
        return [(float(x), float(self.error[known & (self.latency <= x)].min())) for x in limits]

    def gap(self, rows: Sequence[int]) -> float:
        """1 - HV(found)/HV(true front), reference point (1, 1): the table's medians."""
        return 1.0 - volume(self.losses[list(rows)]) / self.true_volume

    def gaps(self, rows: Sequence[int]) -> Floats:
        """`gap` after each evaluation."""
        return np.array([self.gap(rows[: i + 1]) for i in range(len(rows))])

    def recall(self, rows: Sequence[int]) -> float:
        """Share of the true front's points (by their losses) that were found."""
        wanted = {tuple(row) for row in self.losses[self.front]}
        return len(wanted & {tuple(row) for row in self.losses[list(rows)]}) / len(wanted)

    def regret(self, rows: Sequence[int]) -> float:
        """Mean over the limits of `regrets`."""
        return float(np.mean(self.regrets(rows, self.limits)))

    def regrets(self, rows: Sequence[int], limits: Sequence[tuple[float, float]]) -> list[float]:
        """At each of `limits_at`: found error - best error in the table, in points; 10 where nothing is feasible."""
        picked = np.asarray(rows, dtype=np.int64)
        told = []
        for limit, best in limits:
            feasible = picked[self.latency[picked] <= limit]  # nan compares as false
            told.append(float(self.error[feasible].min()) - best if len(feasible) else NOTHING_FEASIBLE)
        return told

    def best_below(self, rows: Sequence[int], limit: float) -> float:
        """Lowest error among rows within a latency limit; nan where there is none."""
        picked = np.asarray(rows, dtype=np.int64)
        feasible = picked[self.latency[picked] <= limit]
        return float(self.error[feasible].min()) if len(feasible) else float("nan")


def scaled(values: Floats) -> Floats:
    """`n x m` numbers so that 0 is a column's minimum and 1 its median, over rows without nan; nan stays nan."""
    known = values[~np.isnan(values).any(axis=1)]
    low, middle = known.min(axis=0), np.median(known, axis=0)
    return np.asarray((values - low) / (middle - low))


def front_rows(losses: Floats) -> NDArray[np.int64]:
    """Rows without nan that no other dominates, all twins of a point included."""
    known = np.flatnonzero(~np.isnan(losses).any(axis=1))
    return known[moocore.is_nondominated(losses[known], keep_weakly=True)]


def volume(losses: Floats, reference: Floats | None = None) -> float:
    """Hypervolume up to `reference` (ones where None) of rows without nan."""
    point = np.ones(losses.shape[1]) if reference is None else reference
    inside = losses[(losses < point).all(axis=1)]  # nan compares as false
    return float(moocore.hypervolume(inside, ref=point)) if len(inside) else 0.0


def load_task(tables: Tables, name: str) -> Task:
    """The task of a name such as "cifar100/fpga"."""
    dataset, _, device = name.partition("/")
    latency = tables.column(HARDWARE, hardware_column(dataset, device, "latency_ms"))
    return Task(name, load_error(tables, dataset, searched(dataset)), latency)


def load_error(tables: Tables, dataset: str, metric: str) -> Floats:
    """Error in % of all cells, by split: "val_error_pct" or "test_error_pct"."""
    return np.asarray(100.0 - tables.column(ACCURACY, accuracy_column(dataset, metric)))


def searched(dataset: str) -> str:
    """The error that searches minimise: on validation where the tables have it."""
    return "val_error_pct" if dataset == "cifar10" else "test_error_pct"


def all_tasks() -> list[str]:
    return [f"{dataset}/{device}" for dataset in DATASETS for device in DEVICES]
