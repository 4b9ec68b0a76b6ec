"""The figures of benchmarks/search_quality.py: closed forms on tables small enough to check by eye."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import peers
import quality_report
import quality_tasks
import search_quality

NAN = float("nan")

# Scaled by minimum and median over the measured rows (error 10 and 30, latency 1 and 3) the rows are
# (0, .5) (.5, 0) (1, 1) (2, 2) (3, 1.5); the last row has no latency.
TINY = quality_tasks.Task(
    "cifar10/fpga",
    np.array([10.0, 20.0, 30.0, 50.0, 70.0, 5.0]),
    np.array([2.0, 1.0, 3.0, 5.0, 4.0, NAN]),
)


def test_losses_are_scaled_by_minimum_and_median_of_what_was_measured() -> None:
    assert TINY.losses[:5].tolist() == [[0, 0.5], [0.5, 0], [1, 1], [2, 2], [3, 1.5]]
    assert np.isnan(TINY.losses[5]).any()


def test_gap_is_the_missing_share_of_the_dominated_volume() -> None:
    # row 0 dominates 1 x 0.5, row 1 0.5 x 1, both together 0.75 of the unit square
    assert TINY.true_volume == pytest.approx(0.75)
    assert TINY.gap([0, 1]) == pytest.approx(0.0)
    assert TINY.gap([0]) == pytest.approx(1 - 0.5 / 0.75)
    assert TINY.gap([2, 3, 4]) == 1.0  # at or beyond the reference point
    assert TINY.gap([5]) == 1.0  # an error alone is no point
    assert TINY.gaps([3, 1, 5, 0]).tolist() == pytest.approx([1.0, 1 / 3, 1 / 3, 0.0])


def test_recall_counts_points_of_the_front_once() -> None:
    assert sorted(TINY.front) == [0, 1]
    assert [TINY.recall(rows) for rows in ([], [2, 5], [1], [1, 0])] == [0.0, 0.0, 0.5, 1.0]
    twins = quality_tasks.Task("x/y", np.array([1.0, 1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0, 3.0]))
    assert twins.recall([1]) == 0.5  # a twin of a front point is that point
    assert twins.recall([0, 1, 2]) == 1.0


def test_regret_is_the_mean_over_latency_limits() -> None:
    # the quantiles of latencies 1..5 are 1.2, 1.8 and 3 ms; the best errors within them 20, 20 and 10
    assert TINY.limits == [pytest.approx((1.2, 20.0)), pytest.approx((1.8, 20.0)), pytest.approx((3.0, 10.0))]
    assert TINY.regret([0, 1]) == pytest.approx(0.0)
    assert TINY.regret([1]) == pytest.approx((0 + 0 + 10) / 3)
    assert TINY.regret([0]) == pytest.approx((10 + 10 + 0) / 3)  # nothing feasible: 10 points
    assert TINY.regret([5]) == pytest.approx(10.0)


def test_best_within_a_limit() -> None:
    assert TINY.best_below([1, 2], 3.0) == 20.0
    assert np.isnan(TINY.best_below([0, 5], 1.5))


def test_seeds_are_read() -> None:
    assert search_quality.parse_seeds("0-2,7") == [0, 1, 2, 7]


def _record(method: str, task: str, seed: int, gap: float) -> dict[str, Any]:
    return {
        "protocol": "front",
        "task": task,
        "method": method,
        "seed": seed,
        "queries": 200,
        "cpu_s": 1.0,
        "gaps": np.linspace(1.0, gap, 200).tolist(),
        **{f"{what}_{n}": gap for what in ("gap", "recall", "regret") for n in (50, 100, 200)},
    }


def test_the_report_counts_wins_and_gives_the_spread_over_seeds(tmp_path: Path) -> None:
    records = [
        _record(method, task, seed, gap + 0.01 * seed)
        for method, gap in (("agnet", 0.1), ("random", 0.3))
        for task in ("cifar10/fpga", "cifar100/fpga")
        for seed in (0, 1)
    ]
    records += [_record("random", "ImageNet16-120/fpga", 0, 0.05), _record("agnet", "ImageNet16-120/fpga", 0, 0.06)]
    records += [_record("optuna-gp", "cifar10/fpga", 0, 0.2)]
    quality_report.write_report(records, tmp_path, None)
    text = (tmp_path / "search_quality.md").read_text()
    assert "against random: 2 of 3 / 2 of 3 / 2 of 3" in text
    assert "against optuna-gp: 1 of 1 / 1 of 1 / 1 of 1" in text
    # a part of the tasks is compared on that part only
    everywhere, _, part = text.partition("## The tasks of slow methods")
    assert "optuna-gp" not in everywhere
    assert "| optuna-gp | 1 x 1 | 0.200" in part
    assert "| random | 1 x 2 | 0.305" in part
    # agnet's mean curve falls on a line from 1 to 0.096 and meets random's mean end, 0.254, there
    assert (quality_report.curves(records)[:, 0] == 1.0).all()
    assert "- random: 166" in text
    # two seeds with means 0.1 and 0.11: t(0.975, 1) = 12.706 times 0.01 / sqrt(2) / sqrt(2)
    assert "| agnet | 1 x 2 | 0.105 ± 0.064" in text
    assert (tmp_path / "search_quality.png").stat().st_size > 10_000


def _run(folder: Path, tables: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[dict[str, Any]]:
    words = ["search_quality.py", "--out", str(folder), "--tables", str(tables), "--queries", "55", *more]
    monkeypatch.setattr(sys, "argv", words)
    search_quality.main()
    return search_quality.read(folder)


def test_a_stopped_run_goes_on_and_results_are_one_table(
    tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("--tasks", "cifar10/fpga", "--generators", "random,nsga2")
    for record in _run(tmp_path, tables_dir, monkeypatch, *chosen, "--seeds", "0"):
        assert len(set(record["rows"])) == 55
        assert record["ledger"]["evaluations"] == record["ledger"]["error_queries"] == 55
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "searches").iterdir()}
    records = _run(tmp_path, tables_dir, monkeypatch, *chosen, "--seeds", "0-1")
    assert len(records) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in times.items()), "a finished search was run again"
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["rows"] for row in table] == [record["rows"] for record in records]
    assert json.loads(table[0]["versions"])["hwnas"]


def test_one_seed_is_one_search(tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("--tasks", "cifar100/edgetpu", "--generators", "evolution", "--seeds", "3")
    (once,) = _run(tmp_path / "a", tables_dir, monkeypatch, *chosen)
    (again,) = _run(tmp_path / "b", tables_dir, monkeypatch, *chosen)
    assert once["rows"] == again["rows"]


@pytest.mark.parametrize(("name", "package"), [("optuna-nsga2", "optuna"), ("syne-tune-morea-ranked", "syne_tune")])
@pytest.mark.filterwarnings("ignore")
def test_a_peer_pays_for_an_architecture_once_and_follows_its_seed(
    tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    pytest.importorskip(package)
    chosen = ("--tasks", "cifar10/edgetpu", "--generators", name, "--seeds", "0")
    (record,) = _run(tmp_path / "a", tables_dir, monkeypatch, *chosen)
    assert len(set(record["rows"])) == len(record["rows"]) == 55
    assert record["asked"] >= 55
    (again,) = _run(tmp_path / "b", tables_dir, monkeypatch, *chosen)
    assert again["rows"] == record["rows"]


class _Scripted:
    """Asks for what it was given, in order, and remembers what it was told."""

    def __init__(self, batches: list[list[peers.Code]]) -> None:
        self.batches = batches
        self.told: list[tuple[peers.Code, tuple[float, float] | None]] = []

    def ask(self) -> list[peers.Code]:
        return self.batches.pop(0) if len(self.batches) > 1 else self.batches[0]

    def tell(self, code: peers.Code, losses: tuple[float, float] | None) -> None:
        self.told.append((code, losses))


def test_a_peer_gets_repeats_for_free_failures_as_none_and_no_more_than_its_budget() -> None:
    losses = np.array([[1.0, 2.0], [NAN, 3.0], [4.0, 5.0], [6.0, 7.0]])
    peer = _Scripted([[(0,), (1,)], [(0,)], [(2,), (3,)]])
    rows, asked = peers.run_peer(peer, losses, lambda code: code[0], 3)
    assert rows == [0, 1, 2]
    assert peer.told == [((0,), (1.0, 2.0)), ((1,), None), ((0,), (1.0, 2.0)), ((2,), (4.0, 5.0))]
    assert asked == 5
    # one that asks for the same cell for ever is stopped
    assert peers.run_peer(_Scripted([[(0,)]]), losses, lambda code: code[0], 3) == ([0], 3 * peers.ASKED)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_botorch_searches_among_cells_that_were_not_asked_for(tables_dir: Path) -> None:
    pytest.importorskip("botorch")
    bench = search_quality.Bench(str(tables_dir))
    record = search_quality.run_one(bench, "front", "cifar10/edgetpu", "botorch-qlognehvi", 0, 30)
    assert len(set(record["rows"])) == 30
    again = search_quality.run_one(bench, "front", "cifar10/edgetpu", "botorch-qlognehvi", 0, 30)
    assert record["rows"] == again["rows"]


def _plan(*words: str) -> list[tuple[str, str, int, int]]:
    defaults = {"protocol": "front", "tasks": None, "seeds": None, "generators": None, "queries": 200, "quick": False}
    options = argparse.Namespace(**{**defaults, **dict(word.split("=") for word in words)})
    return list(search_quality.plan(options))


def test_slow_methods_come_last_on_their_tasks_and_none_without_constraints_under_a_budget() -> None:
    searches = _plan()
    slow = [(task, method, seed) for task, method, seed, _ in searches if method in peers.SLOW]
    assert [(task, method, seed) for task, method, seed, _ in searches[-len(slow) :]] == slow
    assert len(slow) == len(peers.SLOW) * len(search_quality.SLOW_TASKS) * search_quality.SLOW_SEEDS
    fast = len(search_quality.METHODS) - len(peers.SLOW)
    assert len(searches) - len(slow) == 18 * 5 * fast
    assert not {method for _, method, _, _ in _plan("protocol=budget")} & set(peers.NO_BUDGET)


def test_the_optimum_under_each_budget_is_the_published_one(tables_dir: Path) -> None:
    bench = search_quality.Bench(str(tables_dir))
    wanted = {"edgegpu": 46.05, "raspi4": 39.80, "fpga": 38.63, "pixel3": 40.52, "eyeriss": 45.23}
    for device, accuracy in wanted.items():
        record = search_quality.run_one(bench, "budget", f"ImageNet16-120/{device}", "random", 0, 5)
        assert record["optimum"] == pytest.approx(accuracy, abs=0.005)
        assert not record["best_accuracy"] > record["optimum"]
