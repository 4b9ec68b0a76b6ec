"""What each part of `agnet` is worth: the search of `search_quality.py` with one part switched off at a time.

    HWNAS_TABLES=DIR python benchmarks/agnet_ablation.py --out results
    HWNAS_TABLES=DIR python benchmarks/agnet_ablation.py --out results --datasets cifar100,ImageNet16-120
    HWNAS_TABLES=DIR python benchmarks/agnet_ablation.py --out results --quick     # two tasks, two seeds, minutes
    HWNAS_TABLES=DIR python benchmarks/agnet_ablation.py --out results --report docs/benchmarks

A variant is `agnet` with settings that any search takes (`--set NAME=VALUE`). All variants have the seeds, and with
them the first uniform evaluations, in common, so differences are taken seed by seed. Settings are chosen on CIFAR-10,
whose tasks run by default; the other data sets say whether the choice holds elsewhere. A second part gives each task
a latency budget. Each search is a file in the results folder and is not run again; the results folder of
`search_quality.py` may be used, whose searches of `agnet` are then taken as the default's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from quality_report import mean_and_half_width, seed_means, whole_seeds, write_page
from quality_tasks import DATASETS, DEVICES, QUANTILES
from search_quality import Bench, parse_seeds, run_one, stored, told

QUERIES = 200
SEEDS = {"front": 5, "limit": 2}
QUICK_DEVICES = ("edgegpu", "fpga")


@dataclass(frozen=True)
class Variant:
    """`agnet` with other settings.

    Attributes:
        title: Of its row.
        settings: As given to the generator's factory.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        """The settings as a user would give them."""
        return " ".join(f"`--set {name}={json.dumps(value)}`" for name, value in self.settings.items()) or "-"


DEFAULT = "default"
VARIANTS = {
    DEFAULT: Variant("default"),
    "surrogate": Variant("no surrogate: the pool is evaluated as it comes", {"surrogate": False}),
    "pairing": Variant("surrogate not paired with its architectures", {"paired": False}),
    "uncertainty": Variant("no uncertainty: improvement of the means", {"acquisition": "mean"}),
    "acquisition": Variant("no acquisition: rank of the means", {"acquisition": "rank"}),
    "reference": Variant("the whole front, not up to the medians", {"reference": 1.0}),
    "niches": Variant("no niches: hypervolume alone", {"niches": 0.0}),
    "shape": Variant("one-hot encoding only", {"blocks": ["code"]}),
    "neighbours": Variant("no neighbours of the front", {"neighbours": 0}),
    "decoder": Variant("no decoder: as many uniform samples", {"generator": False}),
    "retraining": Variant("decoder never retrained", {"tune_steps": 0}),
    "devices": Variant("nothing of other devices", {"devices": False}),
    "compression": Variant("errors as they are, not compressed", {"compress": 1.0}),
    "ranking": Variant("with a ranking loss", {"ranking": 0.3}),
}
LIMIT_VARIANTS = {
    DEFAULT: Variant("default"),
    "front-only": Variant("nothing for the first objective alone", {"exploit": 0.0}),
    "first-only": Variant("all for the first objective alone", {"exploit": 1.0}),
}


@dataclass(frozen=True)
class Cell:
    """One search: a task with or without a limit, a variant, a seed."""

    part: str
    task: str
    quantile: float | None
    name: str
    variant: Variant
    seed: int

    def path(self, folder: Path) -> Path:
        task = self.task.replace("/", "_")
        if self.part == "front" and self.name == DEFAULT:  # also a search of `search_quality.py`
            return folder / "searches" / f"front-{task}-agnet-{self.seed}-{QUERIES}.json"
        limit = "" if self.quantile is None else f"-{self.quantile:g}"
        return folder / "ablation" / f"{self.part}-{task}{limit}-{self.name}-{self.seed}-{QUERIES}.json"

    def run(self, bench: Bench) -> dict[str, Any]:
        limit = None
        if self.quantile is not None:
            limit = bench.task(self.task).limits[QUANTILES.index(self.quantile)][0]
        kind = "front" if limit is None else "budget"
        settings = self.variant.settings
        return run_one(bench, kind, self.task, "agnet", self.seed, QUERIES, limit=limit, settings=settings)


def plan(options: argparse.Namespace) -> Iterator[Cell]:
    """Everything that was asked for; tasks innermost, then variants, so that every seed is a whole table."""
    devices = QUICK_DEVICES if options.quick else DEVICES
    datasets = options.datasets.split(",")
    tasks = [f"{dataset}/{device}" for dataset in datasets for device in devices]
    wanted = set(options.variants.split(",")) if options.variants else {*VARIANTS, *LIMIT_VARIANTS}
    for part, every in (("front", VARIANTS), ("limit", LIMIT_VARIANTS)):
        variants = {name: variant for name, variant in every.items() if name in wanted}
        if variants:  # nothing is compared with nothing
            variants = {DEFAULT: every[DEFAULT], **variants}
        seeds = parse_seeds(options.seeds) if options.seeds else range(2 if options.quick else SEEDS[part])
        for seed in seeds:
            for name, variant in variants.items():
                for task in tasks:
                    if part == "front":
                        yield Cell(part, task, None, name, variant, seed)
                    elif task.startswith("cifar10/"):
                        for quantile in QUANTILES:
                            yield Cell(part, task, quantile, name, variant, seed)


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Finished searches by part, each with its variant; of the default only what has another variant beside it."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    everything = argparse.Namespace(quick=False, datasets=",".join(DATASETS), variants=None, seeds="0-99")
    for cell in plan(everything):
        if cell.path(folder).exists():
            record = json.loads(cell.path(folder).read_text())
            found[cell.part].append(record | {"variant": cell.name, "quantile": cell.quantile})
    return found


def write_report(records: Mapping[str, Sequence[dict[str, Any]]], folder: Path) -> Path:
    """Write `agnet_ablation.md`."""
    lines = [
        "# What each part of `agnet` is worth",
        "",
        "`HWNAS_TABLES=DIR python benchmarks/agnet_ablation.py --out results`, and the same with `--report",
        "docs/benchmarks`, which wrote this page. Settings are chosen on CIFAR-10, whose tasks run by default;",
        "`--datasets cifar100,ImageNet16-120` adds others. Figures and tasks are those of [search",
        "quality](search_quality.md):",
        "six devices, 200 evaluations, mean over tasks and seeds, in brackets the lowest and the highest seed.",
        "Differences are to the default, search by search (same task, same seed), ± half width of the 95 % interval",
        "over these pairs: above 0 the variant is worse.",
        "",
    ]
    for dataset in DATASETS:
        rows = [r for r in records["front"] if r["task"].startswith(dataset + "/")]
        lines += _front_table(dataset, whole_seeds(rows, "variant"))
    lines += _limit_table(records["limit"])
    compared = {(r["task"], r["seed"]) for r in records["front"] if r["variant"] != DEFAULT}
    every = [r for r in records["front"] if (r["task"], r["seed"]) in compared]
    every += records["limit"] if _limit_table(records["limit"]) else []
    return write_page(folder / "agnet_ablation.md", lines, every)


def shared(records: Sequence[Mapping[str, Any]], name: str, keys: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """The searches of a variant that the default has as well, and the default's, in one order."""

    def place(record: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(record[key] for key in keys)

    own = {place(r): r for r in records if r["variant"] == name}
    default = {place(r): r for r in records if r["variant"] == DEFAULT}
    both = sorted(own.keys() & default.keys())
    return [own[key] for key in both], [default[key] for key in both]


def worse_by(own: Sequence[Mapping[str, Any]], default: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean difference to the default with the 95 % interval over pairs of searches; both lists in one order."""
    mean, half = mean_and_half_width([a[key] - b[key] for a, b in zip(own, default, strict=True)])
    return f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")


def over_seeds(records: Sequence[Mapping[str, Any]], key: str) -> str:
    """Mean, lowest and highest seed."""
    means = seed_means(records, key)
    return f"{statistics.fmean(means):.3f}" + (f" ({min(means):.3f}-{max(means):.3f})" if len(means) > 1 else "")


def _front_table(dataset: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    there = [name for name in VARIANTS if any(r["variant"] == name for r in records)]
    if len(there) < 2:
        return []
    lines = [f"## {dataset}", ""]
    lines += ["| variant | setting | tasks x seeds | gap at 50 | 100 | 200 | regret at 200 | gap at 50, difference "]
    lines[-1] += "| at 100 | at 200 | CPU s a search |"
    lines += ["| --- | --- |" + " ---: |" * 9]
    for name in there:
        # of the default, which may have more seeds, those that the other variants have
        rows, default = shared(records, name, ("task", "seed"))
        if name == DEFAULT:
            others = {r["seed"] for r in records if r["variant"] != DEFAULT}
            rows = [r for r in rows if r["seed"] in others]
        cells = [over_seeds(rows, key) for key in ("gap_50", "gap_100", "gap_200", "regret_200")]
        keys = ("gap_50", "gap_100", "gap_200")
        cells += ["", "", ""] if name == DEFAULT else [worse_by(rows, default, key) for key in keys]
        cells.append(f"{statistics.fmean(r['cpu_s'] for r in rows):.1f}")
        count = f"{len({r['task'] for r in rows})} x {len({r['seed'] for r in rows})}"
        variant = VARIANTS[name]
        lines.append(f"| {variant.title} | {variant.words()} | {count} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _limit_table(records: Sequence[dict[str, Any]]) -> list[str]:
    if len({record["variant"] for record in records}) < 2:  # a run that was stopped has nothing to compare yet
        return []
    lines = [
        "## With a latency budget",
        "",
        "CIFAR-10, six devices, limits at the 5, 20 and 50 % quantiles of the table's latencies, one search for each:",
        "the accuracy of the best feasible cell in the table less that of the best found, in points.",
        "",
        "| variant | setting | searches | missed accuracy | difference | optimum found | nothing feasible |",
        "| --- | --- |" + " ---: |" * 5,
    ]
    for record in records:
        record["missed"] = record["optimum"] - record["best_accuracy"]
    for name, variant in LIMIT_VARIANTS.items():
        rows, default = shared([r for r in records if r["missed"] == r["missed"]], name, ("task", "quantile", "seed"))
        if not rows:
            continue
        nothing = sum(r["missed"] != r["missed"] for r in records if r["variant"] == name)
        difference = "" if name == DEFAULT else worse_by(rows, default, "missed")
        optimal = f"{sum(r['missed'] <= 0 for r in rows)} of {len(rows)}"
        missed = over_seeds(rows, "missed")
        cells = [variant.title, variant.words(), str(len(rows)), missed, difference, optimal, str(nothing)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results folder")
    parser.add_argument("--tables", help="folder of Parquet tables; default HWNAS_TABLES")
    parser.add_argument("--datasets", default="cifar10", help="by commas; default cifar10")
    parser.add_argument("--variants", help="by commas; default all: " + ", ".join({**VARIANTS, **LIMIT_VARIANTS}))
    parser.add_argument("--seeds", help="e.g. 0-4; default 0-4, under a budget 0-1")
    parser.add_argument("--quick", action="store_true", help="two devices, two seeds")
    parser.add_argument("--report", type=Path, help="write the table of the stored results there, run nothing")
    options = parser.parse_args()
    if options.report is not None:
        print(write_report(read(options.out), options.report))
        return
    bench = Bench(options.tables)
    for cell in plan(options):
        record = stored(cell.path(options.out), partial(cell.run, bench))
        if record is not None:
            where = cell.task if cell.quantile is None else f"{cell.task} {cell.quantile:.0%}"
            print(
                f"{cell.name:12} {where:24} seed {cell.seed}  {told(record)}  {record['cpu_s']:.1f} CPU s", flush=True
            )


if __name__ == "__main__":
    main()
