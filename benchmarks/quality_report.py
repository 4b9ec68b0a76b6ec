"""Tables and pictures of stored results of `search_quality.py`; runs no search."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]

ORDER = ("random", "evolution", "eda", "nsga2", "optuna-nsga2", "optuna-tpe", "agnet-paper", "agnet")
COLOURS = {
    "random": "#999999",
    "evolution": "#e69f00",
    "eda": "#f0e442",
    "nsga2": "#56b4e9",
    "optuna-nsga2": "#0072b2",
    "optuna-tpe": "#009e73",
    "agnet-paper": "#cc79a7",
    "agnet": "#d55e00",
}
POINTS = (50, 100, 200)


def write_report(records: Records, folder: Path, bench: Any) -> None:
    """Write `search_quality.md` and its pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    front = [r for r in records if r["protocol"] == "front" and r["queries"] >= max(POINTS)]
    budget = [r for r in records if r["protocol"] == "budget"]
    parts = ["# Search quality", "", *(_front_part(front) if front else []), *(_budget_part(budget) if budget else [])]
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
    columns = [(f"gap_{n}", f"gap at {n}") for n in POINTS] + [
        ("regret_200", "regret at 200"),
        ("recall_200", "recall at 200"),
        ("cpu_s", "CPU s a search"),
    ]
    groups: list[tuple[str, Callable[[Mapping[str, Any]], bool]]] = [("All tasks", lambda _: True)]
    for dataset in ("cifar10", "cifar100", "ImageNet16-120"):
        groups.append((dataset, lambda r, d=dataset: r["task"].startswith(d + "/")))  # type: ignore[misc]
    for title, keep in groups:
        lines += [f"## {title}", "", "| method | tasks x seeds | " + " | ".join(c for _, c in columns) + " |"]
        lines += ["| --- |" + " ---: |" * (len(columns) + 1)]
        for method in methods(records):
            rows = _of(records, method, keep)
            if not rows:
                continue
            cells = [spread(seed_means(rows, key)) for key, _ in columns]
            tasks, seeds = len({r["task"] for r in rows}), len({r["seed"] for r in rows})
            lines.append(f"| {method} | {tasks} x {seeds} | " + " | ".join(cells) + " |")
        lines.append("")
    return [*lines, *_per_task(records), "![gap over evaluations](search_quality.png)", ""]


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
        cells = [f"**{means[task, n]:.3f}**" if means[task, n] == best else f"{means[task, n]:.3f}" for n in names]
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
    told = [r for r in records if r.get("rank_correlations")]
    for name in methods(told):
        pairs = np.array([pair for r in _of(told, name) for pair in r["rank_correlations"]], dtype=float)
        error, latency = np.nanmean(pairs, axis=0)
        lines.append(
            f"Spearman correlation of `{name}`'s predictions with the truth over each round's candidates, mean over "
            f"rounds: error {error:.2f}, latency {latency:.2f} (original code: -0.08 to 0.06)."
        )
    return [*lines, ""]


def draw(records: Records, path: Path) -> None:
    """Gap over evaluations, median and quartiles over tasks and seeds, a panel for each data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, dataset in zip(panels, ("cifar10", "cifar100", "ImageNet16-120"), strict=True):
        for method in methods(records):
            rows = _of(records, method, lambda r, d=dataset: r["task"].startswith(d + "/"))  # type: ignore[misc]
            if not rows:
                continue
            curves = np.array([r["gaps"][:200] for r in rows])
            low, middle, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
            x = np.arange(1, curves.shape[1] + 1)
            colour = COLOURS.get(method, "#000000")
            axes.plot(x, middle, color=colour, label=method, linewidth=2.2 if method == "agnet" else 1.3)
            axes.fill_between(x, low, high, color=colour, alpha=0.10, linewidth=0)
        axes.set(title=dataset, xlabel="evaluations", yscale="log", xlim=(1, 200))
        axes.grid(alpha=0.25, which="both")
    panels[0].set_ylabel("hypervolume gap (median, quartiles)")
    panels[-1].legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=130)
