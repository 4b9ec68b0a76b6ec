"""Figures by a device's own events and figures by wall time are told apart, in records, JSON, tables and pages."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hwnas.comparison import Timings, time_models
from hwnas.core.architecture import Architecture
from hwnas.core.device import Device
from hwnas.core.measurement import Status
from hwnas.evaluators.meter import SpaceMeter
from hwnas.profiling.backend import SessionConfig, clock_of
from hwnas.profiling.bench import Candidate
from hwnas.profiling.profiler import Profiler
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import Record
from hwnas.report import timings as report
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.profiling import DirectTransport, simulated_bench, write_relu

BRIEF = Protocol("brief", rounds=6, most_rounds=6, resamples=50, within=0.9)
WALL: dict[str, Any] = {"truth.*": 2.0, "seed": 1, "tail": 0.1}
EVENTS = WALL | {"device_share": 0.5}


def device(name: str, options: dict[str, Any]) -> Device:
    known = (("fake",), ("fp32",), ("latency_ms",))
    return Device(name, "a dry run", "gpu", *known, "simulated", host="local", options=options)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))


def measured(folder: Path, options: dict[str, Any], protocol: Protocol = BRIEF) -> Record:
    references = {"reference": write_relu(folder / "reference.onnx")}
    with closing(simulated_bench(options=options, protocol=protocol, references=references)) as bench:
        (record,) = bench.measure([Candidate("net", write_relu(folder / "net.onnx"))])
    return record


def timed(folder: Path, **devices: dict[str, Any]) -> Timings:
    paths = [write_relu(folder / "a.onnx"), write_relu(folder / "b.onnx", (2, 4))]
    asked = [device(name, options) for name, options in devices.items()]
    return time_models(paths, asked, BRIEF, cached=False, transport=DirectTransport)


def test_a_record_has_both_sets_of_figures_and_says_which_the_latency_is(tmp_path: Path) -> None:
    latency = measured(tmp_path, EVENTS).latency
    assert latency is not None
    assert latency.device_spread is not None
    assert latency.clock == "device"
    assert latency.value == pytest.approx(1.0, rel=0.1)
    assert latency.device_spread.median == latency.device_time == pytest.approx(1.0, rel=0.1)
    assert latency.spread.median == pytest.approx(2.0, rel=0.1)
    assert latency.own_spread.p95 == pytest.approx(latency.spread.p95 / 2)


def test_without_events_there_is_one_set(tmp_path: Path) -> None:
    latency = measured(tmp_path, WALL).latency
    assert latency is not None
    assert (latency.clock, latency.device_time, latency.device_spread) == ("wall", None, None)
    assert latency.own_spread is latency.spread


def test_records_survive_json_and_none_is_read_with_an_unlabelled_device_time(tmp_path: Path) -> None:
    record = measured(tmp_path, EVENTS)
    told = json.loads(json.dumps(record.to_json()))
    assert Record.from_json(told).latency == record.latency
    assert told["latency"]["clock"] == "device"
    for name in ("clock", "device_spread"):  # as written before they were told apart
        del told["latency"][name]
    with pytest.raises(ValueError, match="clock"):
        Record.from_json(told)


def test_a_device_that_tells_its_time_now_and_then_is_no_clock(tmp_path: Path) -> None:
    class Fitful(DirectTransport):
        rounds = 0

        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            reply = super().call(request, timeout=timeout)
            if request["op"] == "round":
                self.rounds += 1
                if self.rounds == 3 and "net" in reply["samples"]:
                    reply["samples"]["net"] = [[*row[:3], None, *row[4:]] for row in reply["samples"]["net"]]
            return reply

    from hwnas.profiling.bench import Bench

    transport = Fitful()
    references = {"reference": write_relu(tmp_path / "reference.onnx")}
    config = SessionConfig("fake", options=EVENTS)
    with closing(Bench(transport, config, BRIEF, references=references, clock=transport.clock)) as bench:
        (record,) = bench.measure([Candidate("net", write_relu(tmp_path / "net.onnx"))])
    assert (record.status, record.latency) == (Status.CRASHED, None)
    assert "some inferences only" in record.message


def test_the_table_compares_like_with_like_and_shows_wall_time_apart(tmp_path: Path) -> None:
    found = timed(tmp_path, gpu=EVENTS)
    for timing in found.timings:
        cells = dict(zip(report._COLUMNS, report.cells(found, timing), strict=True))
        assert cells["clock"] == "device"
        assert float(cells["median"]) == pytest.approx(1.0, rel=0.1)
        latency = timing.record.latency
        assert latency is not None
        assert float(cells["p95"]) == pytest.approx(latency.spread.p95 / 2, rel=0.01)
        assert float(cells["host"]) == pytest.approx(2.0, rel=0.1)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table(found))
    (heads,) = [line for line in console.export_text().splitlines() if "latency" in line and "median" in line][:1]
    assert "latency [ms]" in heads
    assert "clock" in heads
    assert any("by the device's own events" in line and "wall time" in line for line in report.notes(found))
    assert "clock: device" in report.picture(found).axes[0].get_xlabel()
    assert "<td>device</td>" in report.page(found)
    assert found.to_json()["devices"]["gpu"]["clock"] == "device"


def test_wall_time_alone_needs_no_words(tmp_path: Path) -> None:
    found = timed(tmp_path, cpu=WALL)
    assert all(report.cells(found, timing)[report._COLUMNS.index("host")] == "-" for timing in found.timings)
    assert not any("events" in line for line in report.notes(found))
    assert report.picture(found).axes[0].get_xlabel() == "latency [ms]"


def test_two_clocks_are_not_compared_without_a_word(tmp_path: Path) -> None:
    found = timed(tmp_path, cpu=WALL, gpu=EVENTS)
    told = {p["first"]["on"] + p["second"]["on"]: p for p in found.to_json()["comparisons"]}
    assert told["cpugpu"]["clocks"] == ["wall", "device"]
    assert "the other by wall time" in told["cpugpu"]["text"]
    assert "wall time" not in told["cpucpu"]["text"] + told["gpugpu"]["text"]


@pytest.mark.parametrize(("options", "clock"), [(WALL, "wall"), (EVENTS, "device")])
def test_what_a_search_stores_says_its_clock(tmp_path: Path, options: dict[str, Any], clock: str) -> None:
    profiler = Profiler(device("gpu", options), cached=False, transport=DirectTransport)
    with closing(SpaceMeter(NasBench201(), "cifar10", profiler, careful="quick")) as meter:
        (rows,) = meter.measure([Architecture("nb201", (3, 1, 2, 0, 4, 3))])
        assert meter.summary()["clock"] == clock == clock_of(profiler.config)
    context = rows["latency_ms"].context
    assert context.fidelity is not None
    assert ("events" in context.fidelity) == (clock == "device")


class TestEngines:
    """Runtimes that build engines, no two of which are alike."""

    three = replace(BRIEF, name="final", processes=3)

    def test_each_process_measures_an_engine_of_its_own_and_their_spread_is_told(self, tmp_path: Path) -> None:
        latency = measured(tmp_path, WALL | {"engine": 0.1}, self.three).latency
        assert latency is not None
        assert latency.engine_spread is not None
        assert len(set(latency.engines)) == 3
        assert latency.engine_spread > 0.02  # of seed 1
        assert min(latency.engines) < latency.value < max(latency.engines)
        alike = measured(tmp_path, WALL, self.three).latency
        assert alike is not None  # what builds differ by is in the interval
        assert latency.high / latency.low > 1 + latency.engine_spread / 2 > alike.high / alike.low

    def test_where_nothing_is_built_nothing_is_told(self, tmp_path: Path) -> None:
        latency = measured(tmp_path, WALL, self.three).latency
        assert latency is not None
        assert (latency.engines, latency.engine_spread) == ((), None)

    def test_one_process_tells_of_no_spread(self, tmp_path: Path) -> None:
        latency = measured(tmp_path, WALL | {"engine": 0.1}).latency
        assert latency is not None
        assert latency.engines == ()

    def test_the_output_says_what_building_again_changes(self, tmp_path: Path) -> None:
        found = time_models(
            [write_relu(tmp_path / "a.onnx")],
            [device("gpu", WALL | {"engine": 0.1})],
            self.three,
            cached=False,
            transport=DirectTransport,
        )
        (line,) = [line for line in report.notes(found) if "engines" in line]
        assert line.startswith("a.onnx: 3 engines were built")
