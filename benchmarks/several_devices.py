"""One search for several devices against one search for each, and against one front over the objectives of all.

    HWNAS_TABLES=DIR python benchmarks/several_devices.py --out RESULTS --report docs/benchmarks/several_devices.md

Three devices, three data sets, on exact tables, with `agnet`. Each finished search is a file in RESULTS: a benchmark
that is stopped goes on where it was, and `--report` without anything left to run only writes the page.

- `shared`: 200 evaluations for all devices, a front for each (`--device edgegpu,raspi4,fpga`);
- `joint`: 200 evaluations, one front of error and three latencies (`--fronts joint`);
- `separate`: 200 evaluations for each device alone, 600 together. What such a search had after 67 is the search of 67,
  three of which cost what the shared one does: `agnet` chooses its batches one by one and knows no end.

The figure is the gap of `quality_tasks.py`: 1 - hypervolume / that of the true front, by device.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from quality_tasks import DATASETS, Floats, searched
from search_quality import Bench, parse_seeds, read, stored, versions

from hwnas import registry
from hwnas.core.objective import Objective
from hwnas.core.state import SearchState
from hwnas.evaluators.table import TableEvaluator
from hwnas.loop import Search
from hwnas.measure import Measure
from hwnas.stores.memory import MemoryStore

DEVICES = ("edgegpu", "raspi4", "fpga")
QUERIES = 200
THIRD = 67
TITLES = {
    "one search, a front for each device, 200": ("shared", QUERIES),
    "one search, a joint front, 200": ("joint", QUERIES),
    "a search for each device, 67 each": ("separate", THIRD),
    "a search for each device, 200 each": ("separate", QUERIES),
}
WAYS = ("shared", *(f"separate-{device}" for device in DEVICES), "joint")


def run_one(
    bench: Bench, dataset: str, way: str, seed: int, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One search with its gaps as plain values.

    Args:
        bench: Tables.
        dataset: On which data set.
        way: One of `WAYS`.
        seed: Of the search.
        settings: Of `agnet`.
    """
    kind, _, only = way.partition("-")
    devices = (only,) if only else DEVICES
    objectives = (Objective(searched(dataset)), *(Objective("latency_ms", device) for device in devices))
    start = SearchState(
        bench.space.name, objectives, (), QUERIES, seed, front_devices=devices if kind == "shared" else ()
    )
    evaluator = TableEvaluator(bench.tables, bench.space, dataset)
    plan = tuple(((o.metric, o.device), evaluator) for o in objectives)
    begun = time.process_time()
    search = Search(bench.space, registry.generator("agnet", bench.space, settings), Measure(MemoryStore(), plan))
    state = search.run(start)
    rows = bench.rows(state.architectures)
    return {
        "dataset": dataset,
        "way": way,
        "seed": seed,
        "cpu_s": time.process_time() - begun,
        "fronts": [len(goal.front_indices) for goal in state.goals],
        "gaps": {
            device: {str(n): bench.task(f"{dataset}/{device}").gap(rows[:n]) for n in (THIRD, QUERIES)}
            for device in devices
        },
        "versions": versions(),
    }


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The figures as text of a page: of the data sets and seeds that were run in every way.

    Raises:
        SystemExit: There is none yet.
    """
    found = {(r["dataset"], r["seed"], r["way"]): r for r in records}
    every = sorted({(r["dataset"], r["seed"]) for r in records}, key=lambda pair: (DATASETS.index(pair[0]), pair[1]))
    pairs = [pair for pair in every if all((*pair, way) in found for way in WAYS)]
    if not pairs:
        raise SystemExit("no data set and seed has been run in every way yet")
    gaps = {title: _gaps(found, pairs, *what) for title, what in TITLES.items()}
    lines = [
        *_table(DEVICES, {title: table.mean(axis=0) for title, table in gaps.items()}),
        "",
        "By data set, mean over the devices:",
        "",
    ]
    rows = {name: [i for i, pair in enumerate(pairs) if pair[0] == name] for name in DATASETS}
    rows = {name: own for name, own in rows.items() if own}
    lines += _table(
        list(rows), {t: np.array([table[own].mean() for own in rows.values()]) for t, table in gaps.items()}
    )
    shared, *others = (table.mean(axis=1) for table in gaps.values())
    lines += [
        "",
        "Differences to the first line, by data set and seed, mean over the devices (negative: the first is nearer):",
        "",
    ]
    for title, other in zip(list(TITLES)[1:], others, strict=True):
        difference = shared - other
        spread = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
        better = f"smaller gap in {int((difference < 0).sum())} of {len(difference)}"
        lines.append(f"- {title}: {difference.mean():+.3f} (standard error {spread:.3f}), {better}")
    size, cost = (
        {way: np.mean([np.mean(found[(*pair, way)][what]) for pair in pairs]) for way in WAYS}
        for what in ("fronts", "cpu_s")
    )
    alone = np.mean([cost[way] for way in WAYS if way.startswith("separate")])
    made = ", ".join(f"{name} {number}" for name, number in records[0]["versions"].items())
    lines += [
        "",
        f"Of {QUERIES} evaluated {size['joint']:.0f} are on the joint front, {size['shared']:.0f} on one of a device.",
        f"CPU seconds: {cost['shared']:.0f} for a front each, {cost['joint']:.0f} joint, {alone:.0f} for one device.",
        "",
        f"{len(pairs)} pairs of data set and seed, made with {made}.",
        "",
    ]
    return "\n".join(lines)


def _gaps(
    found: Mapping[tuple[str, int, str], Mapping[str, Any]], pairs: Sequence[tuple[str, int]], kind: str, n: int
) -> Floats:
    """`pairs x devices` gaps of one way to search after `n` evaluations."""
    ways = [f"{kind}-{device}" if kind == "separate" else kind for device in DEVICES]
    return np.array(
        [
            [found[(*pair, way)]["gaps"][device][str(n)] for way, device in zip(ways, DEVICES, strict=True)]
            for pair in pairs
        ]
    )


def _table(heads: Sequence[str], rows: Mapping[str, Floats]) -> list[str]:
    """A table with the mean of each row behind it."""
    lines = ["| | " + " | ".join([*heads, "mean"]) + " |", "| --- |" + " --- |" * (len(heads) + 1)]
    return lines + [f"| {t} | " + " | ".join(f"{x:.3f}" for x in (*row, row.mean())) + " |" for t, row in rows.items()]


BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def write(path: Path, figures: str) -> None:
    """Put the figures between their marks on the page; the words around them stay."""
    text = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{figures}{END}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--tables", help="folder of Parquet tables; default HWNAS_TABLES")
    parser.add_argument("--seeds", default="0-4", help="e.g. 0-4")
    parser.add_argument("--ways", default=",".join(WAYS), help="by commas; default all")
    parser.add_argument("--datasets", default=",".join(DATASETS), help="by commas; default all")
    parser.add_argument("--report", type=Path, help="page to write the figures into")
    options = parser.parse_args()
    bench = Bench(options.tables)
    for seed in parse_seeds(options.seeds):
        for way in options.ways.split(","):
            for dataset in options.datasets.split(","):
                path = options.out / "searches" / f"{dataset}-{way}-{seed}.json"
                record = stored(path, partial(run_one, bench, dataset, way, seed))
                if record is not None:
                    told = "  ".join(f"{device} {gap[str(QUERIES)]:.3f}" for device, gap in record["gaps"].items())
                    print(f"{way:18} {dataset:14} seed {seed}  {told}  {record['cpu_s']:.1f} CPU s", flush=True)
    if options.report is not None:
        write(options.report, page(read(options.out)))


if __name__ == "__main__":
    main()
