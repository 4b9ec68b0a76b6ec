"""How `agnet`'s niches were chosen: their share, and how they are spread over the range of latency.

    HWNAS_TABLES=DIR python benchmarks/agnet_settings.py --out results
    HWNAS_TABLES=DIR python benchmarks/agnet_settings.py --out results --quick     # two tasks, two seeds, minutes
    HWNAS_TABLES=DIR python benchmarks/agnet_settings.py --out results --report docs/benchmarks

A variant is `agnet` with settings that any search takes (`--set NAME=VALUE`). The tasks are those of CIFAR-10, the
seeds (200 and on) occur in no other benchmark. What niches are for is what hypervolume up to the medians does not see,
so besides the figures of `search_quality.py` a search is judged by its regret at 20 latency limits, from the 2.5 to
the 97.5 % quantile of the table's latencies. ImageNet16-120/raspi4, where niches were first missed, is searched with
its seeds of `search_quality.py`; that is for reporting, and chooses nothing. Each search is a file in the results
folder and is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from agnet_ablation import DEFAULT, QUICK_DEVICES, Variant, over_seeds, shared, worse_by
from quality_report import whole_seeds, write_page
from quality_tasks import DEVICES
from search_quality import Bench, parse_seeds, run_one, stored, told

QUERIES = 200
LIMITS = tuple(float(x) for x in np.linspace(0.025, 0.975, 20))  # quantiles of latency
FOUND_ON = "ImageNet16-120/raspi4"
SEEDS = {"chosen": range(200, 208), "reported": range(10)}
VARIANTS = {
    DEFAULT: Variant("default: a quarter of the evaluations, both kinds in turn"),
    "none": Variant("no niches", {"niches": 0.0}),
    "fewer": Variant("half as many", {"niches": 0.125}),
    "even": Variant("all spread evenly", {"spread": 1.0}),
    "most": Variant("all where most is to be gained", {"spread": 0.0}),
}


@dataclass(frozen=True)
class Cell:
    """One search: what it is for ("chosen" or "reported"), a task, a variant, a seed."""

    part: str
    task: str
    name: str
    seed: int

    def path(self, folder: Path) -> Path:
        return folder / "settings" / f"{self.task.replace('/', '_')}-{self.name}-{self.seed}-{QUERIES}.json"

    def run(self, bench: Bench) -> dict[str, Any]:
        record = run_one(bench, "front", self.task, "agnet", self.seed, QUERIES, settings=VARIANTS[self.name].settings)
        task = bench.task(self.task)
        found = task.regrets(record["rows"], task.limits_at(LIMITS))
        return record | {"regrets": found, "regret_everywhere": statistics.fmean(found), "regret_cheapest": found[0]}


def plan(options: argparse.Namespace) -> Iterator[Cell]:
    """Everything that was asked for; tasks innermost, then variants, so that every seed is a whole table."""
    tasks = {
        "chosen": [f"cifar10/{device}" for device in (QUICK_DEVICES if options.quick else DEVICES)],
        "reported": [FOUND_ON],
    }
    names = [DEFAULT, *options.variants.split(",")] if options.variants else list(VARIANTS)
    for part, seeds in SEEDS.items():
        for seed in parse_seeds(options.seeds) if options.seeds else seeds[:2] if options.quick else seeds:
            for name in names:
                for task in tasks[part]:
                    yield Cell(part, task, name, seed)


def read(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Those of the searches that were asked for that are finished, by what they are for, each with its variant."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in plan(options):
        if cell.path(options.out).exists():
            found[cell.part].append(json.loads(cell.path(options.out).read_text()) | {"variant": cell.name})
    return found


def write_report(records: Mapping[str, Sequence[dict[str, Any]]], folder: Path) -> Path:
    """Write `agnet_settings.md`."""
    lines = [
        "# How the niches of `agnet` were chosen",
        "",
        "`HWNAS_TABLES=DIR python benchmarks/agnet_settings.py --out results`, and the same with `--report",
        "docs/benchmarks`, which wrote this page. Gaps and regret are those of [search quality](search_quality.md),",
        "200 evaluations, mean over tasks and seeds, in brackets the lowest and the highest seed. Regret everywhere is",
        "the mean over 20 latency limits, from the 2.5 to the 97.5 % quantile of the table's latencies, of the error",
        "found less the best one in the table, in points (10 where a search has found nothing below the limit); regret",
        "at the cheapest is that at the first of them. Differences are to the default, search by search (same task,",
        "same seed), ± half width of the 95 % interval over these pairs: above 0 the variant is worse.",
        "",
        *_table("CIFAR-10, six devices: what was chosen by", records["chosen"]),
        *_table(f"{FOUND_ON}: reported, nothing was chosen by it", records["reported"]),
    ]
    every = [record for part in records.values() for record in part]
    return write_page(folder / "agnet_settings.md", lines, every)


def _table(title: str, records: Sequence[dict[str, Any]]) -> list[str]:
    records = whole_seeds(records, "variant")
    if len({record["variant"] for record in records}) < 2:  # a run that was stopped has nothing to compare yet
        return []
    means = ("gap_50", "gap_100", "gap_200", "regret_200", "regret_everywhere", "regret_cheapest")
    differences = ("gap_50", "gap_200", "regret_everywhere")
    lines = [f"## {title}", ""]
    lines += ["| niches | setting | tasks x seeds | gap at 50 | 100 | 200 | regret at 200 | regret everywhere "]
    lines[-1] += "| regret at the cheapest | gap at 50, difference | at 200 | regret everywhere | CPU s a search |"
    lines += ["| --- | --- |" + " ---: |" * 11]
    for name, variant in VARIANTS.items():
        rows, default = shared(records, name, ("task", "seed"))
        if not rows:
            continue
        cells = [variant.title, variant.words(), f"{len({r['task'] for r in rows})} x {len({r['seed'] for r in rows})}"]
        cells += [over_seeds(rows, key) for key in means]
        cells += ["" if name == DEFAULT else worse_by(rows, default, key) for key in differences]
        cells.append(f"{statistics.fmean(r['cpu_s'] for r in rows):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--tables", help="folder of Parquet tables; default HWNAS_TABLES")
    parser.add_argument("--variants", help="by commas, beside the default; default all: " + ", ".join(VARIANTS))
    parser.add_argument("--seeds", help="e.g. 200-203; default 200-207, on ImageNet16-120 0-9")
    parser.add_argument("--quick", action="store_true", help="two devices, two seeds")
    parser.add_argument("--report", type=Path, help="write the table of the stored results there, run nothing")
    options = parser.parse_args()
    if options.report is not None:
        print(write_report(read(options), options.report))
        return
    bench = Bench(options.tables)
    for cell in plan(options):
        record = stored(cell.path(options.out), partial(cell.run, bench))
        if record is not None:
            regret = f"regret {record['regret_everywhere']:.3f}"
            print(f"{cell.name:8} {cell.task:22} seed {cell.seed}  {told(record)}  {regret}", flush=True)


if __name__ == "__main__":
    main()
