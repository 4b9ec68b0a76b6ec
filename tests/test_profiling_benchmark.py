"""benchmarks/profiling.py: what its report keeps, what it says of noise floors, and the faults that it injects."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import profiling as benchmark
import torch_modules

from hwnas.core.measurement import Status
from hwnas.devices import load_device
from hwnas.profiling.protocol import PROTOCOLS, Protocol

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CONTEXT = {"machine": "a machine", "date": "2026-01-02T03:04:05+00:00", "load": 1.5, "quick": False}


def written(folder: Path, name: str, told: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(told | CONTEXT))


def sweep(values: dict[str, float], failed: dict[str, str], calibrated: bool) -> dict[str, Any]:
    return {
        "status": {name: failed.get(name, "ok") for name in [*values, *failed]},
        "latency": {**{n: [v, 0.95 * v, 1.05 * v] for n, v in values.items()}, **dict.fromkeys(failed)},
        "seconds": 10.0,
        "device": {"noise_floor": 0.031, "calibrated": calibrated},
    }


def test_a_report_leaves_sections_alone_whose_results_are_gone(tmp_path: Path) -> None:
    page = "# Old title\n\nold\n\n## Two sweeps over 40 cells\n\nkept\n\n## Export\n\nreplaced\n\n## Strange\n\ngone\n"
    written(tmp_path, "export", {"networks": 5, "cpu_s": 1.0, "compared": 2, "off": [1e-6, 3e-6]})
    told = benchmark.report(tmp_path, page)
    assert told.startswith(benchmark.TITLE)
    assert "## Two sweeps over 40 cells\n\nkept\n" in told
    assert "replaced" not in told
    assert "gone" not in told
    assert "largest output 3.0e-06" in told
    assert "*2026-01-02, a machine; load average 1.5 when it began.*" in told
    assert benchmark.report(tmp_path, told) == told


def repeats(values: Any, half: float, own_half: float) -> list[dict[str, Any]]:
    """Sweeps with these latencies, a row each, and with such half widths, relative, of intervals and for comparing."""
    return [
        {
            "value": list(row),
            "low": list(row * np.exp(-half)),
            "high": list(row * np.exp(half)),
            "own_half": list(row * np.sinh(own_half)),
            "status": ["ok"] * len(row),
            "began": 90.0 * number,
            "seconds": 30.0,
            "device": {"runtime": "ort-cpu", "noise_floor": 0.025, "calibrated": True},
        }
        for number, row in enumerate(values)
    ]


def test_intervals_of_the_right_width_hold_what_they_should_of_later_repeats() -> None:
    """A pace that all cells of a repeat share and a part of each cell's own: known widths, known shares."""
    rng = np.random.default_rng(0)
    pace, own = 0.03 * rng.standard_normal((60, 1)), 0.01 * rng.standard_normal((60, 40))
    values = np.exp(np.linspace(0, 2, 40) + pace + own)
    told = benchmark.repeated(repeats(values, 1.96 * np.hypot(0.03, 0.01), 1.96 * 0.01))
    assert told["figures"]["one"] == pytest.approx(0.834, abs=0.05)
    assert told["figures"]["joint"] == pytest.approx(0.95, abs=0.03)
    assert told["figures"]["spread"] == pytest.approx(np.hypot(0.03, 0.01), rel=0.15)
    assert told["ratios"]["one"] == pytest.approx(0.834, abs=0.01)
    assert told["ratios"]["joint"] == pytest.approx(0.95, abs=0.01)
    assert told["ratios"]["spread"] == pytest.approx(np.sqrt(2) * 0.01, rel=0.05)
    assert told["ratios"]["half"] == pytest.approx(1.96 * np.sqrt(2) * 0.01)
    narrow = benchmark.repeated(repeats(values, 1.96 * 0.01, 1.96 * 0.005))
    assert narrow["figures"]["joint"] < 0.6
    assert narrow["ratios"]["joint"] < 0.75


def test_final_figures_are_reported_with_those_that_failed(tmp_path: Path) -> None:
    sweeps = repeats(np.array([[1.0, 2.0, 4.0], [1.04, 2.08, 4.16], [1.0, 2.0, 4.0]]), 0.03, 0.01)
    sweeps[1] |= {"value": [1.04, 2.08, float("nan")], "status": ["ok", "noisy", "crashed"]}
    for key in ("low", "high", "own_half"):
        sweeps[1][key][2] = None
    written(tmp_path, "final", {"cells": 3, "repeats": 3, "devices": {"cpu": sweeps}})
    page = benchmark.report(tmp_path)
    assert "## Final figures: 3 cells measured 3 times" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    # of three repeats the second is 4 % off: one pair of three agrees, by joint intervals all do; ratios do not change
    first = "| `cpu` (ort-cpu, 1 without a figure) | figures | 33% | 100% | 2.26% | 3.00% | 78% | 1.5 | 30 |"
    second = "| `cpu` (ort-cpu, 1 without a figure) | ratios | 100% | 100% | 0.00% | 1.41% | 78% | 1.5 | 30 |"
    assert rows == [first, second]
    assert "*2026-01-02, a machine" in page
    assert benchmark.report(Path(tmp_path / "empty"), page) == page  # kept where the results are gone


def test_who_failed_and_whether_the_others_are_the_same(tmp_path: Path) -> None:
    expected = {"x": "crashed", "y": "timeout"}
    values = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}
    off = values | {"d": 10.0}
    clean = values | {"x": 1.0, "y": 1.0}
    runtimes = {
        "fake": {
            "clean": sweep(clean, {}, False),
            "faulty": sweep(values, expected, False),
            "again": sweep(clean, {}, False),
        },
        "ort-cpu": {
            "clean": sweep(clean, {}, True),
            "faulty": sweep(off, {"x": "crashed", "y": "oom"}, True),
            "again": sweep(clean | {"x": 2.0}, {}, True),
        },
    }
    written(tmp_path, "faults", {"networks": 6, "protocol": "quick", "expected": expected, "runtimes": runtimes})
    fake, ort = [line for line in benchmark.report(tmp_path).splitlines() if line.startswith("| `")]
    assert "| 3.1% (assumed, never calibrated) | 2 of 2 | 4 of 4 | 100% (100%) | 0.0 (0.0) |" in fake
    assert "| 3.1% (calibrated) | no: y | 4 of 4 | 75% (83%) |" in ort


def test_faults_in_a_real_worker_cost_only_their_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    brief = Protocol("brief", rounds=4, most_rounds=4, within=0.9, resamples=50, warm_ms=1.0, visit_ms=0.5, retests=0)
    monkeypatch.setitem(PROTOCOLS, "brief", brief)
    names = [f"net-{i}" for i in range(8)]
    for name, cell in zip(names, benchmark.cells(len(names), seed=1), strict=True):
        benchmark.write(cell, tmp_path / f"{name}.onnx")
    words = {"net-1": "crash", "net-2": "killed@4", "net-3": "garbage"}
    for name, word in {"net-4": "oom", "net-5": "invalid", "net-6": "unsupported"}.items():
        benchmark._spoil(tmp_path / f"{name}.onnx", word)
    command = [sys.executable, str(BENCHMARKS / "faulty_worker.py"), json.dumps(words)]
    told = benchmark._swept(load_device("cpu"), tmp_path, command, (2,), names, "brief")
    failed = {name: status for name, status in told["status"].items() if told["latency"][name] is None}
    assert failed == {
        "net-1": Status.CRASHED,
        "net-2": Status.CRASHED,
        "net-4": Status.OUT_OF_MEMORY,
        "net-5": Status.INVALID_MODEL,
        "net-6": Status.UNSUPPORTED_OP,
    }
    assert told["device"]["calibrated"] is False


def test_modules_equal_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = list(torch_modules.families(1, np.random.default_rng(0)))
    monkeypatch.setattr(torch_modules, "families", lambda count, rng: iter(few))
    told = benchmark.modules(quick=True)["networks"]
    assert {row["family"] for row in told} == {"FBNet-like", "MobileNet-like", "user modules"}
    assert {row["exporter"] for row in told} == {"fx", "legacy"}
    assert max(row["off"] for row in told) < 1e-4
