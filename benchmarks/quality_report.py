"""Tables and pictures of stored results of `search_quality.py`; runs no search."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = Sequence[Mapping[str, Any]]

# name: colour; in the order of the tables
OURS = {
    "random": "#999999",
    "evolution": "#e69f00",
    "eda": "#f0e442",
    "nsga2": "#56b4e9",
    "agnet-paper": "#cc79a7",
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
}
ORDER = (*OURS, *OTHERS)
POINTS = (50, 100, 200)


def write_report(records: Records, folder: Path, bench: Any) -> None:
    """Write `search_quality.md` and its pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    front = [r for r in records if r["protocol"] == "front" and f"gap_{max(POINTS)}" in r]
    budget = [r for r in records if r["protocol"] == "budget"]
    parts = ["# Search quality", "", *(_front_part(front) if front else []), *(_budget_part(budget) if budget else [])]
    parts += _cost_part(records)
    (folder / "search_quality.md").write_text("\n".join(parts) + "\n")
    if front:
        draw(front, folder / "search_quality.png")
    print(folder / "search_quality.md")


def spread(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval (t distribution over the values)."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def seed_means(records: Records, key: str) -> list[float]:
    """One value a seed: the mean over its tasks. Seeds, not tasks, are the repetitions."""
    by_seed = defaultdict(list)
    for record in records:
        by_seed[record["seed"]].append(record[key])
    return [statistics.fmean(values) for _, values in sorted(by_seed.items())]


def methods(records: Records) -> list[str]:
    there = {r["method"] for r in records}
    return [m for m in ORDER if m in there] + sorted(there - set(ORDER))


def _of(records: Records, method: str, keep: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> Records:
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
    for dataset in ("cifar10", "cifar100", "ImageNet16-120"):
        groups.append((dataset, lambda r, d=dataset: r["task"].startswith(d + "/")))  # type: ignore[misc]
    every = {r["task"] for r in records}
    covered = {method: {r["task"] for r in _of(records, method)} for method in methods(records)}
    complete = [r for r in records if covered[r["method"]] == every]
    for title, keep in groups:
        lines += _table(title, [r for r in complete if keep(r)])
    partial = {method: tasks for method, tasks in covered.items() if tasks != every}
    if partial:
        shared = set.intersection(*partial.values())
        names = ", ".join(f"`{name}`" for name in partial)
        lines += _table("The tasks of slow methods", [r for r in records if r["task"] in shared])
        lines += [f"{names}: minutes a search, so these tasks and seeds only: {', '.join(sorted(shared))}.", ""]
    return [*lines, *_matched(complete), *_per_task(records), "![gap over evaluations](search_quality.png)", ""]


def _table(title: str, records: Records) -> list[str]:
    """Every figure of every method; nothing where there is no record."""
    if not records:
        return []
    columns = [(f"gap_{n}", f"gap at {n}") for n in POINTS] + [
        ("regret_200", "regret at 200"),
        ("recall_200", "recall at 200"),
        ("cpu_s", "CPU s a search"),
    ]
    lines = [f"## {title}", "", "| method | tasks x seeds | " + " | ".join(c for _, c in columns) + " |"]
    lines += ["| --- |" + " ---: |" * (len(columns) + 1)]
    for method in methods(records):
        rows = _of(records, method)
        cells = [spread(seed_means(rows, key)) for key, _ in columns]
        tasks, seeds = len({r["task"] for r in rows}), len({r["seed"] for r in rows})
        lines.append(f"| {method} | {tasks} x {seeds} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _matched(records: Records) -> list[str]:
    """How few evaluations `agnet` needs, in the mean over tasks and seeds, for what others reach with 200."""
    if "agnet" not in methods(records):
        return []
    curve = curves(_of(records, "agnet")).mean(axis=0)
    lines = ["Evaluations after which the mean gap of `agnet` is at most that of another method after 200:", ""]
    for other in methods(records):
        if other != "agnet":
            reached = np.flatnonzero(curve <= curves(_of(records, other)).mean(axis=0)[-1])
            lines.append(f"- {other}: {reached[0] + 1 if len(reached) else 'more than 200'}")
    return [*lines, ""]


def curves(records: Records) -> NDArray[np.float64]:
    """`n x 200` gaps; a search that stopped earlier keeps its last value."""
    last = max(POINTS)
    return np.array([(r["gaps"] + r["gaps"][-1:] * (last - len(r["gaps"])))[:last] for r in records])


def _per_task(records: Records) -> list[str]:
    names = methods(records)
    tasks = list(dict.fromkeys(r["task"] for r in records))
    lines = ["## Each task: gap at 200, mean over seeds", "", "| task | " + " | ".join(names) + " |"]
    lines.append("| --- |" + " ---: |" * len(names))
    found = defaultdict(list)
    for record in records:
        found[record["task"], record["method"]].append(record["gap_200"])
    means = {(t, n): statistics.fmean(found[t, n]) if found[t, n] else float("nan") for t in tasks for n in names}
    for task in tasks:
        best = min(v for name in names if (v := means[task, name]) == v)
        shown = {n: f"{means[task, n]:.3f}" if found[task, n] else "-" for n in names}
        cells = [f"**{shown[n]}**" if means[task, n] == best else shown[n] for n in names]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    if "agnet" in names:
        lines += ["", "Tasks on which `agnet` has the lower mean gap (at 50 / 100 / 200):", ""]
        for other in names:
            if other != "agnet":
                lines.append(f"- against {other}: " + " / ".join(_wins(records, tasks, other, n) for n in POINTS))
    return [*lines, ""]


def _wins(records: Records, tasks: Sequence[str], other: str, n: int) -> str:
    won = total = 0
    for task in tasks:
        ours = [r[f"gap_{n}"] for r in _of(records, "agnet") if r["task"] == task]
        theirs = [r[f"gap_{n}"] for r in _of(records, other) if r["task"] == task]
        if ours and theirs:
            total += 1
            won += statistics.fmean(ours) < statistics.fmean(theirs)
    return f"{won} of {total}"


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
    tasks = list(dict.fromkeys(r["task"] for r in records))
    lines += ["| device, limit | " + " | ".join(names) + " | original code | table optimum |"]
    lines.append("| --- |" + " ---: |" * (len(names) + 2))
    for task in tasks:
        device = task.partition("/")[2]
        there = [r for r in records if r["task"] == task]
        cells = []
        for name in names:
            found = [r["best_accuracy"] for r in _of(there, name)]
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
        for task in dict.fromkeys(r["task"] for r in records):
            rows = [r for r in _of(records, name) if r["task"] == task]
            means = np.array([np.nanmean(np.array(r["rank_correlations"], dtype=float), axis=0) for r in rows])
            cells = [f"{means[:, j].mean():.2f} ({means[:, j].min():.2f} to {means[:, j].max():.2f})" for j in range(2)]
            cost = statistics.fmean(r["cpu_s"] for r in rows)
            lines.append(f"| {task.partition('/')[2]} | {len(rows)} | {' | '.join(cells)} | {cost:.1f} |")
        lines.append("")
    return lines


def _cost_part(records: Records) -> list[str]:
    """What everything took together, and with which versions."""
    versions = defaultdict(set)
    for record in records:
        for package, version in record.get("versions", {}).items():
            versions[package].add(version)
    told = ", ".join(f"{package} {' and '.join(sorted(found))}" for package, found in sorted(versions.items()))
    hours = sum(r["cpu_s"] for r in records) / 3600
    return ["## Cost", "", f"{len(records):,} searches, {hours:.2f} CPU hours of one thread. {told}."]


def draw(records: Records, path: Path) -> None:
    """Gap over evaluations, median and quartiles over tasks and seeds: a column for each data set, ours above, other
    people's below, each beside `agnet`. Methods that ran on a part of the tasks are left out."""
    from matplotlib.figure import Figure

    every = {r["task"] for r in records}
    complete = [m for m in methods(records) if {r["task"] for r in _of(records, m)} == every]
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for line, colours in zip(panels, (OURS, {**OTHERS, "agnet": OURS["agnet"]}), strict=True):
        for axes, dataset in zip(line, ("cifar10", "cifar100", "ImageNet16-120"), strict=True):
            for method in [m for m in complete if m in colours]:
                rows = _of(records, method, lambda r, d=dataset: r["task"].startswith(d + "/"))  # type: ignore[misc]
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
