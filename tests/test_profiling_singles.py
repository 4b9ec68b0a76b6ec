"""Networks too fast to be timed run by run: a latency is made of loops, descriptions of its runs of single ones."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas import resources
from hwnas.comparison import time_models
from hwnas.core.device import Device
from hwnas.profiling.bench import Bench, Candidate
from hwnas.profiling.cache import ResultCache, result_key
from hwnas.profiling.profiler import Profiler
from hwnas.profiling.protocol import Protocol
from hwnas.profiling.record import Record, single_runs
from hwnas.profiling.runs import Runs
from hwnas.profiling.worker.clock import sample
from hwnas.report import timings as report
from hwnas.testing.profiling import DirectTransport, SessionConfig, write_relu

TRUTH = 0.02  # ms: a sample of 0.2 ms is a loop of ten
TAILED: dict[str, Any] = {"truth.*": TRUTH, "seed": 1, "tail": 0.15, "jitter": 0.01}
STEADY = Protocol("steady", rounds=40, most_rounds=40, resamples=50, within=0.9)
WALL, CPU, DEVICE, SWITCHES, LOOPS = 1, 2, 4, 5, 7


def measured(
    folder: Path, options: dict[str, Any], transport: DirectTransport | None = None
) -> tuple[Record, np.ndarray]:
    """A network's record and raw samples."""
    transport = transport or DirectTransport()
    references = {"reference": write_relu(folder / "reference.onnx")}
    config = SessionConfig("fake", options=options)
    with closing(Bench(transport, config, STEADY, references=references, clock=transport.clock)) as bench:
        (record,) = bench.measure([Candidate("net", write_relu(folder / "net.onnx"))])
        return record, bench.samples["net"]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_tail_that_loops_hide_is_told(tmp_path: Path, share: float) -> None:
    """By the wall clock and by a device's own."""
    record, samples = measured(tmp_path, TAILED | ({"device_share": share} if share else {}))
    latency, factor, column = record.latency, share or 1.0, DEVICE if share else WALL
    assert latency is not None
    assert record.sampling is not None
    assert record.sampling.loops >= 10
    loops = samples[samples[:, LOOPS] == record.sampling.loops]
    singles = single_runs(samples)
    assert len(loops) + len(singles) == len(samples)
    assert (len(loops), len(singles)) == (40 * STEADY.samples[1], 40 * STEADY.singles)
    # one run in seven takes one to several times as long more; the mean of ten or more hardly ever does
    told = latency.own_spread
    assert told.samples == len(singles)
    assert told.p95 == pytest.approx(1e-6 * np.quantile(singles[:, column], 0.95))
    assert told.p95 > 2 * factor * TRUTH
    assert told.p95 > 1.2e-6 * np.quantile(loops[:, column], 0.95)
    assert told.cov > 2 * loops[:, column].std() / loops[:, column].mean()
    assert told.median == pytest.approx(factor * TRUTH, rel=0.05)
    assert latency.device_time == (told.median if share else None)
    runs = Runs.of(record)
    assert runs is not None
    assert (runs.median, runs.p95) == (told.median, told.p95)


def test_a_latency_is_made_of_loops_alone(tmp_path: Path) -> None:
    """Whatever single runs show, the figure, its CPU time and its flags stay what loops say."""

    class Odd(DirectTransport):
        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            reply = super().call(request, timeout=timeout)
            for name, rows in reply.get("samples", {}).items():
                first = next(k for of, _, k, _ in request["visits"] if of == name)
                assert len(rows) == first + STEADY.singles
                for row in rows[first:]:
                    row[0], row[1], row[4] = row[0] / 3, row[1] / 3, 1 if self.singles else 0
                for row in rows[:first]:
                    row[4] = 0 if self.singles else 1
            return reply

        singles = True

    plain, _ = measured(tmp_path, TAILED)
    odd, samples = measured(tmp_path, TAILED, Odd())
    assert plain.latency is not None
    assert odd.latency is not None
    assert odd.latency.value == plain.latency.value
    assert odd.latency.cpu_time == plain.latency.cpu_time
    assert odd.latency.spread.median == pytest.approx(plain.latency.spread.median / 3)
    assert "preempted" not in odd.flags
    assert single_runs(samples)[:, SWITCHES].all()
    interrupted = Odd()
    interrupted.singles = False
    assert "preempted" in measured(tmp_path, TAILED, interrupted)[0].flags


def test_a_slower_network_is_timed_run_by_run(tmp_path: Path) -> None:
    record, samples = measured(tmp_path, TAILED | {"truth.*": 0.5})
    assert record.sampling is not None
    assert record.latency is not None
    assert record.sampling.loops == 1
    assert (samples[:, LOOPS] == 1).all()
    assert record.latency.spread.samples == len(samples) == 40 * 8


def test_a_worker_of_an_older_version_is_asked_what_it_knows(tmp_path: Path) -> None:
    asked: list[Any] = []

    class Watched(DirectTransport):
        def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
            asked.extend(request.get("visits", ()))
            return super().call(request, timeout=timeout)

    measured(tmp_path, TAILED, Watched())
    assert {len(visit) for visit in asked} == {4}  # id, untimed, k, loops: since the first version
    assert {loops == 1 for *_, loops in asked} == {True, False}


@pytest.mark.parametrize(("truth", "told"), [(0.02, False), (0.5, True)])
def test_records_that_may_describe_loops_are_read_and_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: float, told: bool
) -> None:
    """As an earlier version has kept them: in the cache, in a run's notes and certificates."""
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    options = {"truth.*": truth, "seed": 1}
    known = (("fake",), ("fp32",), ("latency_ms",))
    device = Device("dry", "a dry run", "cpu", *known, "simulated", host="local", options=options)
    candidate = Candidate("net", write_relu(tmp_path / "net.onnx"), graph_hash="a" * 64)
    with Profiler(device, transport=DirectTransport) as profiler:
        (record,) = profiler.measure([candidate], STEADY)
        key = result_key(candidate.graph_hash, profiler.config, profiler.fingerprint)
    kept = json.loads(json.dumps({**record.to_json(), "version": 1}))
    del kept["sampling"]["loops"]
    del kept["setup"]["protocol"]["singles"]
    old = Record.from_json(kept)
    assert old.latency == record.latency
    assert old.to_json()["version"] == 1
    assert (Runs.of(old) == Runs.of(record)) == told
    assert (Runs.of(old) is None) != told
    with closing(ResultCache(resources.user_cache() / "measurements.sqlite")) as cache:
        cache.put([(key, STEADY.rank, kept)])
    with Profiler(device, transport=DirectTransport) as profiler:
        (again,) = profiler.measure([candidate], STEADY)
    assert ("cached" in again.flags) == told
    assert again.status.has_value
    with pytest.raises(ValueError, match="version"):
        Record.from_json({**kept, "version": 3})


def test_reading_the_clock_costs_a_run_of_20_us_less_than_two_per_cent() -> None:
    empty = min(sample(lambda n: None, 1).wall_ns for _ in range(500))
    assert empty < 0.02 * 20_000


def test_a_protocol_times_at_least_one_single_run() -> None:
    with pytest.raises(ValueError, match="singles >= 1"):
        replace(STEADY, singles=0)


def test_the_table_says_what_is_of_loops(tmp_path: Path) -> None:
    path = write_relu(tmp_path / "net.onnx")
    known = (("fake",), ("fp32",), ("latency_ms",))
    for truth, looped in ((TRUTH, True), (0.5, False)):
        device = Device("dry", "a dry run", "cpu", *known, "", host="local", options=TAILED | {"truth.*": truth})
        found = time_models([path], [device], STEADY, cached=False, transport=DirectTransport)
        (timing,) = found.timings
        latency = timing.record.latency
        assert latency is not None
        cells = dict(zip(report._COLUMNS, report.cells(found, timing), strict=True))
        assert float(cells["p95"]) == pytest.approx(latency.spread.p95, rel=0.01)
        assert any("of loops" in line for line in report.notes(found)) == looped
        assert ("of loops" in report.picture(found).axes[0].get_title("left")) == looped
