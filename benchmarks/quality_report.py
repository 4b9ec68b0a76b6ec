"""Tables and pictures of stored results of `search_quality.py`; runs no search."""

from __future__ import annotations

import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_tasks import DATASETS, all_tasks

Records = Sequence[Mapping[str, Any]]

# name: colour; in the order of the tables
OURS = {
    "random": "#999999",
    "evolution": "#e69f00",
    "eda": "#f0e442",
    "nsga2": "#56b4e9",
    "agnet-paper": "#cc79a7",
    "agnet-alone": "#009e73",
    "agnet": "#d55e00",
}
OTHERS = {
    "pymoo:nsga3": "#56b4e9",
    "pymoo:agemoea": "#0072b2",
    "pymoo:smsemoa": "#332288",
    "optuna-nsga2": "#999999",
    "optuna-tpe": "#009e73",
    "optuna-gp": "#e69f00",
    "botorch-qlognehvi": "#cc79a7",
    "syne-tune-morea": "#f0e442",
    "syne-tune-morea-ranked": "#aa4499",
    "hebo": "#117733",
    "neps-bo": "#882255",
}
ORDER = (*OURS, *OTHERS)
POINTS = (50, 100, 200)
FIGURES = (
    *((f"gap_{n}", f"gap at {n}") for n in POINTS),
    ("regret_200", "regret at 200"),
    ("recall_200", "recall at 200"),
    ("cpu_s", "CPU s a search"),
    ("labels", "labels seen before"),
)  # of a record, with the title of its column


def write_report(records: Records, folder: Path) -> None:
    """Write `search_quality.md` and its pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    front = whole_seeds([r for r in records if r["protocol"] == "front" and f"gap_{max(POINTS)}" in r], "method")
    budget = [r for r in records if r["protocol"] == "budget"]
    single = [r for r in records if r["protocol"] == "single"]
    parts = ["# Search quality", "", *_command_part()]
    for there, part in ((front, _front_part), (budget, _budget_part), (single, _single_part)):
        parts += part(there) if there else []
    parts += cost_part(records)
    (folder / "search_quality.md").write_text("\n".join(parts) + "\n")
    if front:
        draw(front, folder / "search_quality.png")
    print(folder / "search_quality.md")


def _command_part() -> list[str]:
    return [
        "The searches: `HWNAS_TABLES=DIR python benchmarks/search_quality.py --out results` (a stopped run goes on",
        "where it was). This page: the same with `--report docs/benchmarks`, which also writes",
        "[search_quality.parquet](search_quality.parquet), a row a search with seed, ledger and versions; `--earlier`",
        "takes it as searches that are not run again. `agnet-alone` is `agnet` that knows nothing of other devices.",
        "",
    ]


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and the half width of its 95 % interval (t distribution over the values); None of a single value."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, float(t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± half width of its 95 % interval."""
    mean, half = mean_and_half_width(values)
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def figure(record: Mapping[str, Any], key: str) -> float:
    """A figure of a record; "labels": how many labels of the benchmark the method had seen before its search, in the
    shipped surrogates of other devices (the ledger's `pretraining_labels`)."""
    return float(record.get("ledger", {}).get("pretraining_labels", 0) if key == "labels" else record[key])


def seed_means(records: Records, key: str) -> list[float]:
    """One value a seed: the mean over its tasks. Seeds, not tasks, are the repetitions."""
    by_seed = defaultdict(list)
    for record in records:
        by_seed[record["seed"]].append(figure(record, key))
    return [statistics.fmean(values) for _, values in sorted(by_seed.items())]


def whole_seeds(records: Records, by: str) -> Records:
    """Of each method (or what else `by` names) the seeds that have all its tasks: a run that was stopped leaves the
    last seed with a part of them, whose mean is of other tasks."""
    tasks: dict[Any, set[str]] = defaultdict(set)
    there: dict[Any, set[str]] = defaultdict(set)
    for record in records:
        tasks[record[by]].add(record["task"])
        there[record[by], record["seed"]].add(record["task"])
    return [r for r in records if there[r[by], r["seed"]] == tasks[r[by]]]


def methods(records: Records) -> list[str]:
    there = {r["method"] for r in records}
    return [m for m in ORDER if m in there] + sorted(there - set(ORDER))


def tasks_of(records: Records) -> list[str]:
    """Tasks that occur: data sets, then devices, in the order of `quality_tasks`."""
    places = {task: place for place, task in enumerate((*DATASETS, *all_tasks()))}
    return sorted(dict.fromkeys(r["task"] for r in records), key=lambda task: places.get(task, len(places)))


def of(records: Records, method: str, keep: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> Records:
    return [r for r in records if r["method"] == method and keep(r)]


def _front_part(records: Records) -> list[str]:
    lines = [
        "Two objectives, error and latency, no budget. gap = 1 - HV(found)/HV(true front) after scaling by the table's",
        "minimum and median, reference point = the medians; regret = mean over latency limits at the 5, 20 and 50 %",
        "quantiles of (best error found within the limit - best in the table), in points of accuracy, 10 where nothing",
        "is feasible; recall = share of the true front's points. Mean over tasks, ± half width of the 95 % interval",
        "over seeds. Lower is better but for recall.",
        "CIFAR-10 is searched on validation, the others on test (the tables have no validation there).",
        "",
    ]
    groups: list[tuple[str, Callable[[Mapping[str, Any]], bool]]] = [("All tasks", lambda _: True)]
    for dataset in DATASETS:
        groups.append((dataset, lambda r, d=dataset: r["task"].startswith(d + "/")))  # type: ignore[misc]
    complete = everywhere(records)
    for title, keep in groups:
        lines += table(title, [r for r in complete if keep(r)])
    lines += slow_part(records)
    picture = ["![gap over evaluations, median and quartiles over tasks and seeds](search_quality.png)", ""]
    return [*picture, *lines, *_matched(complete), *wins(records), *per_task(records)]


def everywhere(records: Records) -> Records:
    """Those of methods that have run on every task."""
    every = {r["task"] for r in records}
    covered = {method: {r["task"] for r in of(records, method)} for method in methods(records)}
    return [r for r in records if covered[r["method"]] == every]


def slow_part(records: Records, columns: Sequence[tuple[str, str]] = FIGURES) -> list[str]:
    """All methods on the tasks of those that have run on a part; nothing where all have run everywhere."""
    whole = set(methods(everywhere(records)))
    partial = [name for name in methods(records) if name not in whole]
    if not partial:
        return []
    shared = set.intersection(*({r["task"] for r in of(records, name)} for name in partial))
    names = ", ".join(f"`{name}`" for name in partial)
    lines = table("The tasks of slow methods", [r for r in records if r["task"] in shared], columns)
    return [*lines, f"{names}: minutes a search, so these tasks and seeds only: {', '.join(sorted(shared))}.", ""]


def table(title: str, records: Records, columns: Sequence[tuple[str, str]] = FIGURES) -> list[str]:
    """Every figure of every method; nothing where there is no record."""
    if not records:
        return []
    lines = [f"## {title}", "", "| method | tasks x seeds | " + " | ".join(c for _, c in columns) + " |"]
    lines += ["| --- |" + " ---: |" * (len(columns) + 1)]
    for method in methods(records):
        rows = of(records, method)
        cells = [spread(seed_means(rows, key), 0 if key == "labels" else 3) for key, _ in columns]
        tasks, seeds = len({r["task"] for r in rows}), len({r["seed"] for r in rows})
        lines.append(f"| {method} | {tasks} x {seeds} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _matched(records: Records) -> list[str]:
    """How few evaluations `agnet` needs, in the mean over tasks and seeds, for what others reach with 200."""
    if "agnet" not in methods(records):
        return []
    lines = [
        "## What 200 evaluations of others cost `agnet`",
        "",
        "Evaluations after which the mean gap of `agnet` over tasks and seeds is at most that of another method after",
        "200, and the 95 % interval when the seeds of both are drawn again (bootstrap, 2,000 times).",
        "",
        "| method | evaluations of `agnet` | interval |",
        "| --- | ---: | ---: |",
    ]
    ours = seed_curves(of(records, "agnet"))
    for other in methods(records):
        if other != "agnet":
            number, low, high = matched(ours, seed_curves(of(records, other)))
            lines.append(f"| {other} | {_evaluations(number)} | {_evaluations(low)} to {_evaluations(high)} |")
    return [*lines, ""]


def _evaluations(number: float) -> str:
    return f"{number:.0f}" if np.isfinite(number) else "more than 200"


def matched(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float, float]:
    """Evaluations after which the mean of our curves is at most the end of theirs, and the ends of its interval.

    Args:
        ours: `seeds x 200` gaps.
        theirs: The same of another method; numbers of seeds may differ.

    Returns:
        The number and the 2.5 and 97.5 % quantiles over bootstrap samples of seeds; inf where it is never reached.
    """
    rng = np.random.default_rng(0)

    def needed(own: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        reached = np.flatnonzero(own.mean(axis=0) <= other[:, -1].mean())
        return float(reached[0] + 1) if len(reached) else float("inf")

    draws = [needed(_redrawn(ours, rng), _redrawn(theirs, rng)) for _ in range(2000)]
    low, high = np.quantile(draws, (0.025, 0.975), method="nearest")
    return needed(ours, theirs), float(low), float(high)


def _redrawn(rows: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(rows[rng.integers(0, len(rows), len(rows))])


def seed_curves(records: Records) -> NDArray[np.float64]:
    """`seeds x 200`: gap over evaluations, mean over tasks."""
    seeds = sorted({r["seed"] for r in records})
    return np.array([curves([r for r in records if r["seed"] == seed]).mean(axis=0) for seed in seeds])


def curves(records: Records, key: str = "gaps") -> NDArray[np.float64]:
    """`n x 200` gaps, of the records' `key`; a search that stopped earlier keeps its last value."""
    last = max(POINTS)
    return np.array([(r[key] + r[key][-1:] * (last - len(r[key])))[:last] for r in records])


def per_task(records: Records, figure: str = "gap") -> list[str]:
    """A row for each task, the best in bold: "gap" is of the records' `gap_200`."""
    names = methods(records)
    tasks = tasks_of(records)
    lines = [f"## Each task: {figure} at 200, mean over seeds ± half width of the 95 % interval", ""]
    lines.append("| task | " + " | ".join(names) + " |")
    lines.append("| --- |" + " ---: |" * len(names))
    found = defaultdict(list)
    for record in records:
        found[record["task"], record["method"]].append(record[f"{figure.replace(' ', '_')}_200"])
    means = {(t, n): statistics.fmean(found[t, n]) if found[t, n] else float("nan") for t in tasks for n in names}
    for task in tasks:
        best = min(v for name in names if (v := means[task, name]) == v)
        shown = {n: spread(found[task, n]) if found[task, n] else "-" for n in names}
        cells = [f"**{shown[n]}**" if means[task, n] == best else shown[n] for n in names]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def wins(records: Records, figure: str = "gap") -> list[str]:
    """Tasks on which `agnet` is better or worse than each other method, by a figure as in `per_task`."""
    names, key = methods(records), figure.replace(" ", "_")
    if "agnet" not in names:
        return []
    lines = [
        "## Wins and losses of `agnet` per task" + ("" if figure == "gap" else f", {figure}"),
        "",
        f"Tasks on which its mean {figure} is lower (won) or not (lost), after 50, 100 and 200 evaluations; in",
        "brackets those where the difference is resolved (Welch's t test over seeds, 5 %, of each task by itself).",
        "",
        "| against | 50: won | lost | 100: won | lost | 200: won | lost |",
        "| --- |" + " ---: |" * 6,
    ]
    for other in names:
        if other != "agnet":
            cells = [cell for n in POINTS for cell in compare(records, "agnet", other, f"{key}_{n}")]
            lines.append(f"| {other} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def compare(records: Records, name: str, other: str, key: str) -> tuple[str, str]:
    """On how many tasks `name` has the lower mean and on how many not, each with how many of them are resolved."""
    from scipy.stats import ttest_ind

    won, lost = [0, 0], [0, 0]
    for task in tasks_of(records):
        ours = [r[key] for r in of(records, name) if r["task"] == task]
        theirs = [r[key] for r in of(records, other) if r["task"] == task]
        if ours and theirs:
            side = won if statistics.fmean(ours) < statistics.fmean(theirs) else lost
            side[0] += 1
            if len(ours) > 1 and len(theirs) > 1:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # seeds that all agree: no variance
                    side[1] += bool(ttest_ind(ours, theirs, equal_var=False).pvalue < 0.05)
    return f"{won[0]} ({won[1]})", f"{lost[0]} ({lost[1]})"


def _budget_part(records: Records) -> list[str]:
    from search_quality import ORIGINAL

    lines = [
        "## One latency budget: best feasible test accuracy after 192 evaluations",
        "",
        "ImageNet16-120. Mean over seeds, in brackets the lowest and the highest; the last columns are the original",
        "AG-Net code on the same tables (mean of two seeds) and the best in the table. Nothing is reported where a",
        "search found nothing feasible.",
        "",
    ]
    names = methods(records)
    tasks = tasks_of(records)
    lines += ["| device, limit | " + " | ".join(names) + " | original code | table optimum |"]
    lines.append("| --- |" + " ---: |" * (len(names) + 2))
    for task in tasks:
        device = task.partition("/")[2]
        there = [r for r in records if r["task"] == task]
        cells = []
        for name in names:
            found = [r["best_accuracy"] for r in of(there, name)]
            good = [x for x in found if x == x]
            missed = f", {len(found) - len(good)} found nothing" if len(good) < len(found) else ""
            cells.append(f"{statistics.fmean(good):.2f} ({min(good):.2f}-{max(good):.2f}{missed})" if good else "none")
        limit, optimum = there[0]["limit"], there[0]["optimum"]
        cells += [f"{ORIGINAL[device]:.2f}", f"{optimum:.2f}"]
        lines.append(f"| {device}, {limit:g} ms | " + " | ".join(cells) + " |")
    lines.append("")
    return [*lines, *_correlations([r for r in records if r.get("rank_correlations")])]


def _correlations(records: Records) -> list[str]:
    """What a generator's predictor knows, for generators that show their candidates."""
    lines = []
    for name in methods(records):
        lines += [
            f"Predictor of `{name}`: Spearman correlation of its predictions with the truth over a round's candidates,",
            "mean over rounds and, in brackets, lowest and highest seed (the original code's: -0.08 to 0.06, in",
            "118 to 205 CPU s a search):",
            "",
            "| device | seeds | error | latency | CPU s a search |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for task in tasks_of(records):
            rows = [r for r in of(records, name) if r["task"] == task]
            means = np.array([np.nanmean(np.array(r["rank_correlations"], dtype=float), axis=0) for r in rows])
            cells = [f"{means[:, j].mean():.2f} ({means[:, j].min():.2f} to {means[:, j].max():.2f})" for j in range(2)]
            cost = statistics.fmean(r["cpu_s"] for r in rows)
            lines.append(f"| {task.partition('/')[2]} | {len(rows)} | {' | '.join(cells)} | {cost:.1f} |")
        lines.append("")
    return lines


def _single_part(records: Records) -> list[str]:
    """Error alone, against the published figures of GraphPNAS."""
    from search_quality import GRAPHPNAS, SINGLE_QUERIES

    lines = [
        "## Error alone",
        "",
        f"No latency. Test accuracy of the best of {SINGLE_QUERIES} evaluations, mean ± half width of the 95 %",
        "interval over seeds, in brackets the lowest; then the evaluations until the best cell of the table by the",
        "searched split (median, quartiles). CIFAR-10 is searched and chosen on validation, as GraphPNAS does it, and",
        "its test accuracy shown. The tables have no validation accuracy of the others, which are searched on test",
        "itself: easier than what GraphPNAS had to do (its rows: arXiv 2211.15155, mean of five seeds, its own logs).",
        "",
        "| method | data set | seeds | test accuracy at 100 | evaluations to the optimum | CPU s a search |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for dataset in tasks_of(records):
        for name in methods(records):
            rows = [r for r in of(records, name) if r["task"] == dataset]
            if not rows:
                continue
            test = [r["test_accuracy"] for r in rows]
            paid = max(r["queries"] for r in rows)
            needed = [float("inf") if r.get("to_optimum") is None else float(r["to_optimum"]) for r in rows]
            low, middle, high = np.quantile(needed, (0.25, 0.5, 0.75), method="higher")
            shown = [f"{x:.0f}" if np.isfinite(x) else f"more than {paid}" for x in (middle, low, high)]
            cells = [f"{spread(test, 2)} ({min(test):.2f})", f"{shown[0]} ({shown[1]} to {shown[2]})"]
            cells.append(f"{statistics.fmean(r['cpu_s'] for r in rows):.1f}")
            lines.append(f"| {name} | {dataset} | {len(rows)} | " + " | ".join(cells) + " |")
        lines.append(f"| GraphPNAS | {dataset} | 5 | {GRAPHPNAS[dataset]:.2f} | - | - |")
    return [*lines, ""]


def cost_part(records: Records) -> list[str]:
    """What everything took together, and with which versions."""
    versions = defaultdict(set)
    for record in records:
        for package, version in record.get("versions", {}).items():
            versions[package].add(version)
    told = ", ".join(f"{package} {' and '.join(sorted(found))}" for package, found in sorted(versions.items()))
    hours = sum(r["cpu_s"] for r in records) / 3600
    return ["## Cost", "", f"{len(records):,} searches, {hours:.2f} CPU hours of one thread. {told}."]


def write_page(path: Path, lines: Sequence[str], records: Records) -> Path:
    """Write a page of lines, which ends with what its searches took together and with which version.

    Args:
        path: The page; its folder is made where it is not there.
        lines: Without that.
        records: The searches.
    """
    hours = sum(r["cpu_s"] for r in records) / 3600
    found = " and ".join(sorted({r["versions"]["hwnas"] for r in records}))
    last = f"{len(records):,} searches, {hours:.2f} CPU hours of one thread; hwnas {found}."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, last, ""]))
    return path


def draw(records: Records, path: Path) -> None:
    """Gap over evaluations, median and quartiles over tasks and seeds: a column for each data set, ours above, other
    people's below, each beside `agnet`. Methods that ran on a part of the tasks are left out."""
    from matplotlib.figure import Figure

    every = {r["task"] for r in records}
    complete = [m for m in methods(records) if {r["task"] for r in of(records, m)} == every]
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for line, colours in zip(panels, (OURS, {**OTHERS, "agnet": OURS["agnet"]}), strict=True):
        for axes, dataset in zip(line, DATASETS, strict=True):
            for method in [m for m in complete if m in colours]:
                rows = of(records, method, lambda r, d=dataset: r["task"].startswith(d + "/"))  # type: ignore[misc]
                if not rows:
                    continue
                low, middle, high = np.quantile(curves(rows), (0.25, 0.5, 0.75), axis=0)
                x = np.arange(1, len(middle) + 1)
                axes.plot(x, middle, color=colours[method], label=method, linewidth=2.2 if method == "agnet" else 1.3)
                axes.fill_between(x, low, high, color=colours[method], alpha=0.10, linewidth=0)
            axes.set(title=dataset, xlabel="evaluations", yscale="log", xlim=(1, 200))
            axes.grid(alpha=0.25, which="both")
        line[0].set_ylabel("hypervolume gap (median, quartiles)")
        line[0].legend(fontsize=8, ncols=2, loc="lower left")
    figure.savefig(path, dpi=110)
