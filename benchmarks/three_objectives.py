"""Searches for three objectives, on the real tables: our generators and the peers, by hypervolume.

    HWNAS_TABLES=DIR python benchmarks/three_objectives.py --out results            # an hour or two
    HWNAS_TABLES=DIR python benchmarks/three_objectives.py --out results --quick    # three tasks, two seeds
    HWNAS_TABLES=DIR python benchmarks/three_objectives.py --out results --report docs/benchmarks

Two kinds of tasks. `energy`: error, latency and energy of the two devices of HW-NAS-Bench whose energy is no multiple
of their latency (the FPGA's is 7 times it), on three data sets. `robust`: error, robust error (APGD-CE, eps 1/255) and
latency of all six devices on CIFAR-10, which the table of robust errors is about. Nothing has a budget.

Objectives that contradict each other leave few cells that are better than the median in all three, so that there are
two reference points for the volume: the medians, as with two objectives, and the 0.9 quantiles, which have nearly the
whole front inside. Peers, results and interruption as in `search_quality.py`. qLogNEHVI takes many minutes a search and
runs on two tasks with one seed, last. Settings of our methods were chosen on CIFAR-10 tasks: those of two objectives,
and for the reference point of three also tasks of both kinds here, with other seeds than those that are shown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from peers import PEERS, SLOW
from quality_report import (
    ORDER,
    OURS,
    POINTS,
    Records,
    cost_part,
    curves,
    everywhere,
    methods,
    of,
    per_task,
    slow_part,
    table,
    whole_seeds,
    wins,
)
from quality_report import OTHERS as OTHER_COLOURS
from quality_tasks import DATASETS, DEVICES, Floats, front_rows, load_error, scaled, searched, volume
from search_quality import Bench, parse_seeds, read, search_ours, search_peer, search_record, stored, write_parquet

from hwnas.core.objective import Objective
from hwnas.tables.folder import Tables
from hwnas.tables.schema import ATTACKED, HARDWARE, ROBUSTNESS, hardware_column

KINDS = {"energy": "error, latency, energy", "robust": "error, robust error, latency"}
ENERGY_DEVICES = ("edgegpu", "eyeriss")
ROBUST = "robust_error_pct"
WIDE = 0.9  # quantile of each objective: the second reference point
TASKS = (
    *(f"{dataset}/{device}/energy" for dataset in DATASETS for device in ENERGY_DEVICES),
    *(f"cifar10/{device}/robust" for device in DEVICES),
)
QUICK = ("cifar10/edgegpu/energy", "ImageNet16-120/eyeriss/energy", "cifar10/raspi4/robust")
SLOW_TASKS = ("cifar10/edgegpu/energy", "cifar10/edgegpu/robust")
METHODS = (
    "random",
    "evolution",
    "nsga2",
    "pymoo:nsga3",
    "pymoo:agemoea",
    "optuna-tpe",
    "optuna-nsga2",
    "agnet",
    "botorch-qlognehvi",
)
# as many individuals as there are reference directions with five partitions: of 20 only 15 would have one
SETTINGS: Mapping[str, Mapping[str, Any]] = {"pymoo:nsga3": {"population": 21}}
SEEDS = 10
FEWER_SEEDS = dict.fromkeys(SLOW, 1)
FIGURES = (
    *((f"gap_{n}", f"gap at {n}") for n in POINTS),
    *((f"wide_gap_{n}", f"wide gap at {n}") for n in POINTS),
    ("recall_200", "recall at 200"),
    ("cpu_s", "CPU s a search"),
    ("labels", "labels seen before"),
)


@dataclass(frozen=True)
class Task:
    """Several objectives over all 15,625 cells.

    Attributes:
        name: "cifar10/edgegpu/energy".
        objectives: `m`, all minimised.
        values: `n x m` in the metrics' own units; nan where not measurable, which is infeasible.
    """

    name: str
    objectives: tuple[Objective, ...]
    values: Floats

    @cached_property
    def losses(self) -> Floats:
        """`n x m`, scaled so that 0 is the table's minimum and 1 its median (over measurable cells)."""
        return scaled(self.values)

    @cached_property
    def wide(self) -> Floats:
        """`m`: the 0.9 quantile of each loss over measurable cells."""
        return np.asarray(np.quantile(self.losses[~np.isnan(self.losses).any(axis=1)], WIDE, axis=0))

    @cached_property
    def front(self) -> set[tuple[float, ...]]:
        """Points of the true front, each once."""
        return {tuple(row) for row in self.losses[front_rows(self.losses)]}

    @cached_property
    def true_volumes(self) -> tuple[float, float]:
        """Up to the medians, and up to `wide`."""
        return volume(self.losses), volume(self.losses, self.wide)

    @property
    def inside(self) -> tuple[int, int]:
        """How many points of the true front are better than the medians, and than `wide`, in every objective."""
        points = np.array(sorted(self.front))
        return int((points < 1).all(axis=1).sum()), int((points < self.wide).all(axis=1).sum())

    def gaps(self, rows: Sequence[int]) -> Floats:
        """`k x 2`: 1 - HV(found)/HV(true front) after each evaluation, up to the medians and up to `wide`."""
        found = self.losses[list(rows)]
        told = [(volume(found[: i + 1]), volume(found[: i + 1], self.wide)) for i in range(len(rows))]
        return np.asarray(1.0 - np.array(told).reshape(-1, 2) / self.true_volumes)

    def recall(self, rows: Sequence[int]) -> float:
        """Share of the true front's points (by their losses) that were found."""
        return len(self.front & {tuple(row) for row in self.losses[list(rows)]}) / len(self.front)


def load_task(tables: Tables, name: str) -> Task:
    """The task of a name of `TASKS`."""
    dataset, device, kind = name.split("/")
    error = searched(dataset)

    def cost(metric: str) -> tuple[Objective, Floats]:
        return Objective(metric, device), tables.column(HARDWARE, hardware_column(dataset, device, metric))

    found = [(Objective(error), load_error(tables, dataset, error))]
    if kind == "energy":
        found += [cost("latency_ms"), cost("energy_mj")]
    else:
        if tables.file(ROBUSTNESS) is None:
            raise SystemExit(f"{tables.folder} has no {ROBUSTNESS.file}: add it, or choose other --tasks")
        found += [(Objective(ROBUST), 100.0 - tables.column(ROBUSTNESS, ATTACKED[ROBUST][0])), cost("latency_ms")]
    objectives, columns = zip(*found, strict=True)
    return Task(name, objectives, np.stack(columns, axis=1))


def run_one(bench: Bench, task: Task, method: str, seed: int, queries: int) -> dict[str, Any]:
    """One search with its figures as plain values."""
    start = time.process_time()
    if method in PEERS:
        rows, more = search_peer(bench, task.values, method, seed, queries)
    else:
        dataset = task.name.partition("/")[0]
        rows, more = search_ours(bench, dataset, task.objectives, (), method, seed, queries, SETTINGS.get(method))
        del more["pools"]
    cpu = time.process_time() - start
    record = search_record(task.name.rpartition("/")[2], task.name, method, seed, rows, cpu) | more
    gaps = task.gaps(rows)
    record |= {"gaps": gaps[:, 0].tolist(), "wide_gaps": gaps[:, 1].tolist()}
    for n in POINTS:
        if n <= queries:  # a peer that stopped earlier is judged by what it had
            last = min(n, len(rows)) - 1
            record |= {f"gap_{n}": float(gaps[last, 0]), f"wide_gap_{n}": float(gaps[last, 1])}
            record[f"recall_{n}"] = task.recall(rows[:n])
    return record


def plan(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(task, method, seed) of every search that was asked for: seed by seed, slow methods last."""
    tasks = options.tasks.split(",") if options.tasks else QUICK if options.quick else TASKS
    seeds = parse_seeds(options.seeds) if options.seeds else list(range(2 if options.quick else SEEDS))
    every = tuple(name for name in METHODS if name not in SLOW) if options.quick else METHODS
    chosen = options.generators.split(",") if options.generators else every
    for slow in (False, True):
        for i, seed in enumerate(seeds):
            for method in (name for name in chosen if (name in SLOW) is slow):
                if i < (len(seeds) if options.seeds else FEWER_SEEDS.get(method, len(seeds))):
                    for task in tasks:
                        if not slow or options.tasks or task in SLOW_TASKS:
                            yield task, method, seed


def write_report(records: Records, folder: Path, bench: Bench) -> None:
    """Write `three_objectives.md` and its picture into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    finished = sorted((r for r in records if f"gap_{max(POINTS)}" in r), key=lambda r: TASKS.index(r["task"]))
    lines = [
        "# Three objectives",
        "",
        "The searches: `HWNAS_TABLES=DIR python benchmarks/three_objectives.py --out results` (a stopped run goes on",
        "where it was). This page: the same with `--report docs/benchmarks`.",
        "",
        "![wide gap over evaluations, median and quartiles over tasks and seeds](three_objectives.png)",
        "",
        "No budget. gap = 1 - HV(found)/HV(true front) after scaling each objective by the table's minimum and median.",
        "Reference point of `gap`: the medians, as with two objectives; of `wide gap`: the 0.9 quantiles, because few",
        "cells are better than the median in three objectives that contradict each other. Recall = share of the true",
        "front's points. Mean over tasks, ± half width of the 95 % interval over seeds. Lower is better but for",
        "recall. CIFAR-10 is searched on validation, the others on test (the tables have no validation there); robust",
        "error is that of CIFAR-10's test images under APGD-CE, L-inf, eps 1/255. `pymoo:nsga3` has 21 individuals, as",
        "many as reference directions.",
        "",
    ]
    for kind, title in KINDS.items():
        there = whole_seeds([r for r in finished if r["protocol"] == kind], "method")
        if there:
            lines += _kind_part(kind, title, there, bench)
    lines += cost_part(records)
    (folder / "three_objectives.md").write_text("\n".join(lines) + "\n")
    draw(finished, folder / "three_objectives.png")
    print(folder / "three_objectives.md")


def _kind_part(kind: str, title: str, records: Records, bench: Bench) -> list[str]:
    """Everything about the tasks of one kind."""
    first, *more = table(title.capitalize(), everywhere(records), FIGURES)
    more += [*_truth(kind, bench), *slow_part(records, FIGURES)]
    for figure in ("gap", "wide gap"):
        more += [*wins(records, figure), *per_task(records, figure)]
    return [first, *(f"### {title.capitalize()}: {line[3:]}" if line.startswith("## ") else line for line in more)]


def _truth(kind: str, bench: Bench) -> list[str]:
    """How much there is to find."""
    lines = ["| task | points of the true front | better than the medians | than the 0.9 quantiles |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name in TASKS:
        if name.endswith(f"/{kind}"):
            task = load_task(bench.tables, name)
            middle, wide = task.inside
            lines.append(f"| {name.rpartition('/')[0]} | {len(task.front)} | {middle} | {wide} |")
    return [*lines, ""]


def draw(records: Records, path: Path) -> None:
    """Both gaps over evaluations, median and quartiles over tasks and seeds: a column for each kind of tasks. Methods
    that ran on a part of the tasks are left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, len(KINDS), sharex=True, sharey="row")
    # two of the methods have one colour in the other page, where they are in different panels
    colours = {**OTHER_COLOURS, **OURS, "nsga2": "#000000", "optuna-nsga2": "#cc79a7"}
    for line, (key, what) in zip(panels, (("wide_gaps", "wide gap"), ("gaps", "gap")), strict=True):
        for axes, (kind, title) in zip(line, KINDS.items(), strict=True):
            there = everywhere([r for r in records if r["protocol"] == kind])
            for method in [m for m in ORDER if m in methods(there)]:
                low, middle, high = np.quantile(curves(of(there, method), key), (0.25, 0.5, 0.75), axis=0)
                x = np.arange(1, len(middle) + 1)
                width = 2.2 if method == "agnet" else 1.3
                axes.plot(x, middle, color=colours[method], label=method, linewidth=width)
                axes.fill_between(x, low, high, color=colours[method], alpha=0.10, linewidth=0)
            axes.set(yscale="log", xlim=(1, max(POINTS)))
            axes.grid(alpha=0.25, which="both")
            if what == "wide gap":
                axes.set_title(title)
            else:
                axes.set_xlabel("evaluations")
        line[0].set_ylabel(f"{what} (median, quartiles)")
    panels[0][0].legend(fontsize=8, ncols=2, loc="lower left")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--tables", help="folder of Parquet tables; default HWNAS_TABLES")
    parser.add_argument("--tasks", help="e.g. cifar10/edgegpu/energy,cifar10/fpga/robust; default all")
    parser.add_argument("--seeds", help=f"e.g. 0-4; default {SEEDS}, of slow methods one")
    parser.add_argument("--generators", help="by commas; default all: " + ", ".join(METHODS))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="three tasks, two seeds, nothing that takes minutes")
    parser.add_argument("--report", type=Path, help="write tables and plots of the stored results there, run nothing")
    options = parser.parse_args()
    bench = Bench(options.tables)
    if options.report is not None:
        write_report(read(options.out), options.report, bench)
        return
    unknown = set((options.tasks or "").split(",")) - {"", *TASKS}
    if unknown:
        raise SystemExit(f"no such task: {', '.join(sorted(unknown))}. Known: {', '.join(TASKS)}")
    tasks: dict[str, Task] = {}
    for name, method, seed in plan(options):
        task = tasks.setdefault(name, tasks.get(name) or load_task(bench.tables, name))
        file = f"{name}-{method}-{seed}-{options.queries}".replace("/", "_").replace(":", "_")
        make = partial(run_one, bench, task, method, seed, options.queries)
        record = stored(options.out / "searches" / f"{file}.json", make)
        if record is not None:
            gaps = "  ".join(
                f"{what} " + " ".join(f"{record[f'{key}_{n}']:.3f}" for n in POINTS if f"{key}_{n}" in record)
                for what, key in (("gap", "gap"), ("wide", "wide_gap"))
            )
            print(f"{method:18} {name:30} seed {seed}  {gaps}  {record['cpu_s']:.1f} CPU s", flush=True)
    print(write_parquet(read(options.out), options.out / "results.parquet"))


if __name__ == "__main__":
    main()
