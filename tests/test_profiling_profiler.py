"""A device ready to measure: its lock, calibration and cache; a space's networks on it; the promise of a budget.

On the simulated device, in this process, so that what comes out is known.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from hwnas import api, finals, resources
from hwnas.assembly import assemble
from hwnas.cli import app
from hwnas.config import SearchConfig
from hwnas.core.architecture import Architecture
from hwnas.core.device import Device
from hwnas.core.measurement import Source, Status
from hwnas.devices import load_device
from hwnas.errors import DataError, DeviceBusy, DeviceUnavailable, InvalidSetting, RunIncompatible
from hwnas.evaluators.meter import SpaceMeter
from hwnas.finals import Finals
from hwnas.locking import Held, SharedLock, lock_file
from hwnas.onnx_facts import model_facts
from hwnas.profiling import host
from hwnas.profiling.bench import DEFAULT_SIGMA, Candidate
from hwnas.profiling.cache import ResultCache, result_key
from hwnas.profiling.profiler import Profiler, calibration_file, choose_runtime, session_config, write_calibration
from hwnas.profiling.protocol import PROTOCOLS, Protocol
from hwnas.spaces.nb201 import NasBench201
from hwnas.testing.profiling import DirectTransport, write_cell

BOX = Device(
    name="box",
    title="A simulated box",
    kind="cpu",
    runtimes=("fake",),
    precisions=("fp32",),
    metrics=("latency_ms", "cpu_time_ms", "peak_memory_mib"),
    measured_how="Simulated.",
    host="local",
    options={"seed": 0},
)
HASTY = Protocol("hasty", rank=0, rounds=5, most_rounds=5, resamples=50, within=0.5)
CAREFUL = replace(HASTY, name="careful", rank=2, rounds=8, most_rounds=8)
CELLS = {"a": (3, 3, 1, 3, 2, 3), "b": (0, 1, 0, 2, 0, 1), "c": (3, 2, 3, 2, 3, 2)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HWNAS_LOCKS", str(tmp_path / "locks"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path) -> list[Candidate]:
    made = []
    for name, code in CELLS.items():
        path = write_cell(tmp_path / f"{name}.onnx", code)
        facts = model_facts(path)
        made.append(Candidate(name, path, facts.graph_hash, facts.to_json()))
    return made


class Counting(DirectTransport):
    """Counts what the worker was asked to load."""

    loads = 0

    def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
        if request["op"] == "load" and not request["id"].startswith("reference"):
            type(self).loads += 1
        return super().call(request, timeout=timeout)


@pytest.fixture(autouse=True)
def nothing_loaded() -> None:
    Counting.loads = 0


def profiler(device: Device = BOX, *, name: str = "direct", **settings: Any) -> Profiler:
    return Profiler(device, transport=lambda: Counting(name=name), **settings)


def measured(device: Profiler, files: list[Candidate], protocol: Protocol = HASTY) -> dict[str, Any]:
    with device:
        return {record.subject.id: record for record in device.measure(files, protocol)}


# -- what is simulated -----------------------------------------------------------------------------------------------


def test_a_seed_repeats_in_workers_of_their_own_and_their_sessions_differ(files: list[Candidate]) -> None:
    unsteady = replace(BOX, options={"seed": 0, "session": 0.1})
    twice = replace(HASTY, processes=2)

    def figures(device: Device, protocol: Protocol = HASTY) -> list[float]:
        with Profiler(device, cached=False) as box:  # real processes
            return [record.latency.value for record in box.measure(files, protocol) if record.latency is not None]

    assert figures(unsteady, twice) == figures(unsteady, twice)
    assert figures(unsteady, twice) != figures(unsteady)  # the mean of two processes, which are not alike
    assert figures(replace(unsteady, options={"seed": 1, "session": 0.1})) != figures(unsteady)
    with Profiler(unsteady, cached=False) as box:
        sigmas = [box.calibrate(files, HASTY, 3) for _ in range(2)]
    assert sigmas[0] == sigmas[1] > DEFAULT_SIGMA


# -- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(files: list[Candidate]) -> None:
    first = measured(profiler(), files)
    assert Counting.loads == 3
    second = measured(profiler(), files)
    assert Counting.loads == 3
    assert all("cached" in record.flags for record in second.values())
    assert not any("cached" in record.flags for record in first.values())
    for name, record in second.items():
        assert record.latency.value == pytest.approx(first[name].latency.value, rel=0.02)


@pytest.mark.parametrize(
    "other",
    [
        replace(BOX, threads=2),
        replace(BOX, precisions=("fp16",)),
        replace(BOX, options={"seed": 0, "overhead_ms": 1.0}),
    ],
    ids=["threads", "precision", "options"],
)
def test_another_way_to_run_is_another_measurement(files: list[Candidate], other: Device) -> None:
    measured(profiler(), files)
    assert not any("cached" in record.flags for record in measured(profiler(other), files).values())


def test_hwnas_own_defaults_are_part_of_what_a_figure_is(
    files: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another default is another measurement, a run that began with it is not continued, and a device file wins."""
    measured(profiler(), files)
    notes: list[Any] = []
    with profiler() as device:
        device.join([], notes.append, lambda name: None)
    monkeypatch.setattr("hwnas.profiling.profiler.DEFAULT_OPTIONS", {"fake": {"overhead_ms": 1.0, "seed": 7}})
    for record in measured(profiler(), files).values():
        assert "cached" not in record.flags
        assert record.setup.config["options"] == {"overhead_ms": 1.0, "seed": 0}
    told = r"options \{'seed': 0\}, now \{'overhead_ms': 1.0, 'seed': 0\}\. .*a default of hwnas is another now"
    with profiler() as device, pytest.raises(RunIncompatible, match=told):
        device.join(notes, notes.append, lambda name: None)
    plain = profiler(replace(BOX, options={"seed": 0, "overhead_ms": 0.0}))
    assert plain.config.options == {"overhead_ms": 0.0, "seed": 0}
    plain.close()


def test_figures_of_openvinos_threads_that_are_tied_answer_for_no_others() -> None:
    device = load_device("openvino")
    free, tied = (
        session_config(replace(device, options=options), "openvino") for options in ({}, {"ENABLE_CPU_PINNING": True})
    )
    earlier = replace(free, options={})  # what hwnas asked for when tied threads were the default
    assert len({result_key("g", config, "f") for config in (free, tied, earlier)}) == 3
    assert session_config(device, "ort-cpu").options == {}


def test_a_hasty_record_does_not_answer_a_careful_question_but_the_reverse(files: list[Candidate]) -> None:
    measured(profiler(), files[:1], HASTY)
    assert "cached" not in measured(profiler(), files[:1], CAREFUL)["a"].flags
    record = measured(profiler(), files[:1], HASTY)["a"]
    assert "cached" in record.flags
    assert record.sampling.rounds == CAREFUL.rounds


def test_a_network_of_the_same_structure_has_the_same_figure(files: list[Candidate], tmp_path: Path) -> None:
    measured(profiler(), files[:1])
    twin = replace(files[0], id="twin")
    record = measured(profiler(), [twin])["twin"]
    assert "cached" in record.flags
    assert record.subject.id == "twin"


def test_without_a_hash_or_a_cache_everything_is_measured(files: list[Candidate]) -> None:
    nameless = [replace(candidate, graph_hash="") for candidate in files]
    measured(profiler(), nameless)
    measured(profiler(), nameless)
    assert Counting.loads == 6
    measured(profiler(cached=False), files)
    measured(profiler(cached=False), files)
    assert Counting.loads == 12


def test_kept_figures_are_brought_to_todays_level(files: list[Candidate]) -> None:
    noisy = replace(BOX, options={"seed": 0, "level": 0.15})
    then = measured(profiler(noisy, name="monday"), files)
    with profiler(noisy, name="tuesday") as device:
        fresh = [replace(candidate, id=f"{candidate.id}-again", graph_hash="") for candidate in files]
        records = {record.subject.id: record for record in device.measure([*files, *fresh], HASTY)}
    shift = math.log(records["a-again"].latency.value / then["a"].latency.value)
    assert abs(shift) > 0.05  # the two days differ
    for name in CELLS:
        assert "cached" in records[name].flags
        assert records[name].latency.value == pytest.approx(records[f"{name}-again"].latency.value, rel=0.02)
        assert records[name].latency.low < records[name].latency.value < records[name].latency.high


def test_intervals_of_kept_figures_hold_the_truth_of_the_day(
    files: list[Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where processes differ in their pace, three of them tell today's level, and how badly."""
    several = replace(HASTY, name="several", processes=3)
    box = replace(BOX, options={"seed": 0, "level": 0.1, "session": 0.01, "truth.[abc]": 1.0})
    inside, pairs = [], []
    for day in range(15):
        monkeypatch.setenv("HWNAS_CACHE", str(tmp_path / f"day-{day}"))
        measured(profiler(box, name=f"then-{day}"), files, several)
        kept = [record.latency for record in measured(profiler(box, name=f"now-{day}"), files, several).values()]
        inside += [latency.low <= 1.0 <= latency.high for latency in kept]
        pairs += [abs(math.log(a.value / b.value)) <= math.hypot(a.apart, b.apart) for a, b in pairwise(kept)]
        assert all(latency.apart < 0.7 * latency.half for latency in kept if latency.half > 0.15)
    assert np.mean(inside) >= 0.9
    assert np.mean(pairs) >= 0.93


def test_where_some_are_kept_the_first_batch_of_the_others_sets_the_level(files: list[Candidate]) -> None:
    noisy = replace(BOX, options={"seed": 0, "level": 0.15})
    then = measured(profiler(noisy, name="monday"), files[:2])
    notes: list[Any] = []
    with profiler(noisy, name="tuesday") as device:
        device.join([], notes.append, lambda name: None)
        others = [files[2], replace(files[0], id="a-again", graph_hash="")]
        records = list(device.measure([*files[:2], *others], HASTY))
        assert device.history("hasty").batches == 1
    assert [record.subject.id for record in records] == ["a", "b", "c", "a-again"]
    assert ["cached" in record.flags for record in records] == [True, True, False, False]
    a, _, _, again = (record.latency for record in records)
    assert abs(math.log(again.value / then["a"].latency.value)) > 0.05
    assert a.value == pytest.approx(again.value, rel=0.02)
    # nothing but the batch was measured, and it is noted before what follows from its level
    told = [(note["what"], [r["subject"]["id"] for r in note.get("records", ())]) for note in notes]
    assert told == [("device", []), ("batch", ["c", "a-again"]), ("kept", ["a", "b"])]
    with profiler(noisy, name="wednesday") as device:  # goes on after a kill between these two
        device.join(notes[:-1], lambda told: None, lambda name: None)
        (kept,) = device.measure(files[:1], HASTY)
        assert kept.latency.value == pytest.approx(a.value)


@pytest.mark.parametrize("fault", ["unsupported", "oom", "crash"])
def test_where_all_others_fail_the_references_alone_set_the_level(files: list[Candidate], fault: str) -> None:
    box = replace(BOX, options={"seed": 0, "fault.[bc]": fault})
    then = measured(profiler(box), files[:1])
    records = measured(profiler(box), files)
    assert list(records) == ["a", "b", "c"]
    assert "cached" in records["a"].flags
    assert records["a"].latency.value == pytest.approx(then["a"].latency.value, rel=0.02)
    assert not any(records[name].status.has_value for name in "bc")


def test_kept_figures_contain_the_noise_floor_of_today(files: list[Candidate]) -> None:
    then = measured(profiler(), files)
    for sigma in (0.3, 0.05):  # calibrations since then may have found more, and less again
        with profiler() as device:
            write_calibration(device.fingerprint, device.config, sigma, 5, 3, HASTY)
        for name, record in measured(profiler(), files).items():
            latency = record.latency
            assert "cached" in record.flags
            assert (latency.sigma_session, latency.calibrated) == (sigma, True)
            half = math.log(latency.high / latency.value)
            assert half == pytest.approx(math.log(latency.value / latency.low))
            # and the doubt about the references' level, each of which moved on its own
            least = math.hypot(latency.half_within, 1.96 * sigma * math.sqrt(1 + 2 / 3))
            assert least * 0.999 <= half < 1.5 * least
            assert latency.half_within == then[name].latency.half_within
            assert math.log(latency.cpu_high / latency.cpu_time) >= 1.96 * sigma * 0.999
            assert latency.cpu_high / latency.cpu_time < math.exp(2.5 * sigma + 0.02)


def test_what_processes_differed_by_stays_in_a_kept_interval(files: list[Candidate]) -> None:
    unsteady = replace(BOX, options={"seed": 0, "session": 0.3})
    several = replace(HASTY, name="several", processes=3)
    with profiler(unsteady) as device:
        write_calibration(device.fingerprint, device.config, 0.01, 5, 3, HASTY)
    then = measured(profiler(unsteady), files, several)
    for name, record in measured(profiler(unsteady), files, several).items():
        assert "cached" in record.flags
        width = math.log(record.latency.high / record.latency.low)
        assert width >= math.log(then[name].latency.high / then[name].latency.low) > 2 * 1.96 * 0.02


def test_all_figures_of_a_row_are_on_one_level_and_cpu_time_on_its_own(files: list[Candidate]) -> None:
    noisy = replace(BOX, options={"seed": 0, "level": 0.15})
    then = measured(profiler(noisy, name="monday"), files)
    for name, record in measured(profiler(noisy, name="tuesday"), files).items():
        old, new = then[name].latency, record.latency
        factor = new.value / old.value
        assert abs(math.log(factor)) > 0.05
        for part in ("minimum", "median", "mean", "p90", "p95"):
            assert getattr(new.spread, part) == pytest.approx(factor * getattr(old.spread, part))
        assert (new.spread.iqr, new.spread.samples) == (old.spread.iqr, old.spread.samples)
        assert (new.minimum, new.polished) == pytest.approx((factor * old.minimum, factor * old.polished))
        assert new.level == pytest.approx(old.level - math.log(factor))
        assert new.cpu_time == old.cpu_time


@pytest.mark.parametrize("status", [Status.NOISY, Status.UNCONVERGED])
def test_doubtful_figures_are_measured_again(
    files: list[Candidate], status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    if status is Status.UNCONVERGED:
        asked = replace(HASTY, within=1e-9)
    else:
        asked = HASTY
        monkeypatch.setattr("hwnas.profiling.bench.REPEAT", -1.0)  # any level is too far
    first = measured(profiler(), files[:1], asked)["a"]
    assert first.status is status
    before = Counting.loads
    again = measured(profiler(), files[:1], asked)["a"]
    assert "cached" not in again.flags
    assert Counting.loads > before
    # nor does one that an older version kept answer
    with profiler() as device:
        key = result_key(files[0].graph_hash, device.config, device.fingerprint)
        with closing(ResultCache(resources.user_cache() / "measurements.sqlite")) as kept:
            assert kept.get(key, rank=0) is None
            kept.put([(key, asked.rank, again.to_json())])
        assert "cached" not in next(device.measure(files[:1], asked)).flags


def test_a_figure_without_a_reference_in_common_is_measured_again(files: list[Candidate]) -> None:
    record = measured(profiler(), files[:1])["a"]
    with profiler() as device:
        key = result_key(files[0].graph_hash, device.config, device.fingerprint)
        other = replace(record, conditions={**record.conditions, "references": {"another": 1.0}})
        with closing(ResultCache(resources.user_cache() / "measurements.sqlite")) as kept:
            kept.put([(key, HASTY.rank, other.to_json())])
        assert "cached" not in next(device.measure(files[:1], HASTY)).flags


def test_a_record_without_what_is_asked_for_now_is_measured_again(files: list[Candidate]) -> None:
    assert measured(profiler(), files[:1])["a"].memory is None
    assert measured(profiler(memory=True), files[:1])["a"].memory.weights > 0
    assert "cached" in measured(profiler(memory=True), files[:1])["a"].flags


@pytest.mark.parametrize(
    ("fault", "kept"),
    [("unsupported", True), ("invalid", True), ("fallback", True), ("oom", False), ("crash", False), ("hang", False)],
)
def test_only_failures_that_would_come_again_are_kept(files: list[Candidate], fault: str, kept: bool) -> None:
    broken = replace(BOX, options={"seed": 0, "fault.b": fault})
    status = measured(profiler(broken), files)["b"].status
    assert not status.has_value
    before = Counting.loads
    assert measured(profiler(broken), files)["b"].status is status
    assert (Counting.loads == before) is kept


# -- runtimes and references -----------------------------------------------------------------------------------------


def test_the_first_runtime_that_is_here_is_used() -> None:
    assert choose_runtime(replace(BOX, runtimes=("ort-cuda", "ort-cpu"))) == "ort-cpu"
    assert choose_runtime(replace(BOX, runtimes=("ort-cuda",), host="ssh:pi@board")) == "ort-cuda"
    with pytest.raises(DeviceUnavailable, match=r"box cannot be measured on: abacus: no runtime .*; slide-rule: no"):
        choose_runtime(replace(BOX, runtimes=("abacus", "slide-rule")))
    with pytest.raises(DeviceUnavailable, match="only known from numbers"):
        choose_runtime(replace(BOX, host="table"))


@pytest.mark.parametrize("fault", ["unsupported", "crash", "hang", "nan"])
def test_a_device_that_cannot_run_the_references_is_unavailable(files: list[Candidate], fault: str) -> None:
    """Not a fault of any candidate, and never a bare exception of the layer below."""
    broken = replace(BOX, options={"seed": 0, "fault.reference-medium": fault})
    try:
        records = measured(profiler(broken), files)
    except DeviceUnavailable as error:
        assert "box" in str(error)  # noqa: PT017 - either answer is right
    else:
        assert not any(record.status.has_value for record in records.values())


def test_wrong_options_are_an_error_before_anything_is_measured(files: list[Candidate]) -> None:
    with pytest.raises(DeviceUnavailable, match="no option 'jiter'"):
        measured(profiler(replace(BOX, options={"jiter": 0.1})), files)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to an address space")
def test_the_cache_does_not_answer_for_a_device_with_less_memory(files: list[Candidate]) -> None:
    cpu = replace(BOX, runtimes=("ort-cpu",), options={}, memory_mib=2000.0)
    first = measured(Profiler(cpu), files[:1])  # real workers
    assert "cached" in measured(Profiler(cpu), files[:1])["a"].flags
    assert "cached" not in measured(Profiler(replace(cpu, memory_mib=1000.0)), files[:1])["a"].flags
    assert "cached" in measured(Profiler(cpu), files[:1])["a"].flags  # it runs with less, so with more as well
    large = replace(files[0], facts={**files[0].facts, "weights_bytes": 300 * 2**20})
    assert measured(Profiler(replace(cpu, memory_mib=200.0)), [large])["a"].status is Status.OUT_OF_MEMORY
    assert first["a"].status is Status.OK


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to an address space")
def test_a_device_files_memory_is_the_workers_limit() -> None:
    box = replace(BOX, runtimes=("ort-cpu",), options={})
    limits = [session_config(replace(box, memory_mib=m), "ort-cpu").memory_limit_mib for m in (100.0, 356.0, None)]
    assert limits[0] is not None
    assert limits[1] == limits[0] + 256
    assert limits[2] is not None
    assert limits[2] > limits[1]
    assert session_config(replace(box, memory_mib=100.0), "ort-cuda").memory_limit_mib is None
    far = replace(box, host="ssh:pi@board.lan")
    assert session_config(far, "ort-cpu").memory_limit_mib is None
    assert session_config(replace(far, memory_mib=100.0), "ort-cpu").memory_limit_mib == limits[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to an address space")
def test_a_network_that_wants_more_than_the_device_file_grants_is_out_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Expand", ["x", "shape"], ["big"]),
            onnx.helper.make_node("Relu", ["big"], ["relu"]),
            onnx.helper.make_node("ReduceMax", ["relu"], ["y"], keepdims=0),
        ],
        "large",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])],
        [onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [1024 * 1024, 1500])],  # 6 GB
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    box = replace(BOX, runtimes=("ort-cpu",), options={}, memory_mib=500.0)
    with Profiler(box, cached=False) as device:
        (record,) = device.measure([Candidate("large", path)], HASTY)
    assert record.status is Status.OUT_OF_MEMORY, record.message


# -- lock and calibration --------------------------------------------------------------------------------------------


def test_one_process_may_hold_a_machine_several_times_and_lets_go_after_the_last(tmp_path: Path) -> None:
    first, second = profiler(), profiler(replace(BOX, name="other"))
    first.close()
    with pytest.raises(Held, match="process"):
        lock_file(tmp_path / "locks", "local").acquire()
    second.close()
    second.close()
    lock = lock_file(tmp_path / "locks", "local")
    lock.acquire()
    lock.release()


def test_who_is_waited_for_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = lock_file(tmp_path / "locks", "local")
    other.acquire()
    with pytest.raises(DeviceBusy, match="--wait"):
        profiler()
    assert caplog.messages == []
    with pytest.raises(DeviceBusy, match=f"process {os.getpid()}"):
        profiler(wait_s=0.01)
    (told,) = caplog.messages
    assert told.startswith(f"waiting for at most 0.01 s: process {os.getpid()} of {getpass.getuser()} on")
    caplog.clear()
    acquire = SharedLock.acquire

    def released_meanwhile(lock: SharedLock, *, timeout: float = 0) -> None:
        if timeout:
            other.release()
        acquire(lock, timeout=timeout)

    monkeypatch.setattr(SharedLock, "acquire", released_meanwhile)
    with profiler(wait_s=5.0):
        assert [told[:23] for told in caplog.messages] == ["waiting for at most 5 s"]


def test_a_device_that_fails_to_open_leaves_no_lock(cache: Path) -> None:
    damaged = profiler()
    damaged.close()
    (cache / "measurements.sqlite").write_bytes(b"no database" * 500)
    for name in ("measurements.sqlite-wal", "measurements.sqlite-shm"):
        (cache / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match="no-cache"):
        profiler()
    with profiler(cached=False):
        pass


def test_more_threads_than_cores_are_said() -> None:
    cores = host.facts()["usable cores"]
    for more in (0, 1):
        with Profiler(replace(BOX, runtimes=("ort-cpu",), options={}, threads=int(cores) + more)) as device:
            assert bool(device.describe()["crowded"]) == bool(more)


def test_calibration_finds_the_spread_keeps_it_and_widens_intervals(files: list[Candidate]) -> None:
    noisy = replace(BOX, options={"seed": 0, "session": 0.06})
    names = iter(range(100))
    make: Callable[[], DirectTransport] = lambda: DirectTransport(name=str(next(names)))  # noqa: E731
    with Profiler(noisy, transport=make, cached=False) as device:
        assert device.noise_floor == (DEFAULT_SIGMA, False)
        sigma = device.calibrate(files, HASTY, sessions=10)
        assert device.noise_floor == (sigma, True)
    assert sigma == pytest.approx(0.06, rel=0.4)
    record = measured(profiler(noisy, cached=False), files[:1])["a"]
    assert record.latency.calibrated
    assert record.latency.sigma_session == sigma
    assert math.log(record.latency.high / record.latency.low) / 2 >= 1.96 * sigma
    # another number of threads is another device in this respect
    with profiler(replace(noisy, threads=2)) as device:
        assert device.noise_floor == (DEFAULT_SIGMA, False)


@pytest.mark.parametrize("content", ["", "[]", '{"sigma": "much"}', '{"sigma": NaN}', '{"sigma": -0.1}', "\x00"])
def test_a_damaged_calibration_is_named_with_the_way_out(content: str) -> None:
    with profiler() as device:
        path = calibration_file(device.fingerprint, device.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError, match=r"\.json is damaged .*hwnas calibrate"):
        profiler()


# -- a run that is continued -----------------------------------------------------------------------------------------


def test_a_protocol_of_a_continued_run_stays_on_its_level_and_another_one_is_on_the_clocks(
    files: list[Candidate],
) -> None:
    box = replace(BOX, options={"seed": 0, "jitter": 0, "level": 0.05})
    notes: list[Any] = []
    with profiler(box, name="monday", cached=False) as device:
        device.join([], notes.append, lambda name: None)
        first = {record.subject.id: record.latency for record in device.measure(files, HASTY)}
        write_calibration(device.fingerprint, device.config, 0.3, 5, 3, HASTY)
    fresh = [replace(candidate, id=f"{candidate.id}-again") for candidate in files]
    with profiler(box, name="tuesday", cached=False) as device:
        device.join(notes, notes.append, lambda name: {c.id: c for c in files}[name])
        assert device.noise_floor == (DEFAULT_SIGMA, False)
        again = [record.latency for record in device.measure(fresh, HASTY)]
        careful = [record.latency for record in device.measure(fresh, CAREFUL)]
        slower = again[0].level
        assert abs(slower) > 0.01  # the two days differ
        assert device.history("hasty").retests is not None
        assert device.history("careful").retests is None
        assert (device.history("hasty").batches, device.history("careful").batches) == (2, 1)
        assert device.drift("hasty", "careful") == pytest.approx(slower)
        assert device.drift("careful", "nobody") == 0
    for candidate, levelled, shown in zip(files, again, careful, strict=True):
        value = first[candidate.id].value
        assert levelled.value == pytest.approx(value)
        assert (shown.value, shown.level) == (pytest.approx(value * math.exp(slower)), 0)
        assert shown.value == pytest.approx(shown.spread.median, rel=0.01)
        # in another process three references tell the level to within their own parts between sessions
        half, doubt = math.log(levelled.high / levelled.value), math.sqrt(2 / 3) * DEFAULT_SIGMA
        assert half == pytest.approx(math.hypot(levelled.half_within, 1.96 * math.hypot(DEFAULT_SIGMA, doubt)))
        assert math.log(shown.high / shown.value) < half
    with profiler(box, name="wednesday", cached=False) as device:  # killed while the front was measured
        device.join(notes, notes.append, lambda name: {c.id: c for c in fresh}.get(name))
        others = [replace(candidate, id=f"{candidate.id}-later") for candidate in files]
        later = [record.latency for record in device.measure(others, CAREFUL)]
        assert [latency.value for latency in later] == pytest.approx([latency.value for latency in careful])
        assert abs(later[0].level) > 0.01
    with profiler(replace(box, threads=2)) as device, pytest.raises(RunIncompatible, match="threads 1, now 2"):
        device.join(notes, notes.append, lambda name: None)


def test_what_retests_showed_in_an_earlier_session_widens_the_intervals_of_the_next(files: list[Candidate]) -> None:
    pairs = [[0.1 * i, 0.1 * i + 0.2, [0.05, 0.05]] for i in range(4)]
    told = {"what": "batch", "protocol": "hasty", "batches": 3, "level": {}, "figures": {}, "pairs": pairs}
    with profiler(cached=False) as device:
        device.join([told], lambda told: None, lambda name: None)
        for protocol in (HASTY, CAREFUL):
            (record,) = device.measure(files[:1], protocol)
            assert record.latency.sigma_session > 0.1


# -- a space on a device ---------------------------------------------------------------------------------------------

SPACE = NasBench201()


def cell(*code: int) -> Architecture:
    return Architecture("nb201", code)


def test_a_space_is_measured_and_isomorphic_cells_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "default", HASTY)
    meter = SpaceMeter(SPACE, "cifar10", profiler())
    # a skip to the output beside a dead branch: node 1 and 2 are reached, but not read
    twins = [cell(0, 0, 0, 3, 0, 0), cell(3, 0, 0, 3, 0, 0), cell(0, 0, 3, 3, 0, 0)]
    asked = [*twins, cell(3, 3, 3, 3, 3, 3), twins[0]]
    rows = list(meter.measure(asked))
    assert [row["latency_ms"].architecture for row in rows] == asked
    latencies = [row["latency_ms"].value for row in rows]
    assert latencies[0] == latencies[1] == latencies[2] == latencies[4] < latencies[3]
    assert Counting.loads == 2
    for row in rows:
        told = row["latency_ms"]
        assert told.context == meter.context("latency_ms")
        assert (told.context.source, told.context.runtime, told.context.device) == (Source.MEASURED, "fake", "box")
        assert "simulated" in str(told.context.origin)
        assert told.interval is not None
        assert row["peak_memory_mib"].status is Status.NOT_MEASURED
        assert "memory plan" in row["peak_memory_mib"].message
    assert meter.context("latency_ms", final=True) != meter.context("latency_ms")
    assert meter.context("energy_mj") is None
    assert "not energy_mj" in meter.why_not("energy_mj")
    assert meter.certificate(asked[0])["latency"]["value"] == latencies[0]
    assert meter.certificate(cell(1, 1, 1, 1, 1, 1)) is None
    meter.close()


def test_a_network_that_cannot_be_exported_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "default", HASTY)

    class Broken(NasBench201):
        def to_onnx(self, architecture: Architecture, *rest: Any, **named: Any) -> Any:
            if architecture == cell(1, 1, 1, 1, 1, 1):
                raise ValueError("no such layer")
            return super().to_onnx(architecture, *rest, **named)

    meter = SpaceMeter(Broken(), "cifar10", profiler())
    good, bad = meter.measure([cell(3, 3, 3, 3, 3, 3), cell(1, 1, 1, 1, 1, 1)])
    assert good["latency_ms"].status.has_value
    assert bad["latency_ms"].status is Status.EXPORT_FAILED
    assert "no such layer" in bad["latency_ms"].message
    meter.close()


# -- the promise -----------------------------------------------------------------------------------------------------

BRIEF = replace(PROTOCOLS["final"], rounds=5, most_rounds=5, processes=1, resamples=50)


def search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], *flags: str, name: str = "run"
) -> tuple[int, str, Path]:
    """`hwnas search` on a simulated device with a budget that its networks meet: exit code, output, run."""
    monkeypatch.setitem(PROTOCOLS, "final", BRIEF)
    monkeypatch.delenv("HWNAS_TABLES", raising=False)
    told = ", ".join(f'"{name}" = {json.dumps(value)}' for name, value in {"seed": 0, **options}.items())
    path = tmp_path / "simulated.toml"
    path.write_text(
        'name = "simulated"\ntitle = "A simulated device"\nkind = "cpu"\nruntimes = ["fake"]\nprecisions = ["fp32"]\n'
        f'metrics = ["latency_ms"]\nmeasured_how = "Simulated."\nhost = "local"\noptions = {{ {told} }}\n'
    )
    run = tmp_path / name
    arguments = ["search", "--device", str(path), "--latency-budget", "50ms", "--queries", "6", "--out", str(run)]
    arguments += flags
    done = CliRunner().invoke(app, [*arguments, "--generator", "random", "--preset", "quick", "--source", "surrogate"])
    return done.exit_code, done.output, run


@pytest.mark.parametrize(("others", "hint"), [((), "; write peak_memory@one"), (("latency_ms", "cpu_time_ms"), None)])
def test_a_metric_that_not_all_devices_tell_is_refused_with_what_to_write(
    tmp_path: Path, others: tuple[str, ...], hint: str | None
) -> None:
    paths = []
    for name, metrics in (("one", others or ("latency_ms", "peak_memory_mib")), ("two", ("latency_ms",))):
        path = tmp_path / f"{name}.toml"
        path.write_text(
            f'name = "{name}"\ntitle = "A simulated device"\nkind = "cpu"\nruntimes = ["fake"]\nprecisions = ["fp32"]\n'
            f'metrics = {json.dumps(metrics)}\nmeasured_how = "Simulated."\nhost = "local"\n'
        )
        paths.append(str(path))
    config = SearchConfig(devices=tuple(paths), objectives=("error", "latency", "peak_memory"), source="surrogate")
    with pytest.raises(InvalidSetting, match="'peak_memory' cannot be measured: device") as told:
        assemble(config)
    assert str(told.value).endswith("not peak_memory_mib" + (hint or ""))


def test_a_recommended_model_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, output, run = search(tmp_path, monkeypatch, {})
    assert code == 0, output
    assert "NOT certainly within" not in output
    told = json.loads((run / "measurements.json").read_text())
    assert told["checked"]["simulated"]["kept"] is True
    assert told["devices"]["simulated"]["runtime"] == "fake"
    assert told["devices"]["simulated"]["not_final"] == []
    certificates = [c["simulated"] for c in told["certificates"].values()]
    assert certificates
    assert {c["setup"]["runtime"] for c in certificates} == {"fake"}
    assert {c["setup"]["protocol"]["name"] for c in certificates} == {"final"}
    timed = told["checked"]["simulated"]
    assert_certified(run, timed)


def test_a_search_tells_what_it_measured_from_what_was_kept_and_does_without_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def counts(run: Path) -> list[int]:
        ledger = json.loads((run / "front.json").read_text())["ledger"]
        assert api.load(run).ledger.to_json() == ledger
        names = ("cost_queries", "networks_measured", "networks_kept", "final_measurements", "final_kept")
        return [ledger[name] for name in names]

    def flags(run: Path) -> set[str]:
        told = json.loads((run / "measurements.json").read_text())["certificates"].values()
        return {flag for certificate in told for flag in certificate["simulated"]["flags"]}

    def found(name: str, *flags: str) -> tuple[Path, str]:
        code, output, run = search(tmp_path, monkeypatch, {}, "--models", "none", *flags, name=name)
        assert code == 0, output
        return run, " ".join(output.replace("│", " ").split())

    def known() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in cache.glob("measurements.sqlite*")}

    first, _ = found("first", "--no-cache")
    assert known() == {}
    _, networks, _, again, _ = counts(first)
    assert min(networks, again) > 0
    assert counts(first) == [networks, networks, 0, again, 0]
    second, _ = found("second")
    assert counts(second) == counts(first)
    third, output = found("third")
    assert counts(third) == [networks, 0, networks, 0, again]
    assert f"cost queries (0 networks measured, {networks} kept from earlier measurements)" in output
    assert "cached" in flags(third)
    before = known()
    fourth, _ = found("fourth", "--no-cache")
    assert counts(fourth) == counts(first)
    assert "cached" not in flags(fourth)
    assert known() == before
    assert " --no-cache " in str(api.load(fourth).command)


def test_a_continued_run_does_with_or_without_the_cache_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    _, _, run = search(tmp_path, monkeypatch, {}, "--no-cache", "--models", "none")
    api.open_run({"cache": False}, resume=run).close()
    api.open_run({}, resume=run).close()
    assert not list(cache.glob("measurements.sqlite*"))
    with pytest.raises(RunIncompatible, match=r"cache \(False there, True asked for\)"):
        api.open_run({"cache": True}, resume=run)
    # one of an earlier version had it, and does not say so
    text = (run / "run.toml").read_text()
    (run / "run.toml").write_text(text.replace("cache = false\n", ""))
    assert "cache = false" in text
    api.open_run({"cache": True}, resume=run).close()
    with pytest.raises(RunIncompatible, match=r"cache \('unset' there, False asked for\)"):
        api.open_run({"cache": False}, resume=run)


def test_a_front_that_is_not_measured_with_care_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it still changed after the last turn: here there is none."""
    monkeypatch.setattr(finals, "_TURNS", 0)
    code, output, run = search(tmp_path, monkeypatch, {})
    assert code == 0, output
    told = json.loads((run / "measurements.json").read_text())["devices"]["simulated"]
    front = json.loads((run / "front.json").read_text())
    assert len(told["not_final"]) == told["front"] == len(front["front"]) > 0
    said = f"{told['front']} of {told['front']} networks of the front were not measured with the protocol final"
    assert said in " ".join(output.replace("│", " ").split())
    assert any(said in note for note in Finals.read(run).notes)


def assert_certified(run: Path, timed: dict[str, Any]) -> None:
    """The certificate beside the timed model has all that a figure needs, and no path of this machine."""
    path = run / "models" / timed["file"]
    beside = json.loads(path.with_suffix(".certificate.json").read_text())["simulated"]
    inside = {entry.key: entry.value for entry in onnx.load(path).metadata_props}["hwnas.certificate"]
    assert beside.pop("exported") == timed
    assert datetime.fromisoformat(timed["date"]).tzinfo is not None
    assert json.loads(inside)["simulated"] == beside
    assert beside["batch"] == 1
    assert "minimum" in beside["latency"]["estimator"]
    assert beside["latency"]["low"] <= beside["latency"]["value"] <= beside["latency"]["high"]
    assert beside["latency"]["spread"]["samples"] > 0
    assert beside["setup"]["config"]["threads"] == 1
    assert beside["setup"]["versions"] == {"fake": "1"}
    assert beside["setup"]["fingerprint"]
    assert datetime.fromisoformat(beside["sampling"]["started"]).tzinfo is not None
    assert "cache" not in beside["setup"]["config"]
    assert str(run.parent) not in inside


def test_a_model_that_misses_its_budget_from_the_file_is_said_and_the_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # exported files are called NN-error...; those that the search has timed are not
    code, output, run = search(tmp_path, monkeypatch, {"truth.*error*": 80.0})
    assert code == 1, output
    assert "NOT certainly within" in " ".join(output.replace("│", " ").split())  # wherever the box wraps it
    checked = json.loads((run / "measurements.json").read_text())["checked"]["simulated"]
    assert checked["kept"] is False
    assert checked["latency_ms"] == pytest.approx(80.0, rel=0.05)


def test_a_model_that_fails_from_its_file_is_said_and_the_command_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output, _ = search(tmp_path, monkeypatch, {"fault.*error*": "unsupported"})
    assert code == 1, output
    assert "unsupported_op" in output
