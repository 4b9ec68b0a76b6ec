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
