"""A whole search on ONNX Runtime's CPU provider: what it shows, keeps and reports about its measurements."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hwnas import api, report
from hwnas.core.architecture import Architecture
from hwnas.core.measurement import Context, Measurement, Source
from hwnas.core.objective import Constraint
from hwnas.core.state import Evaluation
from hwnas.evaluators.measured import FileTiming
from hwnas.finals import Finals, check_exported
from hwnas.profiling.protocol import PROTOCOLS
from hwnas.profiling.runs import FLAGS, Runs
from hwnas.progress import Measuring, Progress
from hwnas.report import html


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[api.SearchResult, list[tuple[str, int, int, str]]]:
    """A finished search, and what it said while it measured."""
    folder = tmp_path_factory.mktemp("measured")
    told: list[tuple[str, int, int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWNAS_CACHE", str(folder / "cache"))
        patch.delenv("HWNAS_TABLES", raising=False)
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        brief = replace(PROTOCOLS["final"], rounds=6, most_rounds=6)
        patch.setitem(PROTOCOLS, "final", brief)
        given = {
            "devices": ["cpu"],
            "budgets": {"latency": "1s"},
            "objectives": ["error", "latency", "peak_memory"],
            "queries": 4,
            "generator": "random",
            "preset": "quick",
            "source": "surrogate",
        }
        opened = api.open_run(given, out=folder / "run")
        result = opened.finish(on_measure=lambda *words: told.append(words))
    return result, told


def test_the_front_is_measured_with_care(run: tuple[api.SearchResult, object]) -> None:
    result, _ = run
    assert result.best is not None
    for found in result.front:
        row = found.evaluation.find("latency_ms", "cpu")
        assert row is not None
        assert row.context.source is Source.MEASURED
        assert str(row.context.fidelity).startswith("protocol final")
        assert row.interval is not None


def test_what_is_measured_is_said_with_its_round(run: tuple[object, list[tuple[str, int, int, str]]]) -> None:
    _, told = run
    assert {device for device, *_ in told} == {"cpu"}
    texts = [text for *_, text in told]
    assert any(text.startswith("loading network 1 of ") for text in texts)
    assert any(text.startswith("round 3 of at most 10, ") for text in texts)
    assert any(text.startswith("final measurements: process 3 of 3, round ") for text in texts)
    assert all(0 <= done <= total for _, done, total, _ in told)


def test_raw_samples_are_kept_and_found_by_architecture(run: tuple[api.SearchResult, object]) -> None:
    result, _ = run
    assert result.folder is not None
    samples = np.load(result.folder / "samples" / "cpu-1.npz")
    networks = json.loads((result.folder / "measurements.json").read_text())["devices"]["cpu"]["networks"]
    assert set(networks) == {found.architecture.key for found in result.archive}
    for name in networks.values():
        table = samples[f"quick/{name}"]
        assert table.shape[1] == 8
        assert (table[:, 1] > 0).all()
        assert (table[:, 7] >= 1).all()
    careful = samples[f"final/{networks[result.front[0].architecture.key]}"]
    assert np.sum(np.diff(careful[:, 0]) < 0) == 2  # three processes, one behind the other
    for path in (result.folder / "models").glob("*.onnx"):
        assert len(samples[f"final/exported/{path.stem}"]) > 0


def test_every_exported_model_is_timed_from_its_file_and_its_certificate_says_so(
    run: tuple[api.SearchResult, list[tuple[str, int, int, str]]],
) -> None:
    result, told = run
    assert result.folder is not None
    files = sorted((result.folder / "models").glob("*.onnx"))
    assert len(files) == len(result.front) > 1
    assert set(result.finals.exported) == {path.name for path in files}
    for path in files:
        certificate = json.loads(path.with_suffix(".certificate.json").read_text())["cpu"]
        exported = certificate["exported"]
        assert exported == result.finals.exported[path.name]["cpu"]
        assert exported["file"] == path.name
        assert exported["fidelity"].startswith("protocol final")
        assert 0 < exported["low"] <= exported["latency_ms"] <= exported["high"] < 1000
        assert exported["kept"]
        assert certificate["latency"]["value"] != exported["latency_ms"]  # a measurement of its own
    (recommended,) = result.finals.checked.values()
    assert recommended == result.finals.exported[recommended["file"]]["cpu"]
    (note,) = [note for note in result.finals.notes if note.startswith("All ")]
    assert note.startswith(f"All {len(files)} exported models were timed from their files on cpu: ")
    assert any(text.startswith("exported models: process 1 of 3, round ") for *_, text in told)
    again = api.load(result.folder).finals
    assert (again.exported, again.notes) == (result.finals.exported, result.finals.notes)


def test_reports_tell_noise_floor_and_retests(run: tuple[api.SearchResult, object]) -> None:
    result, _ = run
    assert result.folder is not None
    told = json.loads((result.folder / "front.json").read_text())["measured"]["cpu"]
    assert told["runtime"] == "ort-cpu"
    assert (told["noise_floor"], told["calibrated"]) == (0.025, False)
    assert {"retest_tau", "retest_rel", "retest_pairs"} <= told.keys()
    assert told == api.load(result.folder).to_json()["measured"]["cpu"]
    page = html(result.view)
    assert "Measured on cpu" in page
    assert "noise_floor" in page
    assert "±" in page


def test_how_the_single_runs_went_comes_with_the_result_and_again_from_its_directory(
    run: tuple[api.SearchResult, object],
) -> None:
    result, _ = run
    assert result.folder is not None
    samples = np.load(result.folder / "samples" / "cpu-1.npz")
    again = api.load(result.folder)
    told = json.loads((result.folder / "front.json").read_text())
    assert [entry["key"] for entry in told["front"]] == [found.architecture.key for found in result.front]
    for found, loaded, entry in zip(result.front, again.front, told["front"], strict=True):
        runs = found.runs["cpu"]
        table = samples[f"final/{result.finals.devices['cpu']['networks'][found.architecture.key]}"]
        walls = table[table[:, 7] == 1, 1] * 1e-6  # of single runs
        level = result.finals.certificates[found.architecture.key]["cpu"]["latency"]["level"]
        assert runs.median == pytest.approx(np.median(walls) * math.exp(-level))
        assert runs.p95 == pytest.approx(np.quantile(walls, 0.95) * math.exp(-level))
        assert loaded.runs == found.runs
        assert entry["runs"]["cpu"] == {**runs.to_json(), "above_budget": []}
        assert set(runs.flags) <= told["flags"].keys() <= FLAGS.keys()
    assert json.loads(json.dumps(again.to_json()["front"])) == told["front"]
    assert report.sentences(again.view) == report.sentences(result.view)
    assert "within the budget as well" in " ".join(report.sentences(result.view))
    for timed in result.finals.exported.values():
        assert 0 < timed["cpu"]["runs"]["median"] <= timed["cpu"]["runs"]["p95"]


def test_the_runner_up_is_measured_with_care_and_what_was_paid_after_the_search_is_counted(
    run: tuple[api.SearchResult, object],
) -> None:
    result, _ = run
    assert result.folder is not None
    assert result.view.runner_up is not None
    second = result.view.state.archive[result.view.runner_up].find("latency_ms", "cpu")
    assert second is not None
    assert str(second.context.fidelity).startswith("protocol final")
    assert result.view.runs[second.architecture.key, "cpu"]
    ledger = api.load(result.folder).ledger
    assert ledger == result.ledger
    careful = sum("final" in str(row.context.fidelity) for e in result.state.archive for row in e.measurements[1:2])
    assert ledger.final_measurements == careful >= len(result.front)
    assert ledger.file_timings == len(result.front)
    assert min(ledger.final_wall_s, ledger.file_wall_s) > 0


def test_each_device_measures_its_own_front_with_care_and_the_network_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PROTOCOLS, "final", replace(PROTOCOLS["final"], rounds=6, most_rounds=6))
    given = {
        "devices": "cpu,openvino",
        "budgets": {"latency": "1s"},
        "queries": 4,
        "generator": "random",
        "preset": "quick",
        "source": "surrogate",
    }
    result = api.open_run(given, out=tmp_path / "run").finish(models="best")
    assert list(result.fronts) == ["cpu", "openvino"]
    assert result.portfolio is not None
    for device, own in result.fronts.items():
        assert own.best is not None
        for found in (*own.front, result.portfolio.network):
            row = found.evaluation.find("latency_ms", device)
            assert row is not None
            assert str(row.context.fidelity).startswith("protocol final")
            assert device in result.finals.certificates[found.architecture.key]
        assert result.finals.devices[device]["not_final"] == []
        checked = result.finals.checked[device]
        assert own.best.architecture.key.replace(":", "-") in checked["file"]
        again = api.load(tmp_path / "run").fronts[device].best
        assert again is not None
        assert again.arch == own.best.arch
    for_all = [name for name in result.finals.checked if name.endswith(", for all")]
    own_best = {device: own.best for device, own in result.fronts.items()}
    assert for_all == [
        f"{device}, for all"
        for device, best in own_best.items()
        if best is not None and best.architecture != result.portfolio.network.architecture
    ]


def test_a_search_that_is_stopped_keeps_its_samples_and_tells_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    given = {
        "devices": ["cpu"],
        "queries": 4,
        "batch": 1,
        "generator": "random",
        "preset": "quick",
        "source": "surrogate",
    }

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.open_run(given, out=tmp_path / "run").finish(on_step=stop)
    (network,) = api.load(tmp_path / "run").front
    assert 0 < network.runs["cpu"].median <= network.runs["cpu"].p95
    assert len(np.load(tmp_path / "run" / "samples" / "cpu-1.npz").files) == 1


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("hwnas.progress.time.monotonic", lambda: float(next(clock)))
    text = io.StringIO()
    with Measuring(Console(file=text, width=200), shown=True) as progress:
        for i in range(6):
            progress.on_device("cpu", i, 9, f"round {i} [of many]")
        progress.on_device("cpu", 9, 9, "")
    lines = text.getvalue().splitlines()
    assert 1 <= len(lines) <= 3
    assert all(re.match(r"cpu:  \d+ %  round \d \[of many\]$", line) for line in lines)


def test_where_nobody_can_say_how_much_there_is_no_share_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.progress._PLAIN_EVERY_S", 0.0)
    text = io.StringIO()
    with Measuring(Console(file=text, width=200), shown=True) as progress:
        progress.on_device("cpu", 0, 0, "round 1 of at most 10, reference networks")
        progress.on_device("cpu", 1.5, 6, "round 2 of at most 10, 4 of 6 networks left")
    assert text.getvalue().splitlines() == [
        "cpu:  round 1 of at most 10, reference networks",
        "cpu:  25 %  round 2 of at most 10, 4 of 6 networks left",
    ]


def test_nothing_is_shown_where_nothing_shall_be() -> None:
    text = io.StringIO()
    for kind in (Measuring, Progress):
        with kind(Console(file=text), shown=False) as progress:
            progress.on_device("cpu", 1, 2, "round 1")
    assert text.getvalue() == ""


@pytest.mark.parametrize(
    ("timed", "contradicts"), [(FileTiming(1.2, 1.15, 1.25), True), (FileTiming(1.04, 1.0, 1.08), False)]
)
def test_a_file_that_contradicts_the_front_is_said(timed: FileTiming, contradicts: bool) -> None:
    architecture = Architecture("toy", (0, 0, 0, 0))
    context = Context(Source.MEASURED, device="box")
    row = Measurement(architecture, "latency_ms", 1.0, context, interval=(0.97, 1.03))
    meter = SimpleNamespace(measure_files=lambda paths: [timed for _ in paths], context=lambda metric, final: context)
    assembly: Any = SimpleNamespace(
        measured=(SimpleNamespace(device="box", meter=meter),), objectives=(), constraints=()
    )
    found = check_exported(assembly, {Path("net.onnx"): Evaluation(architecture, (row,))})
    told = found["net.onnx"]["box"]
    assert told["latency_ms"] == timed.value
    assert told["agrees"] is not contradicts
    assert ("the intervals do not meet" in told["message"]) is contradicts


@pytest.mark.parametrize(("slower", "kept"), [(0.0, True), (0.06, False), (-0.06, True), (-0.2, False)])
def test_a_budget_is_kept_at_the_pace_of_now_and_at_that_of_the_front(slower: float, kept: bool) -> None:
    architecture, context = Architecture("toy", (0, 0, 0, 0)), Context(Source.MEASURED, device="box")
    row = Measurement(architecture, "latency_ms", 1.0, context, interval=(0.97, 1.03))
    levelled = FileTiming(1.0, 0.95, 1.2 if slower == -0.2 else 1.08, slower)
    meter = SimpleNamespace(measure_files=lambda paths: [levelled], context=lambda metric, final: context)
    budget = Constraint("latency_ms", 1.1, "box")
    assembly: Any = SimpleNamespace(
        measured=(SimpleNamespace(device="box", meter=meter),), objectives=(), constraints=(budget,)
    )
    told = check_exported(assembly, {Path("net.onnx"): Evaluation(architecture, (row,))})["net.onnx"]["box"]
    assert told["latency_ms"] == pytest.approx(math.exp(slower))  # what the clock shows
    assert told["agrees"]  # the file is as fast as its network; it is the machine that is not
    assert told["kept"] is kept
    assert ("NOT certainly within the budget" in told["message"]) is not kept
    assert f"{abs(math.expm1(slower)):.0%} {'slower' if slower > 0 else 'faster'} now" in told["message"] or not slower


def test_of_a_file_it_is_said_where_its_runs_were_above_the_budget() -> None:
    architecture = Architecture("toy", (0, 0, 0, 0))
    context = Context(Source.MEASURED, device="box")
    timed = FileTiming(1.0, 0.95, 1.05, 0.0, Runs(2.41, 3.1, ("busy",)))
    meter = SimpleNamespace(measure_files=lambda paths: [timed], context=lambda metric, final: context)
    budget = Constraint("latency_ms", 2.0, "box")
    assembly: Any = SimpleNamespace(
        measured=(SimpleNamespace(device="box", meter=meter),), objectives=(), constraints=(budget,)
    )
    told = check_exported(assembly, {Path("net.onnx"): Evaluation(architecture, ())})["net.onnx"]["box"]
    assert told["kept"]
    assert told["runs"] == {"median": 2.41, "p95": 3.1, "flags": ["busy"], "above_budget": ["median", "p95"]}
    assert told["message"].endswith(
        "within the budget of 2.000 ms (the median of its runs was 2.410 ms and their 95th percentile 3.100 ms, above "
        f"it); flags: busy ({FLAGS['busy']})."
    )


@pytest.mark.parametrize(
    ("beside", "kept", "said"),
    [
        ((0.5, 0.45, 0.55), True, "CPU time 0.500 ms (0.450 ms to 0.550 ms), within the budget of 0.600 ms"),
        ((0.58, 0.5, 0.65), False, "CPU time 0.580 ms (0.500 ms to 0.650 ms), NOT certainly within the budget"),
        ("the clock is broken", False, "no CPU time of the file (the clock is broken), so its budget may NOT be kept"),
    ],
)
def test_a_budget_of_cpu_time_is_held_against_that_of_the_file(beside: Any, kept: bool, said: str) -> None:
    architecture, context = Architecture("toy", (0, 0, 0, 0)), Context(Source.MEASURED, device="box")
    row = Measurement(architecture, "cpu_time_ms", 0.5, context, interval=(0.47, 0.53))
    timed = FileTiming(9.0, 8.0, 10.0, beside={"cpu_time_ms": beside})
    meter = SimpleNamespace(measure_files=lambda paths: [timed], context=lambda metric, final: context)
    budget = Constraint("cpu_time_ms", 0.6, "box")
    box = SimpleNamespace(device="box", meter=meter)
    assembly: Any = SimpleNamespace(measured=(box,), objectives=(), constraints=(budget,))
    told = check_exported(assembly, {Path("net.onnx"): Evaluation(architecture, (row,))})["net.onnx"]["box"]
    assert (told["kept"], said in told["message"]) == (kept, True)
    assert told["agrees"] is (None if isinstance(beside, str) else True)  # latency is not among what the run knows
    assert told["beside"] == (
        {} if isinstance(beside, str) else {"cpu_time_ms": {"value": beside[0], "low": beside[1], "high": beside[2]}}
    )
    assert bool(Finals(checked={"box": told}).broken) is not kept


def test_of_a_front_that_misses_its_budget_the_files_are_named() -> None:
    context = Context(Source.MEASURED, device="box")
    budget = Constraint("latency_ms", 1.1, "box")
    timed: list[Any] = [FileTiming(1.0, 0.9, 1.05, runs=Runs(1.02, 1.08)), FileTiming(1.0, 0.9, 1.2), "oom: too large"]
    timed += [FileTiming(1.0, 0.9, 1.05, runs=Runs(median, 1.3)) for median in (1.0, 1.2)]
    meter = SimpleNamespace(measure_files=lambda paths: timed, context=lambda metric, final: context)
    assembly: Any = SimpleNamespace(
        measured=(SimpleNamespace(device="box", meter=meter),), objectives=(), constraints=(budget,)
    )
    files = {}
    for i in range(5):
        architecture = Architecture("toy", (i % 4, i // 4, 0, 0))
        row = Measurement(architecture, "latency_ms", 1.0, context, interval=(0.97, 1.03))
        files[Path(f"{i}.onnx")] = Evaluation(architecture, (row,))
    found = Finals(devices={"box": {}}, exported=check_exported(assembly, files))
    assert [told["box"]["kept"] for told in found.exported.values()] == [True, False, False, True, True]
    free: Any = SimpleNamespace(measured=assembly.measured, objectives=(), constraints=())
    assert all(told["box"]["kept"] for told in check_exported(free, files).values())  # there is no budget to miss
    assert found._files_note("box") == (
        "4 of 5 exported models were timed from their files on box: 4 agree with the front; without a "
        "figure or not certainly within the budget: 1.onnx, 2.onnx; within the budget, but with single runs above it: "
        "3.onnx (95th percentile), 4.onnx (median and 95th percentile)."
    )
