"""The figures of benchmarks/three_objectives.py: closed forms on a table small enough to check by eye."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import search_quality
import three_objectives
from peers import SLOW

from hwnas import registry
from hwnas.core.objective import Objective
from hwnas.spaces.nb201 import NasBench201
from hwnas.tables.schema import ATTACKED, ROBUSTNESS

NAN = float("nan")
OBJECTIVES = (Objective("val_error_pct"), Objective("latency_ms", "fpga"), Objective("energy_mj", "fpga"))

# Every column has minimum 1 and median 3 over the first five rows: scaled, 1 is 0, 2 is 0.5 and 3 is 1
TINY = three_objectives.Task(
    "cifar10/fpga/energy",
    OBJECTIVES,
    np.array([[1.0, 2, 2], [2, 1, 1], [3, 3, 3], [5, 9, 9], [4, 8, 8], [0.5, NAN, 0.5]]),
)


def test_both_gaps_are_missing_shares_of_the_true_volume() -> None:
    # up to the medians row 0 dominates 1 x .5 x .5, row 1 .5 x 1 x 1, both .5 x .5 x .5; row 2 is the reference point
    assert TINY.true_volumes[0] == pytest.approx(0.25 + 0.5 - 0.125)
    assert TINY.gaps([3, 0, 5, 1, 2])[:, 0].tolist() == pytest.approx([1, 1 - 0.25 / 0.625, 1 - 0.25 / 0.625, 0, 0])
    # 0.9 quantiles of 0 .5 1 1.5 2 and of 0 .5 1 3.5 4
    assert TINY.wide.tolist() == pytest.approx([1.8, 3.8, 3.8])
    assert TINY.gaps([2, 1, 0])[-1].tolist() == pytest.approx([0, 0])
    assert TINY.gaps([2])[0, 1] == pytest.approx(1 - (0.8 * 2.8 * 2.8) / TINY.true_volumes[1])
    assert len(TINY.front) == 2
    assert TINY.inside == (2, 2)
    assert TINY.recall([1, 3, 5]) == 0.5


def test_tasks_read_the_columns_that_they_are_named_after(tables_dir: Path) -> None:
    bench = search_quality.Bench(str(tables_dir))
    task = three_objectives.load_task(bench.tables, "cifar10/raspi4/robust")
    assert [o.name for o in task.objectives] == ["val_error_pct", "robust_error_pct", "latency_ms@raspi4"]
    accuracy = bench.tables.column(ROBUSTNESS, ATTACKED["robust_error_pct"][0])
    assert task.values[:, 1].tolist() == (100 - accuracy).tolist()
    task = three_objectives.load_task(bench.tables, "cifar100/eyeriss/energy")
    assert [o.name for o in task.objectives] == ["test_error_pct", "latency_ms@eyeriss", "energy_mj@eyeriss"]


def _run(folder: Path, tables: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[dict[str, Any]]:
    words = ["three_objectives.py", "--out", str(folder), "--tables", str(tables), *more]
    monkeypatch.setattr(sys, "argv", words)
    three_objectives.main()
    return search_quality.read(folder)


def test_searches_become_a_page(tables_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = "cifar10/edgetpu/robust,cifar100/edgegpu/energy"
    chosen = ("--tasks", tasks, "--seeds", "0-1", "--generators", "random,pymoo:nsga3,optuna-nsga2")
    if not _has("optuna"):
        chosen = (*chosen[:-1], "random,pymoo:nsga3")
    records = _run(tmp_path, tables_dir, monkeypatch, *chosen)
    for record in records:
        assert len(set(record["rows"])) == 200
        for key in ("gaps", "wide_gaps"):
            assert (np.diff(record[key]) <= 1e-12).all()
        assert record["gap_50"] == record["gaps"][49]
        assert record["wide_gap_200"] == record["wide_gaps"][199]
    kept = {record["task"]: record["wide_gap_200"] for record in records if record["method"] == "random"}
    assert set(kept) == set(tasks.split(","))
    _run(tmp_path, tables_dir, monkeypatch, "--report", str(tmp_path / "page"))
    page = (tmp_path / "page" / "three_objectives.md").read_text()
    for kind in ("Error, latency, energy", "Error, robust error, latency"):
        assert f"## {kind}\n\n| method | tasks x seeds |" in page
        assert f"### {kind}: Each task: wide gap at 200" in page
    assert "| cifar10/edgetpu | 178 | " in page  # points of the true front
    assert (tmp_path / "page" / "three_objectives.png").stat().st_size > 10_000


def _has(package: str) -> bool:
    from hwnas import optional

    return optional.version(package) is not None


def test_reference_directions_are_as_many_as_individuals() -> None:
    pytest.importorskip("pymoo")
    from hwnas.generators.pymoo_ea import _directions

    settings = three_objectives.SETTINGS["pymoo:nsga3"]
    assert registry.generator("pymoo:nsga3", NasBench201(), settings).population == 21  # type: ignore[attr-defined]
    assert len(_directions(3, settings["population"])) == 21


def test_slow_methods_come_last_on_their_tasks_with_one_seed() -> None:
    import argparse

    options = {"tasks": None, "seeds": None, "generators": None, "queries": 200, "quick": False}
    searches = list(three_objectives.plan(argparse.Namespace(**options)))
    slow = [search for search in searches if search[1] in SLOW]
    assert searches[-len(slow) :] == slow
    assert slow == [(task, "botorch-qlognehvi", 0) for task in three_objectives.SLOW_TASKS]
    assert len(searches) - len(slow) == 12 * 10 * (len(three_objectives.METHODS) - 1)
    asked = three_objectives.plan(
        argparse.Namespace(
            **{**options, "generators": "botorch-qlognehvi", "tasks": "cifar10/fpga/robust", "seeds": "3"}
        )
    )
    assert list(asked) == [("cifar10/fpga/robust", "botorch-qlognehvi", 3)]
