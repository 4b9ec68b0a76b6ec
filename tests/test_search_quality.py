"""The figures of benchmarks/search_quality.py: closed forms on tables small enough to check by eye."""

from __future__ import annotations

import argparse
import itertools
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
    for seed in (0, 1):
        records.append(_record("random", "ImageNet16-120/fpga", seed, 0.05))
        records.append(_record("agnet", "ImageNet16-120/fpga", seed, 0.06))
    records.append(_record("agnet", "cifar10/fpga", 2, 0.9))  # a seed that was stopped does not count
    records += [_record("optuna-gp", "cifar10/fpga", 0, 0.2)]
    records = [{**r, "ledger": {"pretraining_labels": 62_500}} if r["method"] == "agnet" else r for r in records]
    quality_report.write_report(records, tmp_path)
    text = (tmp_path / "search_quality.md").read_text()
    assert "| random | 2 (2) | 1 (1) | 2 (2) | 1 (1) | 2 (2) | 1 (1) |" in text
    assert "| optuna-gp | 1 (0) | 0 (0) |" in text
    # a part of the tasks is compared on that part only
    everywhere, _, part = text.partition("## The tasks of slow methods")
    assert "optuna-gp" not in everywhere
    assert "| optuna-gp | 1 x 1 | 0.200" in part
    assert "| random | 1 x 2 | 0.305" in part
    # agnet's mean curve falls on a line from 1 to 0.09 and meets the mean of random's ends, 0.22, there
    assert (quality_report.curves(records)[:, 0] == 1.0).all()
    assert "| random | 172 | " in text
    # two seeds with means 0.1 and 0.11: t(0.975, 1) = 12.706 times 0.01 / sqrt(2) / sqrt(2)
    assert "| agnet | 1 x 2 | 0.105 ± 0.064" in text
    # what a method has seen before stands beside what it found
    assert next(line for line in part.splitlines() if line.startswith("| agnet | 1 x 2")).endswith("| 62500 ± 0 |")
    assert next(line for line in part.splitlines() if line.startswith("| random | 1 x 2")).endswith("| 0 ± 0 |")
    assert (tmp_path / "search_quality.png").stat().st_size > 10_000


def _run(folder: Path, tables: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[dict[str, Any]]:
    words = ["search_quality.py", "--out", str(folder), "--tables", str(tables), "--queries", "55"]
    words += ["--protocol", "front", *more]
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
    # what was kept in Parquet is taken for done as well, and comes back as it was
    kept = tmp_path / "search_quality.parquet"
    again = {search_quality.key_of(r): r for r in search_quality.read_parquet(kept)}
    for record in records:
        assert again[search_quality.key_of(record)] == {k: v for k, v in record.items() if k != "rows"}
    more = _run(tmp_path / "more", tables_dir, monkeypatch, *chosen, "--seeds", "0-2", "--earlier", str(kept))
    assert sorted(record["seed"] for record in more) == [2, 2]
    assert len(search_quality.read_parquet(tmp_path / "more" / "search_quality.parquet")) == 6
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["rows"] for row in table] == [record["rows"] for record in records]
    assert json.loads(table[0]["versions"])["hwnas"]


def test_a_peer_that_is_not_installed_is_left_out_and_named(
    tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(seed: int, limit: float | None, losses: int) -> Any:
        raise ImportError("no module named optuna")

    monkeypatch.setitem(search_quality.PEERS, "optuna-tpe", missing)
    with pytest.raises(SystemExit, match=r"optuna-tpe \(no module named optuna\)"):
        _run(
            tmp_path, tables_dir, monkeypatch, "--tasks", "cifar10/fpga,cifar10/edgegpu", "--seeds", "0",
            "--generators", "optuna-tpe,random",
        )  # fmt: skip
    records = search_quality.read_parquet(tmp_path / "search_quality.parquet")
    assert [(record["method"], record["task"]) for record in records] == [
        ("random", "cifar10/edgegpu"),
        ("random", "cifar10/fpga"),
    ]


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


CELLS = np.array(list(itertools.product(range(peers.OPERATIONS), repeat=peers.EDGES)))


def _cell(code: peers.Code) -> int:
    return int(np.ravel_multi_index(code, (peers.OPERATIONS,) * peers.EDGES))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "package", "limit"), [("hebo", "hebo", None), ("hebo", "hebo", 40.0), ("neps-bo", "neps", None)]
)
def test_a_peer_with_a_model_makes_both_losses_small_and_follows_its_seed(
    name: str, package: str, limit: float | None
) -> None:
    pytest.importorskip(package, reason=f"{name} needs a package of its own, see benchmarks/search_quality.py")
    # each loss is an edge's choice and a little of the next one's: cells with 0 in both edges are the best in both
    losses = np.stack([20.0 * CELLS[:, 0] + CELLS[:, 1], 20.0 * CELLS[:, 1] + CELLS[:, 2]], axis=1)
    losses[_cell((0, 0, 0, 0, 0, 0))] = NAN  # the best cannot be measured
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    rows, asked = peers.run_peer(peers.PEERS[name](1, limit, 2), losses, _cell, 24)
    assert np.random.get_state()[1].tolist() == state, "it moved the global stream"  # noqa: NPY002
    assert len(set(rows)) == 24 <= asked
    # 16 % of all cells have small choices in both edges; one that makes the losses large soon asks for none of them
    assert (CELLS[rows[8:], :2] <= 1).all(axis=1).mean() > 2 * 0.16
    assert (peers.run_peer(peers.PEERS[name](1, limit, 2), losses, _cell, 24)[0]) == rows


def _plan(*words: str) -> list[tuple[str, str, str, int, int]]:
    defaults = {"protocol": "all", "tasks": None, "seeds": None, "generators": None, "queries": 200, "quick": False}
    options = argparse.Namespace(**{**defaults, **dict(word.split("=") for word in words)})
    return list(search_quality.plan(options))


def test_slow_methods_come_last_on_their_tasks_with_fewer_seeds() -> None:
    searches = _plan()
    slow = [search for search in searches if search[2] in peers.SLOW]
    assert searches[-len(slow) :] == slow
    front = [(task, method, seed) for protocol, task, method, seed, _ in searches if protocol == "front"]
    assert len({seed for _, method, seed in front if method == "agnet"}) == 10
    assert len({seed for _, method, seed in front if method == "nsga2"}) == 30
    assert len({seed for _, method, seed in front if method == "agnet-paper"}) == 5
    for method in set(peers.SLOW) - set(peers.APART):
        assert len([task for task, name, _ in front if name == method]) == 2 * len(search_quality.SLOW_TASKS)
    assert len([1 for _, name, _ in front if name == "agnet"]) == 18 * 10
    # what another environment runs only where it is named
    assert not {method for _, method, _ in front} & set(peers.APART)
    assert {task for _, task, *_ in _plan("generators=neps-bo", "protocol=front")} == set(search_quality.SLOW_TASKS)
    # seeds that are asked for by number are all run
    assert {seed for *_, seed, _ in _plan("generators=agnet-paper", "protocol=front", "seeds=7-9")} == {7, 8, 9}


def test_each_protocol_has_its_tasks_and_methods() -> None:
    assert not {method for _, _, method, _, _ in _plan("protocol=budget")} & set(peers.NO_BUDGET)
    assert {task for _, task, *_ in _plan("protocol=single")} == {"cifar10", "cifar100", "ImageNet16-120"}
    assert {method for _, _, method, _, _ in _plan("protocol=single")} == set(search_quality.SINGLE)
    chosen = _plan("tasks=cifar10/fpga,ImageNet16-120/fpga,cifar10")
    assert {(protocol, task) for protocol, task, *_ in chosen} == {
        ("front", "cifar10/fpga"),
        ("front", "ImageNet16-120/fpga"),
        ("budget", "ImageNet16-120/fpga"),
        ("single", "cifar10"),
    }


def test_the_optimum_under_each_budget_is_the_published_one(tables_dir: Path) -> None:
    bench = search_quality.Bench(str(tables_dir))
    wanted = {"edgegpu": 46.05, "raspi4": 39.80, "fpga": 38.63, "pixel3": 40.52, "eyeriss": 45.23}
    for device, accuracy in wanted.items():
        task = f"ImageNet16-120/{device}"
        limit = search_quality.limit_of("budget", task)
        record = search_quality.run_one(bench, "budget", task, "random", 0, 5, limit=limit)
        assert record["optimum"] == pytest.approx(accuracy, abs=0.005)
        assert not record["best_accuracy"] > record["optimum"]
    assert search_quality.limit_of("front", "ImageNet16-120/fpga") is None


def test_error_alone_is_chosen_on_validation_and_shown_on_test(tables_dir: Path) -> None:
    bench = search_quality.Bench(str(tables_dir))
    record = search_quality.run_one(bench, "single", "cifar10", "random", 0, 150)
    validation, test = (100 - bench.error("cifar10", metric) for metric in ("val_error_pct", "test_error_pct"))
    rows = record["rows"]
    assert record["best_accuracies"] == pytest.approx([validation[rows[: i + 1]].max() for i in range(150)])
    assert record["test_accuracy"] == pytest.approx(test[max(rows[:100], key=lambda row: validation[row])])
    assert record["to_optimum"] is None  # the best of 15,625 is not among 150 uniform ones of this seed
    assert validation[rows].max() < validation.max()
    found = search_quality.run_one(bench, "single", "ImageNet16-120", "agnet", 0, 100)
    assert found["to_optimum"] is not None
    best = 100 - bench.error("ImageNet16-120", "test_error_pct").min()
    assert found["best_accuracies"][found["to_optimum"] - 1] == pytest.approx(best)
    assert found["best_accuracies"][found["to_optimum"] - 2] < best


def test_matched_evaluations_have_an_interval_over_seeds() -> None:
    # seed s falls by 1/200 an evaluation, from 1 to 0, shifted up by s/100
    line = 1 - np.arange(1, 201) / 200
    ours = np.array([line + s / 100 for s in range(3)])
    theirs = np.full((4, 200), 0.51 + 1e-9)
    number, low, high = quality_report.matched(ours, theirs)
    assert number == 100  # mean of ours after n: 1.01 - n / 200
    assert low < number < high
    assert (low, high) == (98, 102)  # all three draws the best or the worst seed: 1 in 27 each
    assert quality_report.matched(ours, theirs - 1)[0] == float("inf")


def test_wins_are_counted_by_task_and_those_that_seeds_resolve() -> None:
    def records(method: str, gaps: dict[str, list[float]]) -> list[dict[str, Any]]:
        return [_record(method, task, seed, gap) for task, row in gaps.items() for seed, gap in enumerate(row)]

    ours = {"a": [0.10, 0.11, 0.12], "b": [0.1, 0.3, 0.5], "c": [0.5, 0.6, 0.7]}
    theirs = {"a": [0.40, 0.41, 0.42], "b": [0.2, 0.4, 0.4], "c": [0.1, 0.1, 0.2], "d": [0.0, 0.0, 0.0]}
    both = records("agnet", ours) + records("random", theirs)
    assert quality_report.compare(both, "agnet", "random", "gap_200") == ("2 (1)", "1 (1)")
