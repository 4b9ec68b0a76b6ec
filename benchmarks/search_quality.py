"""Search quality per evaluation, on the real tables: our generators and the peers in one run.

    HWNAS_TABLES=DIR python benchmarks/search_quality.py --out results            # everything, hours
    HWNAS_TABLES=DIR python benchmarks/search_quality.py --out results --quick    # a few minutes
    HWNAS_TABLES=DIR python benchmarks/search_quality.py --out results --report docs/benchmarks
    HWNAS_TABLES=DIR python benchmarks/search_quality.py --out results --earlier docs/benchmarks/search_quality.parquet

Three protocols, all run by default: `front` (error and latency, 18 tasks), `budget` (one latency limit, five devices)
and `single` (error alone, three data sets). Peers need `pip install '.[bench]'`, and besides

    pip install --no-deps syne-tune dill       # its dependencies would bring a CUDA library that nothing here uses
    pip install --no-deps HEBO disjoint-set    # its pins are NumPy < 1.25 and pymoo 0.6.0; it runs on what is there

NePS needs an older BoTorch than the peer of that name, so an environment of its own with `pip install .
neural-pipeline-search`, and there `--generators neps-bo` into the same results folder. What is cheap has many seeds,
`agnet` 10, `agnet-paper` and `agnet-alone` 5; Optuna's GP sampler, BoTorch, HEBO and NePS take minutes a search and run
on six tasks with two seeds, last (what docs/benchmarks shows has fewer of these: docs/benchmarks.md says which). Under
a budget only what knows constraints runs.

Each search is one file in the results folder, written when it ends; finished ones are skipped, so a stopped run goes
on where it was, and so are those of an earlier run's Parquet file (`--earlier`): delete there what has changed since.
All files together are also written as results.parquet, with tables and pictures beside it. Settings of our methods were
chosen on CIFAR-10 tasks, with the exceptions that docs/benchmarks.md tells; the other two data sets are for reporting.
`agnet-alone` is `agnet` that knows nothing of other devices: no label was seen before its search.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two threads are far slower under load

import numpy as np
from peers import APART, NO_BUDGET, PEERS, SLOW, run_peer
from quality_tasks import DATASETS, Floats, Task, all_tasks, load_error, load_task, searched

import hwnas
from hwnas import registry
from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.objective import Constraint, Objective
from hwnas.core.state import SearchState
from hwnas.evaluators.table import TableEvaluator
from hwnas.loop import Search
from hwnas.measure import Measure
from hwnas.spaces.nb201 import NasBench201
from hwnas.stores.memory import MemoryStore
from hwnas.tables.folder import Tables

OURS = ("random", "evolution", "eda", "nsga2", "agnet-paper", "agnet-alone", "agnet")
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {"agnet-alone": ("agnet", {"devices": False})}
PYMOO = ("pymoo:nsga3", "pymoo:agemoea", "pymoo:smsemoa")  # through our seam, as nsga2
METHODS = (*OURS, *PYMOO, *(name for name in PEERS if name not in APART))
POINTS = (50, 100, 200)
QUICK = ("cifar10/edgegpu", "cifar100/raspi4", "ImageNet16-120/fpga")
QUICK_METHODS = tuple(name for name in METHODS if name not in SLOW and name != "agnet-paper")

# what takes minutes a search runs on these, every device once and every data set twice, with two seeds
SLOW_TASKS = (
    "cifar10/edgegpu",
    "cifar10/raspi4",
    "cifar100/pixel3",
    "cifar100/eyeriss",
    "ImageNet16-120/fpga",
    "ImageNet16-120/edgetpu",
)
SEEDS = {"front": 30, "budget": 10, "single": 20}
FEWER_SEEDS = {
    "front": {"agnet": 10, "agnet-paper": 5, "agnet-alone": 5, **dict.fromkeys(SLOW, 2)},
    "budget": {"agnet": 5, "agnet-paper": 5, "agnet-alone": 5, **dict.fromkeys(SLOW, 2)},
    "single": {"agnet": 10},
}

# latency limits in ms on ImageNet16-120; original AG-Net: best feasible test accuracy after 192 queries, its own code
# on the same tables, mean of two seeds
BUDGETS = {"edgegpu": 5.0, "raspi4": 3.095, "fpga": 0.7515, "pixel3": 1.521, "eyeriss": 0.976}
ORIGINAL = {"edgegpu": 44.22, "raspi4": 38.70, "fpga": 38.17, "pixel3": 39.53, "eyeriss": 43.43}
BUDGET_QUERIES = 192

# error alone: mean test accuracy of five seeds of GraphPNAS (arXiv 2211.15155, its own logs) after 100 evaluations,
# chosen on validation
SINGLE = ("random", "evolution", "eda", "agnet")
GRAPHPNAS = {"cifar10": 94.34, "cifar100": 73.35, "ImageNet16-120": 46.50}
SINGLE_QUERIES = 100

TASKS: Mapping[str, Sequence[str]] = {
    "front": tuple(all_tasks()),
    "budget": tuple(f"ImageNet16-120/{device}" for device in BUDGETS),
    "single": DATASETS,
}


class Bench:
    """Tables and space, loaded once."""

    def __init__(self, folder: str | None) -> None:
        found = Tables.find(folder)
        if found is None:
            raise SystemExit("the benchmark tables are missing: set HWNAS_TABLES to a folder of Parquet files")
        self.tables = found
        self.space = NasBench201()
        self.row = {name: i for i, name in enumerate(found.names)}
        self._tasks: dict[str, Task] = {}

    def task(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = load_task(self.tables, name)
        return self._tasks[name]

    def error(self, dataset: str, metric: str) -> Floats:
        """Error in % of all cells."""
        return load_error(self.tables, dataset, metric)

    def rows(self, architectures: Sequence[Architecture]) -> list[int]:
        return [self.row[self.space.format(a)] for a in architectures]

    def place(self, code: tuple[int, ...]) -> int:
        return self.row[self.space.format(Architecture(self.space.name, code))]


def search_ours(
    bench: Bench,
    dataset: str,
    objectives: tuple[Objective, ...],
    budgets: tuple[Constraint, ...],
    name: str,
    seed: int,
    queries: int,
    settings: Mapping[str, Any] | None = None,
) -> tuple[list[int], dict[str, Any]]:
    """One search through hwnas's own loop; the rows of the table in the order in which they were paid for."""
    evaluator = TableEvaluator(bench.tables, bench.space, dataset)
    plan = tuple(((o.metric, o.device), evaluator) for o in objectives)
    called, own = VARIANTS.get(name, (name, {}))
    generator = registry.generator(called, bench.space, {**own, **(settings or {})})
    told: list[Ledger] = []
    pools: list[Any] = []

    def watch(state: SearchState, ledger: Ledger) -> None:
        told.append(ledger)
        if getattr(generator, "last_candidates", None):
            pools.append(generator.last_candidates)

    search = Search(bench.space, generator, Measure(MemoryStore(), plan))
    state = search.run(SearchState(bench.space.name, objectives, budgets, queries, seed), on_step=watch)
    return bench.rows(state.architectures), {"ledger": told[-1].to_json(), "pools": pools}


def rank_correlations(bench: Bench, task: Task, candidates: Any) -> list[float]:
    """Spearman correlation of a generator's predictions with the truth over its last pool: error, then latency.

    The search never sees this: it is computed here, after the fact.
    """
    from scipy.stats import spearmanr

    truth = np.stack([task.error, task.latency], axis=1)[bench.rows(candidates.architectures)]
    known = ~np.isnan(truth).any(axis=1)
    guess = np.asarray(candidates.losses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant prediction has no correlation: nan
        return [float(spearmanr(guess[known, j], truth[known, j]).statistic) for j in range(2)]


def search_peer(
    bench: Bench, losses: Floats, name: str, seed: int, queries: int, limit: float | None = None
) -> tuple[list[int], dict[str, Any]]:
    """One search of somebody else's optimiser on `n x m` losses, paid for in the same way."""
    rows, asked = run_peer(PEERS[name](seed, limit, losses.shape[1]), losses, bench.place, queries)
    return rows, {"asked": asked}


def run_one(
    bench: Bench,
    protocol: str,
    name: str,
    method: str,
    seed: int,
    queries: int,
    *,
    limit: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One search with its figures as plain values.

    Args:
        bench: Tables.
        protocol: "front", "budget" or "single".
        name: The task; of "single" a data set.
        method: One of `METHODS`.
        seed: Of the search.
        queries: Evaluations.
        limit: Latency budget in ms of "budget".
        settings: Of a generator of ours.
    """
    if protocol == "single":
        return _run_single(bench, name, method, seed, queries, settings)
    task = bench.task(name)
    start = time.process_time()
    if method in PEERS:
        losses = np.stack([task.error, task.latency], axis=1)
        rows, more = search_peer(bench, losses, method, seed, queries, limit)
    else:
        objectives = (Objective(searched(task.dataset)), Objective("latency_ms", task.device))
        budgets = () if limit is None else (Constraint("latency_ms", limit, task.device),)
        rows, more = search_ours(bench, task.dataset, objectives, budgets, method, seed, queries, settings)
    cpu = time.process_time() - start
    more["rank_correlations"] = [rank_correlations(bench, task, pool) for pool in more.pop("pools", [])]
    record = search_record(protocol, name, method, seed, rows, cpu) | more
    record["gaps"] = [float(x) for x in task.gaps(rows)]
    for n in POINTS:
        if n <= queries:  # a peer that stopped earlier is judged by what it had
            record |= {
                f"gap_{n}": task.gap(rows[:n]),
                f"recall_{n}": task.recall(rows[:n]),
                f"regret_{n}": task.regret(rows[:n]),
            }
    if limit is not None:
        record["limit"] = limit
        record["best_accuracy"] = 100.0 - task.best_below(rows, limit)
        record["optimum"] = 100.0 - task.best_below(range(len(task.error)), limit)
    return record


def _run_single(
    bench: Bench, dataset: str, method: str, seed: int, queries: int, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A search for accuracy alone: what the best by the searched split has on test, and when the optimum was met."""
    start = time.process_time()
    objectives = (Objective(searched(dataset)),)
    rows, more = search_ours(bench, dataset, objectives, (), method, seed, queries, settings)
    cpu = time.process_time() - start
    del more["pools"]
    error, test = bench.error(dataset, searched(dataset)), bench.error(dataset, "test_error_pct")
    found = np.minimum.accumulate(error[rows])
    optimal = np.flatnonzero(found == error.min())
    record = search_record("single", dataset, method, seed, rows, cpu) | more
    record["best_accuracies"] = [float(100 - x) for x in found]
    record["test_accuracy"] = float(100 - test[rows[int(error[rows[:SINGLE_QUERIES]].argmin())]])
    record["to_optimum"] = int(optimal[0]) + 1 if len(optimal) else None
    return record


def search_record(protocol: str, name: str, method: str, seed: int, rows: Sequence[int], cpu: float) -> dict[str, Any]:
    """What is kept of every search, whatever it was about; `cpu` in seconds."""
    return {
        "protocol": protocol,
        "task": name,
        "method": method,
        "seed": seed,
        "queries": len(rows),
        "cpu_s": cpu,
        "rows": [int(x) for x in rows],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    found = {"hwnas": hwnas.__version__}
    packages = ("numpy", "torch", "pymoo", "moocore", "numba", "optuna", "botorch", "gpytorch", "syne-tune")
    for name in (*packages, "HEBO", "neural-pipeline-search"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


NESTED = ("ledger", "versions", "rank_correlations")  # kept as JSON in a Parquet file


def read(folder: Path) -> list[dict[str, Any]]:
    """All finished searches of a results folder."""
    return [json.loads(path.read_text()) for path in sorted((folder / "searches").glob("*.json"))]


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """The searches of a file that `write_parquet` wrote."""
    import pyarrow.parquet as pq

    return [
        {key: json.loads(value) if key in NESTED else value for key, value in row.items() if value is not None}
        for row in pq.read_table(path).to_pylist()
    ]


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two records be of one search."""
    return tuple(record[name] for name in ("protocol", "task", "method", "seed"))


def write_parquet(records: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """One row a search."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [{k: json.dumps(v) if k in NESTED else v for k, v in record.items()} for record in records]
    keys = list(dict.fromkeys(key for record in flat for key in record))
    table = pa.table({key: [record.get(key) for record in flat] for key in keys})
    pq.write_table(table, path, compression="zstd", compression_level=19)
    return path


def plan(options: argparse.Namespace) -> Iterator[tuple[str, str, str, int, int]]:
    """(protocol, task, method, seed, queries) of every search that was asked for; tasks innermost, so that early
    results cover all of them, slow methods last."""
    protocols = tuple(SEEDS) if options.protocol == "all" else (options.protocol,)
    for slow in (False, True):
        for protocol in protocols:
            for task, method, seed, queries in _plan(options, protocol):
                if (method in SLOW) is slow:
                    yield protocol, task, method, seed, queries


def _plan(options: argparse.Namespace, protocol: str) -> Iterator[tuple[str, str, int, int]]:
    """The same of one protocol."""
    tasks = TASKS[protocol]
    slow_tasks = SLOW_TASKS if protocol == "front" else tasks
    if options.quick and protocol != "single":
        tasks = tuple(task for task in tasks if task in QUICK)
    if options.tasks:
        tasks = slow_tasks = tuple(task for task in tasks if task in options.tasks.split(","))
    seeds = parse_seeds(options.seeds) if options.seeds else list(range(2 if options.quick else SEEDS[protocol]))
    queries = BUDGET_QUERIES if protocol == "budget" else options.queries
    methods = options.generators.split(",") if options.generators else QUICK_METHODS if options.quick else METHODS
    for i, seed in enumerate(seeds):
        for method in methods:
            few = len(seeds) if options.seeds else FEWER_SEEDS[protocol].get(method, len(seeds))
            left_out = (protocol == "budget" and method in NO_BUDGET) or (protocol == "single" and method not in SINGLE)
            if i < few and not left_out:
                for task in slow_tasks if method in SLOW else tasks:
                    yield task, method, seed, queries


def limit_of(protocol: str, task: str) -> float | None:
    """The latency budget in ms; None for none."""
    if protocol != "budget":
        return None
    # the limits are values of the tables: eyeriss stores its 0.976 as 0.9760000000000002, which meets the budget
    return BUDGETS[task.partition("/")[2]] * (1 + 1e-9)


def stored(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Make a record and write it, whole or not at all; None where it is there already."""
    if path.exists():
        return None
    record = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(record))
    path.with_suffix(".part").rename(path)
    return record


def parse_seeds(text: str) -> list[int]:
    """ "0-4,7" as [0, 1, 2, 3, 4, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        seeds += range(int(low), int(high) + 1) if dash else [int(low)]
    return seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--protocol", choices=("all", *SEEDS), default="all")
    parser.add_argument("--tables", help="folder of Parquet tables; default HWNAS_TABLES")
    parser.add_argument("--tasks", help="e.g. cifar10/edgegpu,cifar100/fpga; default all")
    parser.add_argument("--seeds", help="e.g. 0-4; default each protocol's own, see above")
    parser.add_argument("--generators", help="by commas, also neps-bo; default all: " + ", ".join(METHODS))
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="three tasks, two seeds, nothing that takes minutes")
    parser.add_argument("--report", type=Path, help="write tables and plots of the stored results there, run nothing")
    parser.add_argument("--earlier", type=Path, help="Parquet file of searches that are not run again")
    options = parser.parse_args()
    earlier = {key_of(r): r for r in (read_parquet(options.earlier) if options.earlier else [])}
    if options.report is not None:
        _report({**earlier, **{key_of(r): r for r in read(options.out)}}.values(), options.report)
        return
    unknown = set((options.tasks or "").split(",")) - {"", *(task for tasks in TASKS.values() for task in tasks)}
    if unknown:
        raise SystemExit(f"no such task: {', '.join(sorted(unknown))}. Known: {', '.join((*all_tasks(), *DATASETS))}")
    bench = Bench(options.tables)
    missing: dict[str, str] = {}  # methods whose packages are not here: the others go on
    for protocol, task, method, seed, queries in plan(options):
        name = f"{protocol}-{task}-{method}-{seed}-{queries}".replace("/", "_").replace(":", "_")
        if (protocol, task, method, seed) in earlier or method in missing:
            continue
        make = partial(run_one, bench, protocol, task, method, seed, queries, limit=limit_of(protocol, task))
        try:
            record = stored(options.out / "searches" / f"{name}.json", make)
        except ImportError as error:
            missing[method] = str(error)
            print(f"{method:14} left out: {error}", flush=True)
            continue
        if record is not None:
            print(f"{method:14} {task:24} seed {seed}  {told(record)}  {record['cpu_s']:.1f} CPU s", flush=True)
    records = list({**earlier, **{key_of(r): r for r in read(options.out)}}.values())
    print(write_parquet(records, options.out / "results.parquet"))
    _report(records, options.out)
    if missing:
        raise SystemExit("left out, for want of packages: " + "; ".join(f"{m} ({why})" for m, why in missing.items()))


def _report(records: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Page and pictures, and what they show: the searches without the cells that each evaluated."""
    from quality_report import write_report

    kept = sorted(({k: v for k, v in r.items() if k != "rows"} for r in records), key=key_of)
    write_report(kept, folder)
    print(write_parquet(kept, folder / "search_quality.parquet"))


def told(record: Mapping[str, Any]) -> str:
    """A search in a few words."""
    words = ["gap", *(f"{record[f'gap_{n}']:.3f}" for n in POINTS if f"gap_{n}" in record)]
    words += [f"accuracy {record['best_accuracy']:.2f}"] if "best_accuracy" in record else []
    if record["protocol"] == "single":
        words = [f"test {record['test_accuracy']:.2f}, optimum after {record['to_optimum'] or 'more'}"]
    return "  ".join(words)


if __name__ == "__main__":
    main()
