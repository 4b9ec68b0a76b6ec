"""When does `agnet` stop by itself, what does it then expect to have missed, and what has it really missed?

    HWNAS_TABLES=DIR python benchmarks/stopping.py --out results
    HWNAS_TABLES=DIR python benchmarks/stopping.py --out results --report docs/benchmarks

The tasks of `search_quality.py`: error and latency on 18 tables, two seeds. Each search goes on to 200 evaluations
and is asked after every step what it expects, which changes nothing about it, so that one search shows where every
threshold would have ended it. What was really missed is looked up in the whole table afterwards. The rule, its default
threshold and the width of its interval were chosen on CIFAR-10; the other data sets are for reporting. Each search is a
file in the results folder and is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quality_report import write_page
from quality_tasks import DATASETS, all_tasks, searched
from search_quality import Bench, parse_seeds, stored, versions

from hwnas import registry
from hwnas.core.ledger import Ledger
from hwnas.core.objective import Objective
from hwnas.core.state import SearchState
from hwnas.core.stopping import Outlook, StopRule
from hwnas.evaluators.table import TableEvaluator
from hwnas.loop import Search
from hwnas.measure import Measure
from hwnas.stores.memory import MemoryStore

QUERIES = 200
SEEDS = 2
THRESHOLDS = (0.005, 0.002, 0.001)
_NEVER = StopRule(threshold=0.0)  # asks for what is expected, and never ends


def run_one(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """One search to its end: after each step the evaluations paid, what is expected, and the true gap."""
    task = bench.task(name)
    evaluator = TableEvaluator(bench.tables, bench.space, task.dataset)
    objectives = (Objective(searched(task.dataset)), Objective("latency_ms", task.device))
    plan = tuple(((o.metric, o.device), evaluator) for o in objectives)
    paid: list[int] = []

    def watch(state: SearchState, ledger: Ledger) -> None:
        paid.append(len(state.archive))

    start = time.process_time()
    search = Search(bench.space, registry.generator("agnet", bench.space), Measure(MemoryStore(), plan), rule=_NEVER)
    state = search.run(SearchState(bench.space.name, objectives, (), QUERIES, seed), on_step=watch)
    cpu = time.process_time() - start
    gaps = task.gaps(bench.rows(state.architectures))
    return {
        "task": name,
        "seed": seed,
        "paid": paid,
        "outlooks": [None if outlook is None else outlook.to_json() for outlook in state.outlooks],
        "gaps": [float(gaps[n - 1]) for n in paid],
        "cpu_s": cpu,
        "versions": versions(),
    }


def stop_of(record: Mapping[str, Any], rule: StopRule) -> int:
    """The step after which a search would have ended: the first at which the rule is met, else the last."""
    outlooks = [None if told is None else Outlook.from_json(told) for told in record["outlooks"]]
    steps = range(len(outlooks))
    return next((i for i in steps if rule.met(outlooks[: i + 1], record["paid"][i])), steps[-1])


def stops(records: Sequence[Mapping[str, Any]], rule: StopRule) -> Iterator[dict[str, float]]:
    """For each search, where the rule ends it: evaluations, true gap then and at the end, what was expected."""
    for record in records:
        step = stop_of(record, rule)
        told = record["outlooks"][step]
        gap, end = record["gaps"][step], record["gaps"][-1]
        if told is not None:
            yield {
                "early": float(record["paid"][step] < record["paid"][-1]),
                "evaluations": record["paid"][step],
                "gap": gap,
                "end": end,
                "expected": told["missed"],
                "inside": float(told["low"] <= gap <= told["high"]),
                "below": float(gap < told["low"]),
                "above": float(gap > told["high"]),
                "cpu_s": record["cpu_s"],
            }


def write_report(records: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `stopping.md`."""
    rule = StopRule()
    lines = [
        "# Stopping by itself",
        "",
        "`HWNAS_TABLES=DIR python benchmarks/stopping.py --out results`, then with `--report docs/benchmarks`, which",
        "wrote this page. `agnet` on the tasks of [search quality](search_quality.md): error and latency, at most",
        f"{QUERIES} evaluations. A threshold is what `--stop-threshold` takes: the search ends when the expected",
        f"gain of a query was below it after {rule.patience} steps in a row, never before {rule.least} of them. The",
        f"default is {_percent(rule.threshold)}.",
        "",
        "*Gap*: the share of the true front's hypervolume that was not found, up to the medians of the whole table.",
        "*Expected*: what the search said of it, up to a reference point that it has to predict as well. Its 90 %",
        "interval holds the gap, or the gap is below it (the search was too modest) or above it (too sure).",
        "",
        "The rule, its default threshold and how much wider the interval is than the surrogate's own (`DOUBT`) were",
        "chosen on CIFAR-10; the other data sets are for reporting.",
        "",
        "## Where it stops",
        "",
        "Means over searches, in brackets the lowest and the highest.",
        "",
        "| data set | threshold | searches | ended early | evaluations | gap then | expected then | gap after "
        f"{QUERIES} | inside | below | above | correlation |",
        "| --- |" + " ---: |" * 11,
    ]
    for dataset in (*DATASETS, "all"):
        rows = [r for r in records if dataset in ("all", r["task"].partition("/")[0])]
        lines += [_row(dataset, rows, threshold) for threshold in THRESHOLDS] if rows else []
    lines += ["", "*Correlation* of expected and true gap over searches.", "", *_per_task(records, rule)]
    lines += [*_calibration(records, rule.least)]
    return write_page(folder / "stopping.md", lines, records)


def read(folder: Path) -> list[dict[str, Any]]:
    """All finished searches of a results folder."""
    return [json.loads(path.read_text()) for path in sorted((folder / "stopping").glob("*.json"))]


def _row(dataset: str, records: Sequence[Mapping[str, Any]], threshold: float) -> str:
    found = list(stops(records, StopRule(threshold)))
    column = {key: [row[key] for row in found] for key in found[0]}
    paid = column["evaluations"]
    cells = [
        dataset,
        _percent(threshold),
        str(len(found)),
        str(round(sum(column["early"]))),
        f"{statistics.fmean(paid):.0f} ({min(paid):.0f}-{max(paid):.0f})",
        f"{statistics.fmean(column['gap']):.3f} ({min(column['gap']):.3f}-{max(column['gap']):.3f})",
        f"{statistics.fmean(column['expected']):.3f}",
        f"{statistics.fmean(column['end']):.3f}",
        *(_percent(statistics.fmean(column[key])) for key in ("inside", "below", "above")),
        "-" if len(found) < 3 else f"{statistics.correlation(column['expected'], column['gap']):.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _per_task(records: Sequence[Mapping[str, Any]], rule: StopRule) -> list[str]:
    lines = [
        f"## By task, threshold {_percent(rule.threshold)}",
        "",
        f"| task | seeds | evaluations | gap then | expected then | gap after {QUERIES} | inside |",
        "| --- |" + " ---: |" * 6,
    ]
    for name in all_tasks():
        found = list(stops([r for r in records if r["task"] == name], rule))
        if found:
            means = {key: statistics.fmean(row[key] for row in found) for key in found[0]}
            cells = [name, str(len(found)), f"{means['evaluations']:.0f}"]
            cells += [f"{means[key]:.3f}" for key in ("gap", "expected", "end")]
            lines.append("| " + " | ".join([*cells, f"{round(means['inside'] * len(found))} of {len(found)}"]) + " |")
    return [*lines, ""]


def _calibration(records: Sequence[Mapping[str, Any]], least: int) -> list[str]:
    """How true the expectation is at any step, not only where a search stops."""
    lines = [
        "## At any step",
        "",
        "All steps of all searches, by evaluations paid; steps of one search are not independent.",
        "",
        "| evaluations | steps | gap | expected | inside | below | above | correlation |",
        "| --- |" + " ---: |" * 7,
    ]
    for low, high in ((least, 80), (80, 120), (120, 160), (160, QUERIES)):
        rows = [
            (told["missed"], told["low"], told["high"], gap)
            for r in records
            for paid, told, gap in zip(r["paid"], r["outlooks"], r["gaps"], strict=True)
            if told is not None and low < paid <= high
        ]
        shares = [
            [bottom <= gap <= top for _, bottom, top, gap in rows],
            [gap < bottom for _, bottom, _, gap in rows],
            [gap > top for _, _, top, gap in rows],
        ]
        expected, gaps = [row[0] for row in rows], [row[3] for row in rows]
        cells = [f"{low + 1}-{high}", f"{len(rows):,}", f"{statistics.fmean(gaps):.3f}"]
        cells += [f"{statistics.fmean(expected):.3f}", *(_percent(statistics.fmean(share)) for share in shares)]
        lines.append("| " + " | ".join([*cells, f"{statistics.correlation(expected, gaps):.2f}"]) + " |")
    return [*lines, ""]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--tables", help="folder of Parquet tables; default HWNAS_TABLES")
    parser.add_argument("--datasets", default=",".join(DATASETS), help="by commas; default all")
    parser.add_argument("--seeds", default=f"0-{SEEDS - 1}", help="e.g. 0-4; default 0-1")
    parser.add_argument("--report", type=Path, help="write the page of the stored results there, run nothing")
    options = parser.parse_args()
    if options.report is not None:
        print(write_report(read(options.out), options.report))
        return
    bench = Bench(options.tables)
    for seed in parse_seeds(options.seeds):
        for name in all_tasks():
            if name.partition("/")[0] in options.datasets.split(","):
                path = options.out / "stopping" / f"{name.replace('/', '_')}-{seed}.json"
                record = stored(path, partial(run_one, bench, name, seed))
                if record is not None:
                    end, cpu = record["gaps"][-1], record["cpu_s"]
                    print(f"{name:24} seed {seed}  gap at the end {end:.3f}  {cpu:.1f} CPU s", flush=True)


if __name__ == "__main__":
    main()
